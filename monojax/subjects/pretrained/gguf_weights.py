"""Reading .gguf files: their metadata as a config.json, and their tensors under the names of Hugging Face.

A .gguf file holds a model with its tokenizer, mostly quantised. The package `gguf` reads it and dequantises its
tensors; this module knows what the names mean, and what was changed when the file was made: rows of queries and keys
are permuted in files of Llama, the norms of Gemma are stored as 1 + weight, and the fused queries, keys and values of
GPT-NeoX are regrouped.
"""

import functools
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from monojax.config import InputError
from monojax.subjects.pretrained.weights import StoredTensor, identity_of

_GATED = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head", "attn_norm": "input_layernorm",
          "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
          "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
          "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "attn_q_norm": "self_attn.q_norm",
          "attn_k_norm": "self_attn.k_norm"}
_GEMMA = {**_GATED, "ffn_norm": "pre_feedforward_layernorm", "post_attention_norm": "post_attention_layernorm",
          "post_ffw_norm": "post_feedforward_layernorm"}
_GPT2 = {"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f", "output": "lm_head", "attn_norm": "ln_1",
         "ffn_norm": "ln_2", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_up": "mlp.c_fc",
         "ffn_down": "mlp.c_proj"}
_NEOX = {"token_embd": "embed_in", "output_norm": "final_layer_norm", "output": "embed_out",
         "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
         "attn_qkv": "attention.query_key_value", "attn_output": "attention.dense", "ffn_up": "mlp.dense_h_to_4h",
         "ffn_down": "mlp.dense_4h_to_h"}
_BERT = {"token_embd": "embeddings.word_embeddings", "position_embd": "embeddings.position_embeddings",
         "token_types": "embeddings.token_type_embeddings", "token_embd_norm": "embeddings.LayerNorm",
         "attn_q": "attention.self.query", "attn_k": "attention.self.key", "attn_v": "attention.self.value",
         "attn_output": "attention.output.dense", "attn_output_norm": "attention.output.LayerNorm",
         "ffn_up": "intermediate.dense", "ffn_down": "output.dense", "layer_output_norm": "output.LayerNorm"}
# general.architecture: (model_type, names of tensors, how a layer's are named)
_KINDS = {"llama": ("llama", _GATED, "layers.{i}"), "qwen2": ("qwen2", _GATED, "layers.{i}"),
          "qwen3": ("qwen3", _GATED, "layers.{i}"), "gemma2": ("gemma2", _GEMMA, "layers.{i}"),
          "gemma3": ("gemma3_text", _GEMMA, "layers.{i}"), "gpt2": ("gpt2", _GPT2, "h.{i}"),
          "gptneox": ("gpt_neox", _NEOX, "layers.{i}"), "bert": ("bert", _BERT, "encoder.layer.{i}")}
# Hugging Face keeps these with inputs first, unlike all others; .gguf files have them as all others.
_GPT2_MATRICES = r"(attn_qkv|attn_output|ffn_up|ffn_down)\.weight"


def open_gguf(spec: str, path: pathlib.Path) -> tuple[dict[str, Any], dict[str, StoredTensor], dict[str, Any]]:
  """(config, as a config.json would have it; tensors under Hugging Face's names; what identifies the file).

  Args:
    spec: what the user calls it.
    path: the file.

  Raises:
    InputError: it is damaged, or of an architecture that is not known here.
  """
  reader = _reader(spec, path)
  values = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.ggml.t")
            and name != "tokenizer.ggml.merges"}
  kind = values.get("general.architecture")
  if kind not in _KINDS:
    raise InputError(f"subject.weights={spec!r}: is of the architecture {kind!r}, which is not supported: known in "
                     f".gguf files are {', '.join(_KINDS)}")
  shapes = {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in reader.tensors}
  try:
    config = _config(str(kind), values, shapes)
  except KeyError as error:
    raise InputError(f"subject.weights={spec!r}: lacks {error}, which {kind} needs") from error
  by_name = {tensor.name: tensor for tensor in reader.tensors}
  if divisors := by_name.pop("rope_freqs.weight", None):
    factors = np.asarray(divisors.data, np.float32).tolist()
    config["rope_scaling"] = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "factor": 1.0,
                              "attention_factor": 1.0}
  tensors = {_name(spec, str(kind), name): _stored(spec, str(kind), name, tensor, shapes[name], config)
             for name, tensor in by_name.items()}
  return config, tensors, {"files": {path.name: identity_of(path)}}


def _reader(spec: str, path: pathlib.Path) -> Any:
  try:
    import gguf
  except ImportError as error:
    raise InputError(f"subject.weights={spec!r}: reading .gguf files needs: pip install 'monojax[pretrained]'"
                     ) from error
  try:
    return gguf.GGUFReader(path)
  except Exception as error:  # a damaged file fails in many ways
    raise InputError(f"subject.weights={spec!r}: is damaged or no .gguf file: {error}") from error


