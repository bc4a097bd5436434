"""The subject against a NumPy forward pass written from the definition, position by position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from monojax import mesh as meshes
from monojax.subjects import loss, train
from monojax.subjects.config import SubjectConfig, TransformerConfig
from monojax.subjects.loss import next_token_loss
from monojax.subjects.sample import sample
from monojax.subjects.subject import LoadedSubject
from monojax.subjects.transformer import Transformer

CONFIG = TransformerConfig(n_layers=2, d_model=16, n_heads=2, d_mlp=24, vocab_size=32)


@pytest.fixture(scope="module")
def subject():
  model = Transformer(CONFIG)
  params = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
  noise = iter(jax.random.split(jax.random.key(1), 100))  # so that gains and biases are not 1 and 0
  params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(noise), x.shape), params)
  return model, params


def numpy_norm(x, gain, bias):
  return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * gain + bias


def numpy_rotate(x, position):
  half = len(x) // 2
  angle = position * 10_000.0 ** (-2 * np.arange(half) / len(x))
  pairs = (x[:half] + 1j * x[half:]) * np.exp(1j * angle)
  return np.concatenate([pairs.real, pairs.imag])


def numpy_forward(params, tokens):
  """Logits and sites of one context, in float64, one position and one head at a time."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  x = np.stack([p["W_embed_VD"][token] for token in tokens])
  sites = {"embed": x.copy()}
  for layer in range(CONFIG.n_layers):
    b = p[f"layer_{layer}"]
    u = np.stack([numpy_norm(row, b["gain_attn_D"], b["bias_attn_D"]) for row in x])
    sites[f"layer.{layer}.attn.in"] = u
    q, k, v = np.split(u @ b["W_qkv_DE"], 3, axis=1)
    width = CONFIG.d_model // CONFIG.n_heads
    mixed = np.zeros_like(u)
    for head in range(CONFIG.n_heads):
      part = slice(head * width, (head + 1) * width)
      for t in range(len(tokens)):
        query = numpy_rotate(q[t, part], t)
        scores = np.array([query @ numpy_rotate(k[s, part], s) / np.sqrt(width) for s in range(t + 1)])
        weights = np.exp(scores - scores.max())
        mixed[t, part] = weights / weights.sum() @ v[:t + 1, part]
    sites |= {f"layer.{layer}.attn.z": mixed, f"layer.{layer}.attn.out": mixed @ b["W_o_ED"]}
    x = x + sites[f"layer.{layer}.attn.out"]
    u = np.stack([numpy_norm(row, b["gain_mlp_D"], b["bias_mlp_D"]) for row in x])
    hidden = np.maximum(u @ b["W_in_DM"] + b["b_in_M"], 0)
    out = hidden @ b["W_out_MD"] + b["b_out_D"]
    x = x + out
    sites |= {f"layer.{layer}.mlp.in": u, f"layer.{layer}.mlp.hidden": hidden,
              f"layer.{layer}.mlp.out": out, f"layer.{layer}.resid": x.copy()}
  sites["final.in"] = np.stack([numpy_norm(row, p["gain_D"], p["bias_D"]) for row in x])
  return sites["final.in"] @ p["W_unembed_DV"], sites


def test_logits_and_every_site_agree_with_numpy(subject):
  model, params = subject
  tokens_BT = np.random.default_rng(0).integers(0, 32, (3, 12))
  logits_BTV, sites = jax.jit(lambda p, t: model.apply({"params": p}, t))(params, tokens_BT)
  for i, tokens in enumerate(tokens_BT):
    expected_logits, expected = numpy_forward(params, tokens)
    np.testing.assert_allclose(logits_BTV[i], expected_logits, atol=1e-4)
    assert set(sites) == set(expected)
    for name, value in expected.items():
      np.testing.assert_allclose(sites[name][i], value, atol=1e-4, err_msg=name)


def test_no_position_sees_its_future(subject):
  model, params = subject
  tokens_BT = np.arange(12)[None] % 32

  def logits_of(embed_BTD):
    edit = {"embed": lambda x: embed_BTD}
    return model.apply({"params": params}, tokens_BT, edit)[0][0].sum(-1)

  embed_BTD = params["W_embed_VD"][tokens_BT]
  sensitivity_TS = np.abs(jax.jacobian(logits_of)(embed_BTD)[:, 0]).sum(-1)
  assert np.all(np.triu(sensitivity_TS, 1) == 0)
  assert np.all(np.diag(sensitivity_TS) > 0) and sensitivity_TS[5, 2] > 0


def test_edit_changes_what_follows_and_unknown_sites_are_named(subject):
  model, params = subject
  tokens_BT = np.zeros((1, 4), np.int32)
  site = "layer.0.mlp.hidden"
  clean, sites = model.apply({"params": params}, tokens_BT)
  same, _ = model.apply({"params": params}, tokens_BT, {site: lambda x: sites[site]})
  zero, edited = model.apply({"params": params}, tokens_BT, {site: jnp.zeros_like})
  np.testing.assert_array_equal(same, clean)
  assert np.all(edited[site] == 0) and np.abs(zero - clean).max() > 1e-3
  with pytest.raises(ValueError, match="layer.9.*sites are.*layer.0.mlp.hidden"):
    model.apply({"params": params}, tokens_BT, {"layer.9": lambda x: x})


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_sharded_training_equals_unsharded(monkeypatch, optimizer):
  monkeypatch.setattr(loss, "MAX_LOGITS", 8 * 32 * 5)  # three chunks of positions
  config = SubjectConfig(model=CONFIG, n_context=12, n_steps=10, warmup_steps=2, optimizer=optimizer)
  tokens_SBU = np.random.default_rng(0).integers(0, 32, (3, 8, 13)).astype(np.int32)
  losses, params = [], []
  for data, width in ((1, 1), (4, 1), (2, 4), (1, 8)):
    mesh = meshes.make_mesh(meshes.MeshConfig(data, width))
    init, step = train.make_step(Transformer(CONFIG), train.make_optimizer(config), mesh)
    state, values = step(init(jax.random.key(0)), tokens_SBU)
    losses.append(float(values["loss"]))
    params.append(jax.device_get(state.params))
  np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
  for other in params[1:]:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), params[0], other)


