"""The loop every training stage shares: dispatch, log one call late, checkpoint, resume exactly."""

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from monojax import metrics
from monojax.checkpoint import Checkpoints


@flax.struct.dataclass
class TrainState:
  """What a training step carries on: arrays only.

  Attributes:
    step: int32, optimiser steps done.
    params: the model's parameters.
    opt_state: the optimiser's state.
    counters: a dict of arrays that a recipe keeps besides; empty for a subject.
  """
  step: jax.Array
  params: dict
  opt_state: tuple
  counters: dict


def compute_dtype(name):
  """The dtype of matrix products for a configured "auto", "float32" or "bfloat16"."""
  if name == "auto":
    name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  return jnp.dtype(name)


def minimised(loss, params, tx, n_steps):
  """`params` after `n_steps` of an optax transformation on `loss(params)`; to be traced.

  For small problems without data; `train` is for those that have batches, checkpoints and metrics.
  """
  def step(carry, _):
    params, state = carry
    updates, state = tx.update(jax.grad(loss)(params), state)
    return (optax.apply_updates(params, updates), state), None
  return jax.lax.scan(step, (params, tx.init(params)), length=n_steps)[0][0]


@dataclasses.dataclass(frozen=True)
class Run:
  """How a training loop is cut up and where it writes.

  Attributes:
    directory: receives `checkpoints/` and `metrics.jsonl`.
    config: JSON-able dict kept with the checkpoints.
    n_steps: optimiser steps in all.
    scan_steps: optimiser steps in one compiled call.
    checkpoint_every_steps: a checkpoint is due at its multiples and at the end.
    intervene_steps: steps after which `intervene` is called.
    unit: what the progress bar's rate counts, "tokens" or "rows".
    units_per_step: how many of them one step uses.
    name: the progress bar's label.
    upgrade: (state, version of its checkpoint) -> state, for states that an older version of monojax left.
  """
  directory: pathlib.Path
  config: dict
  n_steps: int
  scan_steps: int
  checkpoint_every_steps: int
  intervene_steps: tuple
  unit: str
  units_per_step: int
  name: str
  upgrade: Callable[[TrainState, int], TrainState] = lambda state, version: state

  def next_cut(self, step):
    """Where the call that starts at `step` must end: a function of `step` and the settings alone.

    Resumed and uninterrupted runs therefore make the same calls and get the same bits.
    """
    multiples = (self.scan_steps, self.checkpoint_every_steps)
    cuts = [(step // every + 1) * every for every in multiples]
    cuts += [cut for cut in self.intervene_steps if cut > step]
    return min(*cuts, self.n_steps)


def train(state, step, batches, run, metrics_config, intervene=None):
  """Trains to the end from the newest checkpoint, or from `state` where there is none.

  The device never waits for the host: call n is dispatched before call n-1's metrics are read.

  Args:
    state: `TrainState` at step 0, placed on its mesh; donated.
    step: (state, batch) -> (state, dict of scalar metrics), donating its state.
    batches: (first step, last step) -> device batch for those steps, a pure function.
    run: `Run`.
    metrics_config: `metrics.MetricsConfig`.
    intervene: (state, steps done) -> (state, dict of floats), called after `run.intervene_steps`.

  Returns:
    The final state.

  Raises:
    FloatingPointError: a metric is not finite; the last good checkpoint stays. Metrics named MEMBER/NAME are of
      members that do not depend on each other: one that diverges is no longer logged, and all must to stop.
  """
  checkpoints = Checkpoints(pathlib.Path(run.directory) / "checkpoints", run.config)
  done = checkpoints.latest_step() or 0
  if done:
    state = run.upgrade(checkpoints.restore(state), checkpoints.version())
  log = metrics.MetricsLog(pathlib.Path(run.directory) / "metrics.jsonl", metrics_config, done + 1)
  bar = metrics.progress(run.n_steps * run.units_per_step, run.unit, run.name,
                         initial=done * run.units_per_step, scale=True)
  writer = _LateWriter(log, bar, run, done)
  try:
    while done < run.n_steps:
      end = run.next_cut(done)
      batch = batches(done, end)
      with jax.transfer_guard("disallow"):
        state, values = step(state, batch)
      writer.write(end, values)
      done = end
      if intervene is not None and done in run.intervene_steps:
        writer.flush()
        state, report = intervene(state, done)
        log.write(done, report)
      if done % run.checkpoint_every_steps == 0 or done == run.n_steps:
        writer.flush()
        checkpoints.save(done, state)
  finally:
    bar.close()
    log.close()
    checkpoints.close()
  return state


class _LateWriter:
  """Reads and logs the metrics of the call before the one just dispatched."""

  def __init__(self, log, bar, run, done):
    self._log, self._bar, self._run = log, bar, run
    self._pending = None
    self._written = done
    self._clock = time.perf_counter()

  def write(self, step, values):
    """Keeps the metrics of the call that ends at `step`, and logs those kept before."""
    pending, self._pending = self._pending, (step, values)
    if pending:
      self._log_now(*pending)

  def flush(self):
    """Logs what is kept, waiting for the device."""
    if self._pending:
      pending, self._pending = self._pending, None
      self._log_now(*pending)

  def _log_now(self, step, values):
    values = {name: float(np.asarray(value)) for name, value in jax.device_get(values).items()}
    member_of = lambda name: name.rpartition("/")[0]
    bad = {name: value for name, value in values.items() if not math.isfinite(value)}
    diverged = {member_of(name) for name in bad}
    if bad and diverged == {member_of(name) for name in values}:
      name, value = next(iter(bad.items()))
      raise FloatingPointError(
          f"{self._run.name}: {name} is {value} in the steps up to {step}; stopped, with the last "
          f"good checkpoint kept in {self._run.directory}. A lower learning rate usually helps")
    values = {name: value for name, value in values.items() if member_of(name) not in diverged}
    now = time.perf_counter()
    n_units = (step - self._written) * self._run.units_per_step
    rate = n_units / (now - self._clock)
    self._clock, self._written = now, step
    self._log.write(step, {**values, f"{self._run.unit}_per_second": rate})
    self._bar.set_postfix({name: f"{value:.4g}" for name, value in list(values.items())[:4]},
                          refresh=False)
    self._bar.update(n_units)
