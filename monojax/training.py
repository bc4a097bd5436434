"""The training loop that every stage with steps of an optimiser shares, and the state that it carries.

The loop calls a compiled function of several steps, logs its metrics, writes checkpoints, and resumes from the newest
one with the bits that an uninterrupted training would have had.
"""

import bisect
import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, ParamSpec, TypeVar

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from monojax import metrics
from monojax.checkpoint import Checkpoints

Tree = Any  # a pytree of arrays
P = ParamSpec("P")
T = TypeVar("T")


@flax.struct.dataclass
class TrainState:
  """What one training step hands on to the next: arrays only.

  Attributes:
    step: the number of optimiser steps done, int32; in a sweep, one for each dictionary.
    params: the model's parameters.
    opt_state: the optimiser's state.
    counters: a dict of further arrays, which only recipes of dictionaries need; empty for a subject.
  """
  step: Tree
  params: Tree
  opt_state: Tree
  counters: Tree


# The metric that training minimises: training stops where it is not finite. All others are diagnostics, which may be
# undefined, for instance the explained variance of rows that are all equal.
LOSS = "loss"
Metrics = Mapping[str, Any]  # the name of each metric and its value, a scalar
Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
Intervene = Callable[[TrainState, int], tuple[TrainState, Metrics]]


def in_32_bits(function: Callable[P, T]) -> Callable[P, T]:
  """The function in 32 bits, also where the caller has set `jax_enable_x64`, which training is not made for."""
  @functools.wraps(function)
  def inside(*args: P.args, **kwargs: P.kwargs) -> T:
    with jax.enable_x64(False):
      return function(*args, **kwargs)
  return inside


def compute_dtype(name: str) -> jnp.dtype:
  """The dtype of matrix products that a setting asks for: "float32", "bfloat16", or "auto".

  "auto" is float32 on a CPU and bfloat16 on any other device.
  """
  if name == "auto":
    name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  return jnp.dtype(name)


def minimised(loss: Callable[[Tree], jax.Array], params: Tree, tx: optax.GradientTransformation, n_steps: int) -> Tree:
  """Parameters after `n_steps` steps of an optimiser on a loss; call it inside of `jax.jit`.

  It is for small problems without data. Training with batches, checkpoints and metrics is what `train` does.

  Args:
    loss: the function to minimise, params -> scalar.
    params: where to start.
    tx: the optimiser.
    n_steps: the number of steps.
  """
  def step(carry, _):
    params, state = carry
    updates, state = tx.update(jax.grad(loss)(params), state)
    return (optax.apply_updates(params, updates), state), None
  return jax.lax.scan(step, (params, tx.init(params)), length=n_steps)[0][0]


@jax.jit
def are_finite(state: TrainState) -> jax.Array:
  """Whether all weights of a state, the running means among its counters included, are finite numbers."""
  leaves = jax.tree.leaves((state.params, state.counters))
  return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


