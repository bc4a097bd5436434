"""Models in .gguf files give what the same tensors in a Hugging Face folder give."""

import dataclasses
import json
import re

import jax.numpy as jnp
import numpy as np
import pretrained_models
import pretrained_numpy
import pytest
from pretrained_models import CONFIGS, LLAMA
from safetensors.numpy import save_file

from monojax.config import InputError
from monojax.subjects.pretrained.weights import load_params, open_weights

gguf = pytest.importorskip("gguf")

SCALED = CONFIGS["llama3 scaling, old keys"]
KINDS = {  # name: (architecture, config.json)
    "llama": ("llama", LLAMA), "llama3 scaling": ("llama", SCALED),
    "llama wide heads": ("llama", dict(LLAMA, head_dim=32)),
    "llama biases": ("llama", dict(LLAMA, attention_bias=True)),
    "mistral": ("llama", CONFIGS["mistral"]),
    "qwen2": ("qwen2", CONFIGS["qwen2"]), "qwen3": ("qwen3", CONFIGS["qwen3"]),
    "gemma2": ("gemma2", dict(CONFIGS["gemma2"], query_pre_attn_scalar=32)),
    "gemma3": ("gemma3", dict(CONFIGS["gemma3"], query_pre_attn_scalar=32)),
    "gpt2": ("gpt2", CONFIGS["gpt2"]), "neox": ("gptneox", CONFIGS["neox"]),
    "neox sequential": ("gptneox", CONFIGS["neox sequential"]), "bert": ("bert", CONFIGS["bert"])}


def changed(kind, name, value, config):
  """A tensor as llama.cpp's converter writes it."""
  if kind == "llama" and (found := re.search(r"\.([qk])_proj\.", name)):
    n_heads = config["num_attention_heads" if found[1] == "q" else "num_key_value_heads"]
    heads = [head.reshape(2, -1, *value.shape[1:]).swapaxes(0, 1).reshape(head.shape)
             for head in np.split(value, n_heads)]
    return np.concatenate(heads)
  if kind.startswith("gemma") and name.endswith("norm.weight"):
    return value + 1
  if kind == "gptneox" and "query_key_value" in name:
    heads = np.split(value, config["num_attention_heads"])
    return np.concatenate([np.concatenate([np.split(head, 3)[i] for head in heads]) for i in range(3)])
  if kind == "gpt2" and re.search(r"c_(attn|proj|fc)\.weight", name):
    return value.T
  return value


