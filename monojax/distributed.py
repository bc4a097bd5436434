"""One job on several processes: how it starts, which process writes what, and where they wait for each other.

Every process of a job runs the same script with the same flags, and they share the run's folder. A file that all of
them would write alike is written by the first process only. What is split among them, such as the shards of a store and
the checkpoints, is written by each.
"""

import os
import sys


def start(coordinator: str, n_processes: int, process_id: int) -> None:
  """Joins this process to its job. Call it before jax is used for anything else.

  Args:
    coordinator: "HOST:PORT" of the first process, where any free port will do; or "auto", which reads all three
      arguments from the environment of Slurm, Open MPI, Kubernetes or a TPU slice.
    n_processes: how many processes the job has.
    process_id: the number of this process, from 0.
  """
  import jax
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  if coordinator == "auto":
    jax.distributed.initialize()
  else:
    jax.distributed.initialize(coordinator, n_processes, process_id)


def in_job() -> bool:
  """Whether this process has joined a job. A process that has not imported jax cannot have."""
  return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def is_first() -> bool:
  """Whether this process writes the files that all processes of its job would write alike."""
  return not in_job() or sys.modules["jax"].process_index() == 0


def wait(name: str) -> None:
  """Returns once every process of the job has come here; `name` is the same on all of them."""
  if in_job():
    from jax.experimental import multihost_utils
    multihost_utils.sync_global_devices(name)


def leave(code: int) -> None:
  """Ends this process at once if it is one of a job, so that the others notice instead of waiting for it."""
  if in_job():
    os._exit(code)