def numpy_orthogonalised(g_IO):
  """Five steps of the Newton-Schulz iteration of Muon, from its publication's polynomial."""
  x = g_IO / np.linalg.norm(g_IO)
  if len(x) > x.shape[1]:
    return numpy_orthogonalised(g_IO.T).T
  for _ in range(5):
    a = x @ x.T
    x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
  return x


def test_muon_moves_the_matrices_of_layers_and_adamw_all_else(subject):
  model, params = subject
  settings = dict(model=CONFIG, n_context=12, n_steps=10, warmup_steps=0, learning_rate=0.02, clip_norm=0.5)
  tokens_BU = np.random.default_rng(0).integers(0, 32, (8, 13)).astype(np.int32)
  gradients = jax.jit(jax.grad(model.training_loss))(params, tokens_BU)
  updates = {}
  for optimizer in ("adamw", "muon"):
    tx = train.make_optimizer(SubjectConfig(**settings, optimizer=optimizer))
    updates[optimizer], _ = tx.update(gradients, tx.init(params), params)
  moved = set()
  for layer in ("layer_0", "layer_1"):
    for name, W in params[layer].items():
      if W.ndim == 2:
        moved.add(name)
        step = 0.2 * np.sqrt(max(W.shape)) * numpy_orthogonalised(np.asarray(gradients[layer][name], np.float64))
        np.testing.assert_allclose(updates["muon"][layer][name], -0.02 * (step + 0.1 * W), atol=2e-5)
        updates["adamw"][layer][name] = updates["muon"][layer][name]
  assert moved == {"W_qkv_DE", "W_o_ED", "W_in_DM", "W_out_MD"}
  jax.tree.map(np.testing.assert_array_equal, updates["muon"], updates["adamw"])


def test_training_learns_a_copied_sequence():
  """Each second half repeats the first: only attention can predict it."""
  config = SubjectConfig(model=CONFIG, n_context=12, n_steps=400, learning_rate=1e-2, warmup_steps=20)
  init, step = train.make_step(Transformer(CONFIG), train.make_optimizer(config), meshes.make_mesh())
  rng = np.random.default_rng(0)
  half = rng.integers(0, 32, (400, 32, 6)).astype(np.int32)
  state, _ = step(init(jax.random.key(0)), np.concatenate([half, half, half[:, :, :1]], 2))
  test = rng.integers(0, 32, (64, 6))
  tokens_BU = np.concatenate([test, test, test[:, :1]], 1)
  logits_BTV, _ = Transformer(CONFIG).apply({"params": state.params}, tokens_BU[:, :-1])
  loss_BT = np.asarray(next_token_loss(logits_BTV, tokens_BU[:, 1:]))
  assert loss_BT[:, 7:].mean() < 1.0 < np.log(32) - 0.1 < loss_BT[:, :5].mean()


def test_sample_continues_its_prompt(subject):
  subject = LoadedSubject(*subject, 12)
  ids = sample(subject, [3, 4], 6, jax.random.key(0))
  assert ids[:2] == [3, 4] and len(ids) == 8 and all(0 <= i < 32 for i in ids)
  assert ids != sample(subject, [3, 4], 6, jax.random.key(1))


def test_what_a_site_adds_to_the_residual_stream_directly(subject):
  """With what lies behind the site taken out, a change of it reaches the last residual stream by `to_residual_MD`."""
  model, params = subject
  tokens_BT = np.arange(6).reshape(1, 6)
  resid = lambda params, edit: np.asarray(model.apply({"params": params}, tokens_BT, edit)[1]["layer.1.resid"])
  for site, width in model.site_widths.items():
    path = model.logit_path(params, site)
    if path is None or not site.startswith("layer.0."):
      continue
    kind = site.removeprefix("layer.0.")
    zeroed = [("layer_1", "W_o_ED"), ("layer_1", "W_out_MD"), *([("layer_0", "W_out_MD")] if "attn" in kind else [])]
    quiet = {name: dict(leaf) if isinstance(leaf, dict) else leaf for name, leaf in params.items()}
    for layer, name in zeroed:
      quiet[layer][name] = jnp.zeros_like(params[layer][name])
    change_M = np.random.default_rng(0).normal(size=width).astype(np.float32)
    added = resid(quiet, {site: lambda x, change_M=change_M: x + change_M[None, None]}) - resid(quiet, {})
    expected_D = change_M if path.to_residual_MD is None else change_M @ np.asarray(path.to_residual_MD)
    np.testing.assert_allclose(added, np.broadcast_to(expected_D, added.shape), atol=1e-5, err_msg=site)
