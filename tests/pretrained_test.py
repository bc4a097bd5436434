"""Pretrained transformers: against NumPy by hand, on meshes, cut off after a layer, looped, edited and sampled."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pretrained_models
import pretrained_numpy
import pytest
from jax.sharding import PartitionSpec as P
from pretrained_models import BERT, CONFIGS, LLAMA
from safetensors.numpy import save_file

from monojax import mesh as meshes
from monojax.subjects.pretrained.model import param_shapes
from monojax.subjects.pretrained.weights import layers_for, load_params, open_weights
from monojax.subjects.sample import sample
from monojax.subjects.subject import LoadedSubject

T = 24
KINDS = ["gpt2", "neox", "llama", "qwen3", "gemma2", "gemma3", "bert"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """name of `CONFIGS` -> (folder, tensors, model, parameters), each made once."""
  @functools.cache
  def of(name):
    folder = tmp_path_factory.mktemp("models") / name.replace(" ", "_")
    tensors = pretrained_models.write(folder, CONFIGS[name])
    return (str(folder), tensors, *load_params(open_weights(str(folder)), jnp.float32))
  return of


@functools.cache
def forward(model, wanted=None):
  return jax.jit(functools.partial(model.apply, wanted=wanted))


def tokens(n_contexts=2, n_positions=T, seed=1):
  return np.random.default_rng(seed).integers(1, 96, (n_contexts, n_positions)).astype(np.int32)


def close(a, b, what=""):
  np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, np.abs(b).max()), rtol=0, err_msg=what)


# Formulas.

@pytest.mark.parametrize("name", ["llama", "llama3 scaling, old keys", "gemma2", "bert"])
def test_outputs_and_every_site_equal_numpy(made, name):
  _, tensors, model, params = made(name)
  tokens_BT = tokens(1)
  reference = pretrained_numpy.decoder
  if name == "bert":
    tokens_BT[0, 17:] = 0
    reference = pretrained_numpy.bert
  expected, expected_sites = reference(tensors, CONFIGS[name], tokens_BT[0])
  got, sites = forward(model)({"params": params}, tokens_BT)
  close(got[0], expected)
  assert set(sites) == set(expected_sites) == set(model.site_widths)
  for site, value in expected_sites.items():
    assert sites[site].shape == (1, T, model.site_widths[site])
    close(sites[site][0], value, site)


def in_a_wrapper(config, tensors):
  """As in the folders of Gemma 3's models that also see."""
  wrapped = {name.replace("model.", "language_model.model.", 1): value for name, value in tensors.items()}
  return ({"model_type": "gemma3", "text_config": config, "vision_config": {"hidden_size": 8}},
          {**wrapped, "vision_tower.embeddings.weight": np.zeros((3, 3), np.float32)})


