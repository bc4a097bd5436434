"""One job on several processes: how it starts, what only its first process does, and where they wait.

Every process runs the same script with the same flags. They share the run's folder: what each computes alike is
written by the first, and what is split among them (shards of a store, checkpoints) by each.
"""

import os

from monojax import files

_started = False


def start(coordinator, n_processes, process_id):
  """Joins this process to its job; to be called before jax is used for anything else.

  Args:
    coordinator: "HOST:PORT" of the first process, any free port; or "auto", which finds all three in the
      environment of Slurm, Open MPI, Kubernetes or a TPU slice.
    n_processes: how many there are.
    process_id: which of them this is, from 0.
  """
  import jax
  global _started
  _started = True
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  if coordinator == "auto":
    jax.distributed.initialize()
  else:
    jax.distributed.initialize(coordinator, n_processes, process_id)
  files.written_elsewhere = jax.process_index() != 0


def wait(name):
  """Returns once every process of the job is here."""
  if _started:
    from jax.experimental import multihost_utils
    multihost_utils.sync_global_devices(name)


def leave(code):
  """Ends this process of a job at once, so that the others learn of it instead of waiting; does nothing else."""
  if _started:
    os._exit(code)
