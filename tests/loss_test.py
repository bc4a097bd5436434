"""Cross-entropy and its fused form against NumPy, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from monojax.subjects import loss, spliced
from monojax.subjects.config import TransformerConfig
from monojax.subjects.transformer import Transformer


def numpy_loss(u, W, targets):
  """The mean loss and its gradients in u and W."""
  logits = u @ W
  p = np.exp(logits - logits.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  hot = np.eye(W.shape[1])[targets]
  d = (p - hot) / targets.size
  mean = -np.log((p * hot).sum(-1)).mean()
  return mean, d @ W.T, np.einsum("btd,btv->dv", u, d)


def test_next_token_loss_is_the_negative_log_probability():
  logits = np.random.default_rng(0).normal(size=(2, 3, 5))
  targets = np.array([[0, 1, 2], [3, 4, 0]])
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  expected = [[-np.log(p[i, j, targets[i, j]]) for j in range(3)] for i in range(2)]
  np.testing.assert_allclose(loss.next_token_loss(logits, targets), expected, rtol=1e-5)


@pytest.mark.parametrize("max_logits, n_chunks", [(2 ** 20, 1), (3 * 11 * 5, 3), (1, 13)])
def test_fused_loss_and_gradients(monkeypatch, max_logits, n_chunks):
  monkeypatch.setattr(loss, "MAX_LOGITS", max_logits)
  assert -(-13 // loss.chunk_positions(3, 13, 11)) == n_chunks
  rng = np.random.default_rng(1)
  u, W, targets = rng.normal(size=(3, 13, 8)), rng.normal(size=(8, 11)), rng.integers(0, 11, (3, 13))
  expected, du, dW = numpy_loss(u, W, targets)
  args = jnp.asarray(u, jnp.float32), jnp.asarray(W, jnp.float32)
  halved = lambda u, W: loss.unembed_loss(u, W, jnp.asarray(targets), jnp.float32) / 2
  value, gradients = jax.jit(jax.value_and_grad(halved, (0, 1)))(*args)
  np.testing.assert_allclose(value, expected / 2, rtol=1e-6)
  np.testing.assert_allclose(gradients[0], du / 2, atol=1e-7)
  np.testing.assert_allclose(gradients[1], dW / 2, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 4, 1000])
def test_scores_by_position_are_those_of_whole_logits(monkeypatch, rows):
  """Chunks of one position, of two of which the last is filled up, and all positions at once; against NumPy."""
  monkeypatch.setattr(spliced, "_CACHED_LOGITS", 0)
  monkeypatch.setattr(spliced, "_CHUNK_ROWS", rows)
  model = Transformer(TransformerConfig(d_model=8, n_heads=2, d_mlp=16, vocab_size=11))
  rng = np.random.default_rng(2)
  params = model.init(jax.random.key(0), np.zeros((1, 3), np.int32))["params"]
  last = {name: rng.normal(size=(2, 5, 8)).astype(np.float32) for name in ("clean", "changed")}
  targets_BT = rng.integers(0, 11, (2, 5))
  found = jax.jit(lambda last: spliced.scores_by_position(model, params, last, targets_BT))(last)
  W = np.asarray(params["W_unembed_DV"], np.float64)
  log_p, log_q = (u @ W - np.log(np.exp(u @ W).sum(-1, keepdims=True)) for u in last.values())
  target = lambda of: np.take_along_axis(of, targets_BT[..., None], -1)[..., 0]
  assert set(found) == {"ce/clean", "ce/changed", "kl/changed"}
  np.testing.assert_allclose(found["ce/clean"], -target(log_p), atol=1e-5)
  np.testing.assert_allclose(found["ce/changed"], -target(log_q), atol=1e-5)
  np.testing.assert_allclose(found["kl/changed"], (np.exp(log_p) * (log_p - log_q)).sum(-1), atol=1e-5)
  alone = spliced.scores_by_position(model, params, {"changed": last["changed"]}, targets_BT)
  np.testing.assert_allclose(alone["ce/changed"], found["ce/changed"], atol=1e-6)
  assert set(alone) == {"ce/changed"}