def with_new_keys(config, tensors):
  kept = {key: value for key, value in config.items() if key not in ("rotary_pct", "rotary_emb_base")}
  rope = {"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.25}
  return {**kept, "rope_parameters": rope}, tensors


def with_old_names(config, tensors):
  old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
  renamed = {}
  for name, value in tensors.items():
    end = next((end for end in old if name.endswith(end)), None)
    renamed[name.removesuffix(end) + old[end] if end else name] = value
  return config, renamed


def with_buffers(config, tensors):
  """With what older versions of transformers saved besides."""
  at = {"gpt2": "transformer.h.0.attn.", "gpt_neox": "gpt_neox.layers.0.attention."}[config["model_type"]]
  buffers = {at + "bias": np.ones((1, 1, 8, 8), np.float32), at + "masked_bias": np.zeros((), np.float32)}
  if config["model_type"] == "gpt_neox":
    buffers[at + "rotary_emb.inv_freq"] = np.zeros(2, np.float32)
  return config, {**tensors, **buffers}


@pytest.mark.parametrize("name, form", [("gemma3", in_a_wrapper), ("neox", with_new_keys), ("bert", with_old_names),
                                        ("gpt2", with_buffers), ("neox", with_buffers)])
def test_the_same_model_in_another_form(made, name, form, tmp_path):
  _, tensors, model, params = made(name)
  config, changed = form(CONFIGS[name], tensors)
  save_file(changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
  (tmp_path / "config.json").write_text(json.dumps(config))
  other, other_params = load_params(open_weights(str(tmp_path)), np.float32)
  assert other == model
  jax.tree.map(np.testing.assert_array_equal, other_params, params)


# Meshes.

def wide_heads(name):
  """A configuration with heads that divide over four devices, and one whose heads do not: these stay whole."""
  return {"llama": dict(LLAMA, num_attention_heads=8, num_key_value_heads=4, head_dim=8), "odd": LLAMA,
          "gemma3": dict(CONFIGS["gemma3"], num_key_value_heads=4, num_hidden_layers=2), "gpt2": CONFIGS["gpt2"],
          "bert": BERT}[name]


@pytest.mark.parametrize("name, model_axis", [("llama", 2), ("llama", 4), ("odd", 4), ("gemma3", 4), ("gpt2", 2),
                                              ("bert", 4)])
def test_a_mesh_of_eight_devices_gives_what_one_gives(tmp_path, name, model_axis):
  config = wide_heads(name)
  pretrained_models.write(tmp_path, config)
  weights = open_weights(str(tmp_path))
  model, params = load_params(weights, jnp.float32)
  mesh = meshes.make_mesh(meshes.MeshConfig(data=2, model=model_axis))
  other, split = load_params(weights, jnp.float32, mesh)
  assert other == model
  jax.tree.map(np.testing.assert_array_equal, split, params)
  layers = split["layers"]
  assert layers["W_in_JMD"].addressable_shards[0].data.nbytes * model_axis == layers["W_in_JMD"].nbytes
  heads = layers["W_qkv_HJAD"]
  assert heads.addressable_shards[0].data.nbytes * (1 if name == "odd" else model_axis) == heads.nbytes
  wanted = ("layer.0.attn.z", f"layer.{model.architecture.n_layers - 1}.mlp.hidden")
  tokens_BT = tokens(4)
  expected, expected_sites = forward(model, wanted)({"params": params}, tokens_BT)
  got, sites = forward(model, wanted)({"params": split}, meshes.on_mesh(tokens_BT, mesh, P("data", None)))
  close(got, expected)
  for site in wanted:
    close(sites[site], expected_sites[site], site)


# Parts of a model.

@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_what_is_loaded_up_to_a_site_gives_the_same_values_there(made, name):
  folder, _, whole, params = made(name)
  weights = open_weights(folder)
  a = weights.architecture
  sites = ("embed", "layer.0.attn.z", "layer.1.mlp.hidden")
  assert (layers_for(a, sites), layers_for(a, ("embed",)), layers_for(a, None)) == (2, 0, a.n_layers)
  assert layers_for(a, ("final.in",)) == a.n_layers
  model, part = load_params(weights, jnp.float32, n_loaded=2)
  n_all, n_part = (meshes.bytes_of(tree) for tree in (params, part))
  assert n_part == meshes.bytes_of(param_shapes(a, 2, jnp.float32)) < n_all
  assert "W_unembed_VD" not in part and len(part["layers"]["W_o_DE"]) == 2
  tokens_BT = tokens()
  expected = forward(whole)({"params": params}, tokens_BT)[1]
  output, got = forward(model, sites)({"params": part}, tokens_BT)
  assert output is None and set(got) == set(sites)
  for site in sites:
    close(got[site], expected[site], site)
  with pytest.raises(ValueError, match="there is no site"):
    model.apply({"params": part}, tokens_BT, wanted=("layer.2.resid",))
  model, part = load_params(weights, jnp.float32, n_loaded=layers_for(a, ("embed",)))  # no layer at all
  assert not any(leaf.size for leaf in jax.tree.leaves(part["layers"]))
  close(forward(model, ("embed",))({"params": part}, tokens_BT)[1]["embed"], expected["embed"])


@pytest.mark.parametrize("name", KINDS)
def test_layers_in_a_loop_give_what_layers_one_by_one_give(made, name):
  _, _, model, params = made(name)
  tokens_BT = tokens()
  expected, all_sites = forward(model)({"params": params}, tokens_BT)
  last = f"layer.{model.architecture.n_layers - 1}.resid"
  for wanted in ((last, "final.in"), *(((), ("layer.1.mlp.hidden",)) if name in ("llama", "gemma3") else ())):
    got, sites = forward(model, wanted)({"params": params}, tokens_BT)
    close(got, expected)
    assert set(sites) == set(wanted)
    for site in wanted:
      close(sites[site], all_sites[site], site)


@pytest.mark.parametrize("name", ["neox", "llama", "gemma2", "bert"])
def test_an_edit_changes_what_comes_after_and_nothing_before(made, name):
  _, _, model, params = made(name)
  names, at, tokens_BT = list(model.site_widths), T // 2, tokens(1)

  @jax.jit
  def edited(which):  # adds to one position of one site
    def add(i, value_BTD):
      bump_D = jnp.where(which == i, jnp.linspace(-1, 1, value_BTD.shape[-1]), 0.0)
      return value_BTD.at[:, at].add(bump_D)
    return model.apply({"params": params}, tokens_BT, {site: functools.partial(add, i) for i, site in enumerate(names)})
  plain, plain_sites = jax.device_get(edited(-1))
  for i, site in enumerate(names):
    got, sites = jax.device_get(edited(i))
    changed = {other: np.abs(sites[other] - plain_sites[other]).max((0, 2)) for other in names}
    assert all(not changed[other].any() for other in names[:i]), site
    np.testing.assert_allclose(sites[site][0, at] - plain_sites[site][0, at],
                               np.linspace(-1, 1, sites[site].shape[-1]), atol=1e-5 * np.abs(sites[site]).max())
    assert not changed[site][:at].any() and not changed[site][at + 1:].any()
    for other in names[i + 1:]:
      beside = name == "neox" and ".attn." in site and ".mlp." in other and site.split(".")[1] == other.split(".")[1]
      assert changed[other][at:].any() != beside, (site, other)
      assert not model.architecture.causal or not changed[other][:at].any(), (site, other)
    assert np.abs(got - plain).max() > 1e-6, site
  if name != "llama":
    return
  site = "layer.1.mlp.out"  # edited alone, with loops before and after
  bump_BTD = np.zeros((1, T, model.site_widths[site]), np.float32)
  bump_BTD[:, at] = np.linspace(-1, 1, bump_BTD.shape[-1])
  alone = jax.jit(lambda: model.apply({"params": params}, tokens_BT, {site: lambda x: x + bump_BTD}, wanted=())[0])()
  close(alone, edited(names.index(site))[0])


# Sampling.

@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_sampling_with_a_cache_writes_what_it_writes_without(made, name):
  _, _, model, params = made(name)
  subject = LoadedSubject(model, params, 64)
  prompt = tokens(1, 19)[0].tolist()

  def edit_of(scale, tokens_BT, start):
    return {"layer.1.resid": lambda x: x * scale}
  more = {"edit_of": edit_of, "given": jnp.float32(1.5)} if name == "llama" else {}
  write = lambda **how: sample(subject, prompt, 30, jax.random.key(3), 0.8, **more, **how)
  written = write()
  assert written == write(use_cache=False)
  assert len(written) == 49 and written[:19] == prompt and len(set(written[19:])) > 5


@pytest.mark.parametrize("name", ["llama dynamic", "llama longrope"])
def test_a_text_that_is_written_within_the_original_context_is_not_scaled_beyond_it(made, name):
  """27 tokens of 32; with a cache there would be room for 48."""
  _, _, model, params = made(name)
  subject = LoadedSubject(model, params, 32)
  prompt = tokens(1, 9)[0].tolist()
  write = lambda **how: sample(subject, prompt, 18, jax.random.key(3), 0.0, **how)
  assert model.depends_on_length and write() == write(use_cache=False)


def test_an_encoder_does_not_see_padding_and_writes_nothing(made):
  _, _, model, params = made("bert")
  tokens_BT = tokens(2, 12)
  padded_BT = np.concatenate([tokens_BT, np.zeros_like(tokens_BT)], axis=1)
  run = forward(model, ("layer.2.resid",))
  (expected, expected_sites), (got, sites) = run({"params": params}, tokens_BT), run({"params": params}, padded_BT)
  close(got, expected)
  close(sites["layer.2.resid"][:, :12], expected_sites["layer.2.resid"])
  np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
  assert model.output == "embedding" and model.new_cache(1, 8) is None and not model.architecture.tied


def test_half_precision_is_near_full_precision(made):
  folder, _, _, params = made("llama")
  model, half = load_params(open_weights(folder), jnp.bfloat16)
  assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(half))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b).astype(jnp.bfloat16)), half, params)
  tokens_BT = tokens()
  expected = forward(dataclasses.replace(model, dtype=jnp.float32))({"params": params}, tokens_BT)[0]
  got = forward(model)({"params": half}, tokens_BT)[0]
  # Rounding the weights alone gives 0.010; the largest of single errors would depend on the order of sums.
  error = np.sqrt(np.square(got - expected).mean() / np.square(expected).mean())
  assert got.dtype == jnp.float32 and 0.005 < error < 0.02


def test_numbers_that_are_changed_on_the_way_reach_the_parameters(made):
  folder, _, _, params = made("llama")
  weights = open_weights(folder)
  double = lambda tensor: dataclasses.replace(tensor, read=lambda *rows: 2 * tensor.read(*rows), read_into=None)
  changed = dataclasses.replace(weights, tensors={name: double(tensor) for name, tensor in weights.tensors.items()})
  assert all(tensor.read_into for tensor in weights.tensors.values())  # otherwise read straight into place
  _, found = load_params(changed, jnp.float32)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * np.asarray(b)), found, params)
