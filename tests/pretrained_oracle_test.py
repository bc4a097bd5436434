"""Every family of pretrained transformers against `transformers` and torch (extra `oracle`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pretrained_models
import pytest

from monojax.subjects.pretrained.weights import load_params, open_weights
from monojax.subjects.sample import sample
from monojax.subjects.subject import LoadedSubject

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow
T = 48


def theirs(folder, config):
  """(model of transformers, {monojax's site: module whose output or input it is})."""
  cls = transformers.AutoModel if config["model_type"] == "bert" else transformers.AutoModelForCausalLM
  model = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
  base = model if config["model_type"] == "bert" else model.base_model
  layers = base.encoder.layer if config["model_type"] == "bert" else getattr(base, "layers", getattr(base, "h", None))
  places = {}
  for i, layer in enumerate(layers):
    kind = config["model_type"]
    z, hidden = {"gpt2": lambda: (layer.attn.c_proj, layer.mlp.c_proj),
                 "gpt_neox": lambda: (layer.attention.dense, layer.mlp.dense_4h_to_h),
                 "bert": lambda: (layer.attention.output.dense, layer.output.dense)}.get(
                     kind, lambda: (layer.self_attn.o_proj, layer.mlp.down_proj))()
    places |= {f"layer.{i}.attn.z": (z, "in"), f"layer.{i}.mlp.hidden": (hidden, "in"),
               f"layer.{i}.resid": (layer, "out")}
    if kind.startswith("gemma"):
      places |= {f"layer.{i}.attn.out": (layer.post_attention_layernorm, "out"),
                 f"layer.{i}.attn.out_raw": (layer.self_attn, "out"), f"layer.{i}.mlp.out_raw": (layer.mlp, "out"),
                 f"layer.{i}.mlp.in": (layer.mlp, "in"),
                 f"layer.{i}.mlp.out": (layer.post_feedforward_layernorm, "out")}
    elif kind == "bert":
      places |= {f"layer.{i}.attn.out": (layer.attention.output.dense, "out"),
                 f"layer.{i}.mid": (layer.attention, "out"), f"layer.{i}.mlp.out": (layer.output.dense, "out")}
    else:
      attention = getattr(layer, "self_attn", getattr(layer, "attn", getattr(layer, "attention", None)))
      places |= {f"layer.{i}.attn.out": (attention, "out"), f"layer.{i}.mlp.in": (layer.mlp, "in"),
                 f"layer.{i}.mlp.out": (layer.mlp, "out")}
  return model, places


def hooked(model, places, tokens, **more):
  """(outputs of the model, {site: activation})."""
  found, handles = {}, []
  first = lambda value: value[0] if isinstance(value, tuple) else value
  for site, (module, side) in places.items():
    keep = lambda _, inputs, output, site=site, side=side: found.__setitem__(
        site, first(inputs if side == "in" else output).detach().numpy())
    handles.append(module.register_forward_hook(keep))
  with torch.no_grad():
    output = model(torch.tensor(tokens), **more)
  for handle in handles:
    handle.remove()
  return output, found


@pytest.mark.parametrize("name", pretrained_models.CONFIGS)
def test_logits_and_every_site_equal_transformers(tmp_path, name):
  config = pretrained_models.CONFIGS[name]
  pretrained_models.write(tmp_path, config)
  model, params = load_params(open_weights(str(tmp_path)), jnp.float32)
  tokens_BT = np.random.default_rng(1).integers(1, 96, (2, T)).astype(np.int32)
  reference, places = theirs(tmp_path, config)
  if config["model_type"] == "bert":
    tokens_BT[1, 30:] = 0
    output, expected = hooked(reference, places, tokens_BT, attention_mask=torch.tensor(tokens_BT != 0))
    real = (tokens_BT != 0)[..., None]
    mean = (output.last_hidden_state.numpy() * real).sum(1) / real.sum(1)
    top = mean / np.linalg.norm(mean, axis=1, keepdims=True)
  else:
    output, expected = hooked(reference, places, tokens_BT, use_cache=False)
    top = output.logits.numpy()
  got, sites = jax.jit(model.apply)({"params": params}, tokens_BT)
  np.testing.assert_allclose(got, top, atol=1e-5, rtol=0)
  for site, value in expected.items():
    np.testing.assert_allclose(np.asarray(sites[site]).reshape(value.shape)[:1], value[:1],
                               atol=1e-5 * max(1, np.abs(value).max()), rtol=0, err_msg=site)
  print(f"\n{name}: {np.abs(np.asarray(got) - top).max():.1e} of {np.abs(top).max():.1f}, "
        f"{len(expected)} sites", end="")


CAUSAL = [name for name, config in pretrained_models.CONFIGS.items() if config["model_type"] != "bert"]


@pytest.mark.parametrize("name", CAUSAL)
def test_greedy_continuation_equals_transformers_with_and_without_cache(tmp_path, name):
  config = pretrained_models.CONFIGS[name]
  if "dynamic" in name or "longrope" in name:
    pytest.skip("transformers changes the frequencies while it generates; here they are those of the whole length")
  pretrained_models.write(tmp_path, config)
  model, params = load_params(open_weights(str(tmp_path)), jnp.float32)
  reference = theirs(tmp_path, config)[0]
  prompt = np.random.default_rng(2).integers(1, 96, 9)
  with torch.no_grad():
    expected = reference.generate(torch.tensor(prompt)[None], max_new_tokens=64, do_sample=False, eos_token_id=None,
                                  pad_token_id=0)[0].tolist()
  subject = LoadedSubject(model, params, 128)
  greedy = lambda **more: sample(subject, prompt.tolist(), 64, jax.random.key(0), 0.0, **more)
  assert greedy() == expected
  assert greedy(use_cache=False) == expected