def _config(kind: str, values: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
  """The metadata as a config.json of the family would have it."""
  model_type, _, _ = _KINDS[kind]
  get = lambda name, default=None: values.get(f"{kind}.{name}", default)
  need = lambda name: values[f"{kind}.{name}"]
  d, n_heads = need("embedding_length"), need("attention.head_count")
  common = {"model_type": model_type, "vocab_size": shapes["token_embd.weight"][0],
            "tie_word_embeddings": "output.weight" not in shapes}
  if model_type == "gpt2":
    return {**common, "n_layer": need("block_count"), "n_embd": d, "n_head": n_heads,
            "n_inner": need("feed_forward_length"), "n_positions": need("context_length"),
            "layer_norm_epsilon": get("attention.layer_norm_epsilon", 1e-5)}
  common |= {"num_hidden_layers": need("block_count"), "hidden_size": d, "num_attention_heads": n_heads,
             "intermediate_size": need("feed_forward_length"), "max_position_embeddings": need("context_length")}
  if model_type == "bert":
    return {**common, "layer_norm_eps": get("attention.layer_norm_epsilon", 1e-12),
            "type_vocab_size": shapes["token_types.weight"][0]}
  rotary = _rotary(get)
  if model_type == "gpt_neox":
    width = d // n_heads
    return {**common, **rotary, "layer_norm_eps": get("attention.layer_norm_epsilon", 1e-5),
            "rotary_pct": get("rope.dimension_count", width) / width,
            "use_parallel_residual": bool(get("use_parallel_residual", True))}
  head_width = get("attention.key_length") or (get("rope.dimension_count") if kind == "llama" else None)
  common |= {**rotary, "num_key_value_heads": get("attention.head_count_kv", n_heads),
             "rms_norm_eps": get("attention.layer_norm_rms_epsilon", 1e-6), "attention_bias": False,
             **({"head_dim": head_width} if head_width else {})}
  window = get("attention.sliding_window")
  if kind.startswith("gemma"):
    return {**common, **_gemma(kind, get, head_width or d // n_heads), **({"sliding_window": window} if window else {})}
  if kind == "llama" and window:
    return {**common, "model_type": "mistral", "sliding_window": window}
  return {**common, "attention_bias": kind == "llama" and "blk.0.attn_q.bias" in shapes}


def _rotary(get: Callable[..., Any]) -> dict[str, Any]:
  """The base of rotary positions and their scaling, where the file names them."""
  found: dict[str, Any] = {"rope_theta": get("rope.freq_base")} if get("rope.freq_base") else {}
  kind, factor = get("rope.scaling.type"), get("rope.scaling.factor")
  if kind and kind != "none" and factor:
    found["rope_scaling"] = {"rope_type": kind, "factor": factor,
                             "original_max_position_embeddings": get("rope.scaling.original_context_length")}
  return found


def _gemma(kind: str, get: Callable[..., Any], head_width: int) -> dict[str, Any]:
  """What Gemma has besides; the file names neither the score scale nor the pattern of layers.

  The score scale is that of heads as wide as they are, except in the 27B models, whose files are known by their number
  of layers: there it is the width of the stream over the number of heads.
  """
  large = get("block_count") == (46 if kind == "gemma2" else 62)
  scale = get("embedding_length") // get("attention.head_count") if large else head_width
  found: dict[str, Any] = {"query_pre_attn_scalar": scale}
  if kind == "gemma2":
    found |= {"attn_logit_softcapping": get("attn_logit_softcapping", 50.0),
              "final_logit_softcapping": get("final_logit_softcapping", 30.0)}
  else:
    found |= {"rope_local_base_freq": get("rope.freq_base_swa", 10_000.0), "rope_theta": get("rope.freq_base", 1e6),
              "sliding_window_pattern": get("attention.sliding_window_pattern", 6)}
  return found


def _name(spec: str, kind: str, name: str) -> str:
  """A tensor's name under Hugging Face."""
  _, names, layer = _KINDS[kind]
  found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
  if found is None or found[2] not in names:
    raise InputError(f"subject.weights={spec!r}: has the tensor {name!r}, which is not known of {kind}")
  return ".".join(([layer.format(i=found[1])] if found[1] else []) + [names[found[2]], found[3]])


def _stored(spec: str, kind: str, name: str, tensor: Any, shape: tuple[int, ...], config: dict) -> StoredTensor:
  change = _change(kind, name, config)
  turned = kind == "gpt2" and re.search(_GPT2_MATRICES, name)

  def read(start: int, stop: int) -> np.ndarray:
    from gguf.quants import dequantize
    found = dequantize(tensor.data, tensor.tensor_type)
    return change(np.asarray(found, np.float32).reshape(shape))[start:stop]
  return StoredTensor(shape[::-1] if turned else shape, read, by_rows=False, fault=_fault(tensor))


def _fault(tensor: Any) -> str:
  """Why a tensor cannot be read; "" where it can, by its first row."""
  from gguf.quants import dequantize
  try:
    dequantize(tensor.data[:1], tensor.tensor_type)
  except (NotImplementedError, KeyError):
    return (f"is of the type {tensor.tensor_type.name}, which the package gguf does not dequantise: give a file of "
            "another type")
  return ""


def _change(kind: str, name: str, config: dict) -> Callable[[np.ndarray], np.ndarray]:
  """Undoes what was done to a tensor when the file was made."""
  if kind == "llama" and re.search(r"attn_[qk]\.", name):
    heads = config["num_attention_heads"] if "attn_q" in name else config["num_key_value_heads"]
    return functools.partial(unpermuted, n_heads=heads)
  if kind.startswith("gemma") and name.endswith("norm.weight"):
    return lambda weight_D: weight_D - 1
  if kind == "gptneox" and "attn_qkv" in name:
    heads = config["num_attention_heads"]
    return lambda x: x.reshape(3, heads, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)
  if kind == "gpt2" and re.search(_GPT2_MATRICES, name):
    return lambda x: x.T
  return lambda x: x


def unpermuted(rows: np.ndarray, n_heads: int) -> np.ndarray:
  """Queries' or keys' rows as Hugging Face has them; in a .gguf file of Llama, those rotated together are neighbours.

  For instance, rows 0 1 2 3 4 5 of a head of width 6 in the file are 0 3 1 4 2 5 of Hugging Face's.
  """
  halves = rows.reshape(n_heads, -1, 2, *rows.shape[1:])
  return halves.swapaxes(1, 2).reshape(rows.shape)