def write_gguf(path, kind, tensors, config, quantised=None):
  """Writes a file with the names that the package `gguf` has for the tensors, and the keys that llama.cpp writes."""
  writer = gguf.GGUFWriter(str(path), kind)
  get = lambda *names: next((config[name] for name in names if config.get(name) is not None), None)
  n_layers, n_heads, d = (get(*names) for names in (("num_hidden_layers", "n_layer"), ("num_attention_heads", "n_head"),
                                                    ("hidden_size", "n_embd")))
  writer.add_block_count(n_layers)
  writer.add_context_length(get("max_position_embeddings", "n_positions"))
  writer.add_embedding_length(d)
  writer.add_feed_forward_length(get("intermediate_size", "n_inner") or 4 * d)
  writer.add_head_count(n_heads)
  if config.get("rms_norm_eps"):
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta", 10_000.0))
    width = config.get("head_dim") or d // n_heads
    writer.add_key_length(width)
    writer.add_value_length(width)
  else:
    writer.add_layer_norm_eps(get("layer_norm_eps", "layer_norm_epsilon"))
  if config["model_type"] in ("mistral", "gemma2", "gemma3_text"):
    writer.add_sliding_window(config["sliding_window"])
  if kind == "gemma2":
    writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    writer.add_final_logit_softcapping(config["final_logit_softcapping"])
  if kind == "gptneox":
    writer.add_rope_dimension_count(int(config["rotary_pct"] * d / n_heads))
    writer.add_parallel_residual(config["use_parallel_residual"])
  if config.get("rope_scaling"):
    divisors = (pretrained_numpy.angles(d // n_heads, config["rope_theta"])
                / pretrained_numpy.angles(d // n_heads, config["rope_theta"], config["rope_scaling"]))
    writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
  names = gguf.get_tensor_name_map(next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == kind), n_layers)
  for name, value in tensors.items():
    value = np.ascontiguousarray(changed(kind, name, value, config))
    as_type = quantised if quantised and value.ndim == 2 else gguf.GGMLQuantizationType.F32
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert found, name
    writer.add_tensor(found, gguf.quantize(value, as_type), raw_dtype=as_type)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def tokens():
  return np.random.default_rng(1).integers(1, 96, (2, 24)).astype(np.int32)


def output(spec):
  model, params = load_params(open_weights(str(spec)), jnp.float32)
  return np.asarray(model.apply({"params": params}, tokens(), wanted=())[0])


@pytest.mark.parametrize("name", KINDS)
def test_a_file_gives_what_a_folder_gives(tmp_path, name):
  kind, config = KINDS[name]
  tensors = pretrained_models.write(tmp_path / "folder", config)
  write_gguf(tmp_path / "model.gguf", kind, tensors, config)
  found, expected = open_weights(str(tmp_path / "model.gguf")), open_weights(str(tmp_path / "folder"))
  if name != "llama3 scaling":  # whose file has a table instead of the formula
    epsilon = float(np.float32(expected.architecture.norm_epsilon))  # which the file keeps in single precision
    assert found.architecture == dataclasses.replace(expected.architecture, norm_epsilon=epsilon)
  assert found.n_parameters == expected.n_parameters
  np.testing.assert_allclose(output(tmp_path / "model.gguf"), output(tmp_path / "folder"), atol=1e-5, rtol=0)


def test_rows_of_llama_that_are_not_turned_back_would_be_noticed(tmp_path):
  tensors = pretrained_models.write(tmp_path / "folder", LLAMA)
  write_gguf(tmp_path / "model.gguf", "llama", tensors, LLAMA)
  write_gguf(tmp_path / "wrong.gguf", "llama", {name: changed("llama", name, value, LLAMA)
                                                for name, value in tensors.items()}, LLAMA)
  assert np.abs(output(tmp_path / "model.gguf") - output(tmp_path / "wrong.gguf")).max() > 0.1


def rounded(value, kind):
  """A matrix after quantisation in blocks of 32 of a row, each with a half-precision scale d."""
  blocks = value.reshape(-1, 32)
  if kind == "Q8_0":
    d = np.abs(blocks).max(1, keepdims=True) / 127
    q = np.trunc(blocks / d + np.copysign(0.5, blocks))
  else:  # Q4_0: 16 levels, of which the lowest is at the largest of the block
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    d = largest / -8
    q = np.clip(np.trunc(blocks / d + 8.5), 0, 15) - 8
  return (q * d.astype(np.float16).astype(np.float32)).reshape(value.shape)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_quantised_file_gives_what_its_dequantised_tensors_give(tmp_path, kind):
  config = dict(CONFIGS["qwen2"], intermediate_size=96)
  tensors = pretrained_models.write(tmp_path / "folder", config)
  write_gguf(tmp_path / "model.gguf", "qwen2", tensors, config, gguf.GGMLQuantizationType[kind])
  exact = output(tmp_path / "folder")
  save_file({name: rounded(value, kind) if value.ndim == 2 else value for name, value in tensors.items()},
            tmp_path / "folder" / "model.safetensors")
  got = output(tmp_path / "model.gguf")
  np.testing.assert_allclose(got, output(tmp_path / "folder"), atol=1e-5, rtol=0)
  assert np.abs(got - exact).max() > 1e-3


def test_a_damaged_file_is_one_line(tmp_path):
  tensors = pretrained_models.write(tmp_path / "folder", LLAMA)
  path = tmp_path / "model.gguf"
  write_gguf(path, "llama", tensors, LLAMA)
  content = path.read_bytes()
  for damage in (b"", b"GGUF", content[:200], content[:len(content) // 2], content[:-40], b"XXXX" + content[4:],
                 json.dumps({}).encode()):
    path.write_bytes(damage)
    with pytest.raises(InputError, match="damaged or no .gguf file") as caught:
      open_weights(str(path))
    assert "\n" not in str(caught.value)
  path.unlink()
  with pytest.raises(InputError, match="there is no such file"):
    open_weights(str(path))


def test_a_file_of_another_kind_says_which_are_known(tmp_path):
  writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "mamba")
  writer.add_block_count(1)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()
  with pytest.raises(InputError, match="of the architecture 'mamba', which is not supported: known in .gguf files are"):
    open_weights(str(tmp_path / "model.gguf"))