@dataclasses.dataclass(frozen=True)
class Loop:
  """The settings of one training loop: how many steps it has, how they are cut into calls, and where it writes.

  Attributes:
    directory: the folder that receives `checkpoints/` and `metrics.jsonl`.
    config: a JSON-able dict that is kept with the checkpoints.
    n_steps: the number of optimiser steps in all.
    scan_steps: the number of optimiser steps in one compiled call.
    checkpoint_every_steps: a checkpoint is written at the multiples of this number and at the end.
    intervene_steps: the steps after which `intervene` is called, rising.
    unit: what the progress bar's rate counts, "tokens" or "rows".
    units_per_step: how many of these units one step uses.
    name: the progress bar's label.
    upgrade: (state, version of its checkpoint) -> state, for states that an older version of monojax left.
    finite: state -> bool, or an array of one bool for each model where a state holds several that do not depend on
      each other: whether the weights are finite numbers.
  """
  directory: pathlib.Path
  config: Mapping[str, Any]
  n_steps: int
  scan_steps: int
  checkpoint_every_steps: int
  intervene_steps: Sequence[int]
  unit: str
  units_per_step: int
  name: str
  upgrade: Callable[[TrainState, int], TrainState] = lambda state, version: state
  finite: Callable[[TrainState], jax.Array] = are_finite

  def next_cut(self, step: int) -> int:
    """The step at which the call that starts at `step` must end, a function of `step` and the settings alone.

    Resumed and uninterrupted training therefore makes the same calls and gets the same bits. For example, with 4 steps
    to a call, a checkpoint every 10 and an intervention after 9, calls end at steps 4, 8, 9, 10, 12 and so on.
    """
    multiples = (self.scan_steps, self.checkpoint_every_steps)
    cuts = [(step // every + 1) * every for every in multiples]
    cuts += self.intervene_steps[bisect.bisect_right(self.intervene_steps, step):][:1]
    return min(*cuts, self.n_steps)


def train(state: TrainState, step: Step, batches: Callable[[int, int], Any], loop: Loop,
          metrics_config: metrics.MetricsConfig, intervene: Intervene | None = None) -> TrainState:
  """Trains to the end from the newest checkpoint, or from `state` where there is none.

  The device never waits for the host: a call is dispatched before the metrics of the call before it are read.

  Args:
    state: the state at step 0, placed on its mesh; it is donated.
    step: (state, batch) -> (state, dict of scalar metrics), a compiled function that takes the steps of one call and
      donates its state. The metric that is minimised is named `LOSS`; others may be NaN where they are undefined.
    batches: (first step, last step) -> what `step` takes for those steps, on the device; a pure function.
    loop: how the steps are cut into calls and where the loop writes.
    metrics_config: where metrics go besides `metrics.jsonl`.
    intervene: (state, steps done) -> (state, dict of floats), called after each of `loop.intervene_steps`.

  Returns:
    The state after the last step.

  Raises:
    FloatingPointError: the loss is not finite after a call, or the weights are not where a checkpoint is due, which is
      then not written. The last good checkpoint stays. Where metrics are named MEMBER/NAME, as those of a sweep are,
      members do not depend on each other: one that diverges is no longer logged, and training stops only when all of
      them have diverged.
  """
  checkpoints = Checkpoints(pathlib.Path(loop.directory) / "checkpoints", loop.config)
  done = 0
  if restored := checkpoints.restore(state):
    state, done = loop.upgrade(restored.state, restored.version), restored.step
  log = metrics.MetricsLog(pathlib.Path(loop.directory) / "metrics.jsonl", metrics_config, done + 1,
                           loop.config)
  bar = metrics.progress(loop.n_steps * loop.units_per_step, loop.unit, loop.name,
                         initial=done * loop.units_per_step, scale=True)
  saved = done

  def stop(what: str, first: int, last: int) -> NoReturn:
    """Ends training because of something that was found in the call of some steps."""
    kept = f"the checkpoint of step {saved} is kept in {loop.directory}" if saved else "no checkpoint was written"
    floats = [leaf for leaf in jax.tree.leaves(batches(first, last)) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    cause = ("a lower learning rate usually helps" if all(jnp.isfinite(leaf).all() for leaf in floats)
             else "the data of these steps holds numbers that are not finite")
    raise FloatingPointError(f"{loop.name}: {what} in the steps up to {last}: training stopped, {kept}; {cause}")
  writer = _LateWriter(log, bar, loop, done, stop)
  try:
    while done < loop.n_steps:
      end = loop.next_cut(done)
      batch = batches(done, end)
      with jax.transfer_guard("disallow"):
        state, values = step(state, batch)
      writer.write(end, values)
      first, done = done, end
      if intervene is not None and done in loop.intervene_steps:
        writer.flush()
        state, report = intervene(state, done)
        log.write(done, report)
      if done % loop.checkpoint_every_steps == 0 or done == loop.n_steps:
        writer.flush()
        if not np.any(loop.finite(state)):
          stop("weights are not finite", first, done)
        checkpoints.save(done, state)
        saved = done
  finally:
    bar.close()
    log.close()
    checkpoints.close()
  return state


class _LateWriter:
  """Logs the metrics of each call after the next one is dispatched, so that the device need not wait meanwhile."""

  def __init__(self, log: metrics.MetricsLog, bar: Any, loop: Loop, done: int,
               stop: Callable[[str, int, int], NoReturn]) -> None:
    self._log, self._bar, self._loop, self._stop = log, bar, loop, stop
    self._pending: tuple[int, Metrics] | None = None
    self._written = done
    self._clock = time.perf_counter()

  def write(self, step: int, values: Metrics) -> None:
    """Keeps the metrics of the call that ends at `step`, and logs those of the call before it."""
    pending, self._pending = self._pending, (step, values)
    if pending:
      self._log_now(*pending)

  def flush(self) -> None:
    """Logs the metrics that are kept, for which it waits for the device."""
    if self._pending:
      pending, self._pending = self._pending, None
      self._log_now(*pending)

  def _log_now(self, step: int, values: Metrics) -> None:
    values = {name: float(np.asarray(value)) for name, value in jax.device_get(values).items()}
    member_of = lambda name: name.rpartition("/")[0]
    losses = {name: value for name, value in values.items() if name.rpartition("/")[2] == LOSS}
    bad = {name: value for name, value in losses.items() if not math.isfinite(value)}
    if bad and len(bad) == len(losses):
      name, value = next(iter(bad.items()))
      self._stop(f"{name} is {value}", self._written, step)
    diverged = {member_of(name) for name in bad}
    values = {name: value for name, value in values.items() if member_of(name) not in diverged}
    now = time.perf_counter()
    n_units = (step - self._written) * self._loop.units_per_step
    rate = n_units / (now - self._clock)
    self._clock, self._written = now, step
    self._log.write(step, {**values, f"{self._loop.unit}_per_second": rate})
    self._bar.set_postfix({name: f"{value:.4g}" for name, value in list(values.items())[:4]},
                          refresh=False)
    self._bar.update(n_units)
