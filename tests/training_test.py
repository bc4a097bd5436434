"""The training loop: exact resume, restoring on other meshes, and stopping at numbers that are not finite."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from monojax import checkpoint, mesh
from monojax.config import InputError
from monojax.metrics import MetricsConfig, MetricsLog
from monojax.sae.config import SAEConfig
from monojax.sae.model import Wiring
from monojax.sae.train import train_sae
from monojax.training import Loop, TrainState, train

M = 8


class Rows:
  """A source: exponential rows, a pure function of the step; optionally fails at one."""

  def __init__(self, fail_at=None, poison_at=None):
    self.fail_at, self.poison_at, self.asked = fail_at, poison_at, []

  def batch(self, step):
    self.asked.append(step)
    if step == self.fail_at:
      raise KeyboardInterrupt
    x_BM = np.random.default_rng(step).exponential(size=(32, M)).astype(np.float32)
    return x_BM * (np.nan if step == self.poison_at else 1)

  def sample(self, n_rows, seed):
    return np.random.default_rng(seed).exponential(size=(n_rows, M)).astype(np.float32)


CONFIG = SAEConfig(n_features=24, batch_rows=32, n_steps=37, scan_steps=4, checkpoint_every_steps=10,
                   resample_every_steps=9, resample_rows=64, dead_window_steps=2, sparsity_coefficient=0.3,
                   learning_rate=0.02, start_rows=64)


def fit(directory, source, shape=(1, 1), config=CONFIG):
  return train_sae(config, source, Wiring((M,)), directory, {"identity": "x"},
                   mesh.make_mesh(mesh.MeshConfig(*shape)), MetricsConfig())


def lines(directory):
  found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
  return [{k: v for k, v in line.items() if k != "rows_per_second"} for line in found]


@pytest.mark.parametrize("fail_at", [3, 11, 20, 36])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, fail_at):
  _, expected = fit(tmp_path / "whole", Rows())
  with pytest.raises(KeyboardInterrupt):
    fit(tmp_path / "cut", Rows(fail_at))
  resumed = Rows()
  _, found = fit(tmp_path / "cut", resumed)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(expected), jax.device_get(found))
  assert min(resumed.asked) >= fail_at // 10 * 10, "finished steps were done again"
  assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
  assert sum("resampled" in line for line in lines(tmp_path / "cut")) == 4
  assert sum(line.get("resampled", 0) for line in lines(tmp_path / "cut")) > 0


def test_a_batch_that_does_not_divide_over_the_devices_is_named():
  odd = mesh.make_mesh(mesh.MeshConfig(data=3))
  with pytest.raises(InputError, match="mesh.data=3: a batch of 16 does not divide"):
    mesh.on_mesh(np.zeros((2, 16, 5)), odd, jax.P(None, "data", None))
  assert mesh.on_mesh(np.zeros((2, 15, 5)), odd, jax.P(None, "data", None)).shape == (2, 15, 5)


def test_a_checkpoint_restores_on_another_mesh(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    fit(tmp_path, Rows(25), (2, 4))
  _, found = fit(tmp_path, Rows(), (4, 2))
  _, expected = fit(tmp_path / "whole", Rows())
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), jax.device_get(expected),
               jax.device_get(found))


def test_parameters_load_alone_as_numpy(tmp_path):
  _, expected = fit(tmp_path, Rows())
  training, config, step = checkpoint.load_params(tmp_path / "checkpoints")
  assert step == 37 and config["identity"] == "x" and config["sae"]["n_features"] == 24
  params, beside, _ = checkpoint.load_params(tmp_path / "dictionary")
  assert beside == config and set(params) == set(training)
  assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves((params, training)))
  jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(expected))


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(tmp_path):
  with pytest.raises(FloatingPointError, match=r"sae: \w+ is nan in the steps up to 24"):
    fit(tmp_path, Rows(poison_at=22))
  params, _, step = checkpoint.load_params(tmp_path / "checkpoints")
  assert step == 20 and all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))


def run_steps(directory, metrics_at, weight_at=lambda step: 0.0, batches=lambda a, b: jnp.zeros(b - a), **loop):
  """Trains a made-up model, 2 of 12 steps a call, a checkpoint every 4; metrics and weight depend on the step."""
  def step(state, _):
    with jax.transfer_guard("allow"):
      done = int(state.step) + 2
      return TrainState(jnp.int32(done), {"w": jnp.full(3, weight_at(done))}, (), {}), metrics_at(done)
  state = TrainState(jnp.int32(0), {"w": jnp.zeros(3)}, (), {})
  train(state, step, batches, Loop(directory, {}, 12, 2, 4, (), "rows", 1, "toy", **loop), MetricsConfig())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_diagnostic_that_is_not_finite_is_null_and_training_goes_on(tmp_path, value):
  run_steps(tmp_path, lambda step: {"loss": 1.0, "explained_variance": value if step != 6 else 0.5})
  assert [(line["loss"], line["explained_variance"]) for line in lines(tmp_path)] == [
      (1.0, 0.5 if line["step"] == 6 else None) for line in lines(tmp_path)]
  assert len(lines(tmp_path)) == 6


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at, kept", [(2, "no checkpoint was written"), (8, "the checkpoint of step 4 is kept in")])
def test_the_message_of_a_loss_that_is_not_finite_is_true(tmp_path, value, at, kept):
  metrics_at = lambda step: {"accuracy": value, "loss": value if step == at else 1.0}
  message = f"toy: loss is {value} in the steps up to {at}: training stopped, {kept}.*; a lower learning rate usually"
  with pytest.raises(FloatingPointError, match=message):
    run_steps(tmp_path / "rate", metrics_at)
  with pytest.raises(FloatingPointError, match=f"{kept}.*the data of these steps holds numbers that are not finite"):
    run_steps(tmp_path / "data", metrics_at, batches=lambda a, b: jnp.array([np.nan if a < at <= b else 1.0]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, value):
  with pytest.raises(FloatingPointError, match="toy: weights are not finite in the steps up to 8: .*of step 4 is kept"):
    run_steps(tmp_path, lambda step: {"loss": 1.0}, lambda step: value if step >= 6 else 7.0)
  params, _, step = checkpoint.load_params(tmp_path / "checkpoints")
  assert step == 4 and np.all(params["w"] == 7)


def test_one_of_several_that_do_not_depend_on_each_other_may_diverge(tmp_path):
  finite = lambda state: jnp.isfinite(state.params["w"])  # as if each weight were another member's
  metrics_at = lambda step: {"a/loss": np.nan if step > 4 else 1.0, "a/mse": 1.0, "b/loss": 2.0, "b/mse": np.nan}
  run_steps(tmp_path, metrics_at, finite=finite)
  assert [sorted(set(line) - {"step"}) for line in lines(tmp_path)][1:3] == [
      ["a/loss", "a/mse", "b/loss", "b/mse"], ["b/loss", "b/mse"]]
  with pytest.raises(FloatingPointError, match="toy: weights"):
    run_steps(tmp_path / "all", metrics_at, lambda step: np.nan, finite=finite)


def test_cuts_are_a_function_of_the_settings():
  loop = Loop(None, {}, 37, 4, 10, (9, 18), "rows", 1, "x")
  cuts = [0]
  while cuts[-1] < 37:
    cuts.append(loop.next_cut(cuts[-1]))
  assert cuts == [0, 4, 8, 9, 10, 12, 16, 18, 20, 24, 28, 30, 32, 36, 37]


def test_asynchronous_saves_hold_the_state_of_their_step(tmp_path):
  """Later donated steps must not reach into a checkpoint that is still being written."""
  step = jax.jit(lambda state, _: (jax.tree.map(lambda x: x + 1, state), {"loss": jnp.zeros(())}),
                 donate_argnums=0)
  state = TrainState(jnp.zeros((), jnp.int32), {"w": jnp.zeros((512, 2048))}, (), {})
  train(state, step, lambda a, b: jnp.zeros(b - a), Loop(tmp_path, {}, 50, 1, 7, (), "rows", 1, "x"),
        MetricsConfig())
  params, _, done = checkpoint.load_params(tmp_path / "checkpoints")
  assert done == 50 and np.all(params["w"] == 50)
  kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
  assert kept == [49, 50]


def test_metrics_drop_what_a_resumed_run_will_write_again(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
  log = MetricsLog(path, MetricsConfig(), 2)
  log.write(2, {"loss": 1.5})
  log.close()
  assert [json.loads(line) for line in path.read_text().splitlines()] == [
      {"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.5}]


def test_metrics_reach_tensorboard(tmp_path):
  from tensorboardX.proto.event_pb2 import Event
  log = MetricsLog(tmp_path / "metrics.jsonl", MetricsConfig(tensorboard=True), 1, {"k": 7})
  for step in range(1, 4):
    log.write(step, {"loss": 1.0 / step})
  log.close()
  (path,) = (tmp_path / "tensorboard").iterdir()
  data, seen = path.read_bytes(), {}
  while data:  # records: length (8 bytes), its checksum (4), the event, its checksum (4)
    length = int.from_bytes(data[:8], "little")
    event = Event.FromString(data[12:12 + length])
    for value in event.summary.value:
      text = b"".join(value.tensor.string_val)
      seen[event.step] = (value.tag, json.loads(text.strip(b"`")) if text else round(value.simple_value, 4))
    data = data[16 + length:]
  assert seen == {0: ("config/text_summary", {"k": 7}), 1: ("loss", 1.0), 2: ("loss", 0.5), 3: ("loss", 0.3333)}
