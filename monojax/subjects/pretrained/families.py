"""The families of pretrained transformers: for each, how its config.json is read, and where its tensors belong.

A row of a family's table says which tensor fills which parameter, and how its axes are turned:

  Tensor("self_attn.q_proj.weight", "W_qkv_DHJA", "hja,d -> d,h,j,a", part="queries")

reads: the tensor has two axes, of which the first is heads of keys (h) times heads of queries in each (j) times the
head's width (a), and the second the residual stream (d); it becomes an array of four axes, in this order, which fills
the part "queries" of the parameter. Adding a family of this kind is one entry here and its test.

Letters, as in `model.py`: d residual stream, h heads of keys and values, j heads of queries for each of them, a width
of a head, m width of the MLP, v tokens, t positions; a digit is an axis of that length.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from monojax.config import InputError, require
from monojax.subjects.pretrained.architecture import Architecture, Rotary

Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where a tensor of a file belongs.

  Attributes:
    name: its name, without the name of the layer or of the model in front.
    parameter: the parameter that it fills, or a part of it.
    axes: "axes of the tensor -> axes of the parameter"; see the module.
    part: "queries", "keys", "values", "gate" or "up": the part of a parameter that holds several; "" for all of it.
  """
  name: str
  parameter: str
  axes: str = "d -> d"
  part: str = ""

  def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that the tensor must have."""
    return tuple(math.prod(_size(axis, sizes) for axis in group) for group in self.axes.split(" -> ")[0].split(","))

  def turned(self, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
    """A view of the tensor with the parameter's axes."""
    before, after = self.axes.split(" -> ")
    separate = before.replace(",", "")
    array = array.reshape([_size(axis, sizes) for axis in separate])
    array = array.transpose([separate.index(axis) for axis in after.replace(",", "")])
    return array.reshape([math.prod(_size(axis, sizes) for axis in group) for group in after.split(",")])

  def leading(self) -> str:
    """The letter of the tensor's first axis that is longer than 1."""
    return self.axes.replace("1", "")[0]

  def place_of(self, place: tuple[Any, ...], axis: str, first: int, last: int,
               sizes: Mapping[str, int]) -> tuple[Any, ...]:
    """Where the entries first..last-1 of a lettered axis go, if the whole tensor goes to `place`."""
    groups = self.axes.split(" -> ")[1].split(",")
    at = next(i for i, group in enumerate(groups) if axis in group)
    inner = math.prod(_size(letter, sizes) for letter in groups[at].replace(axis, ""))
    # Axes of the parameter that an index takes away are not among the tensor's.
    kept = [i for i, index in enumerate(place) if isinstance(index, slice)]
    rank = len(place) + len(groups) - len(kept)
    everything = [*place, *(slice(None),) * (rank - len(place))]
    axes = [i for i, index in enumerate(everything) if isinstance(index, slice)]
    everything[axes[at]] = slice(first * inner, last * inner)
    return tuple(everything)

  def place(self, group: int) -> tuple[Any, ...]:
    """Where in the parameter it goes: an index of its axes; `group` is j."""
    everything = slice(None)
    inner = {"queries": slice(0, group), "keys": group, "values": group + 1, "gate": 0, "up": 1}
    if not self.part:
      return ()
    n_before = {"W_qkv_DHJA": 2, "b_qkv_HJA": 1, "W_in_DJM": 1, "b_in_JM": 0}[self.parameter]
    return (*(everything,) * n_before, inner[self.part])


def _size(axis: str, sizes: Mapping[str, int]) -> int:
  return int(axis) if axis.isdigit() else sizes[axis]


def sizes_of(a: Architecture) -> dict[str, int]:
  """The length of each lettered axis."""
  return {"s": a.n_types, "d": a.d_model, "h": a.n_key_heads, "j": a.group, "a": a.head_width, "m": a.d_mlp,
          "v": a.vocab_size, "t": a.max_context}


@dataclasses.dataclass(frozen=True)
class Family:
  """A family of models whose files are alike.

  Attributes:
    model_types: the values of "model_type" in config.json that belong to it.
    read: config.json -> `Architecture`.
    layer: the pattern of a layer's tensors, with "{i}" for its number.
    layers: the tensors of a layer.
    outer: the tensors outside of layers.
    prefixes: what may stand in front of every name.
    ignored: a regular expression of names that are no parameters.
    aliases: {another name that files have for a tensor: its name here}.
  """
  model_types: tuple[str, ...]
  read: Callable[[Config], Architecture]
  layer: str
  layers: tuple[Tensor, ...]
  outer: tuple[Tensor, ...]
  prefixes: tuple[str, ...]
  ignored: str = r"(?!)"
  aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def tensors(self, a: Architecture, n_loaded: int) -> list[tuple[int | None, str, Tensor]]:
    """(layer or None, full name, tensor) of all tensors that the first `n_loaded` layers and the rest need."""
    from monojax.subjects.pretrained.model import layer_shapes, outer_shapes
    inside, outside = layer_shapes(a), outer_shapes(a, n_loaded == a.n_layers)
    return [*((None, t.name, t) for t in self.outer if t.parameter in outside),
            *((i, f"{self.layer.format(i=i)}.{t.name}", t) for i in range(n_loaded)
              for t in self.layers if t.parameter in inside)]

  def plain_name(self, name: str) -> str | None:
    """A tensor's name in the file without what may stand in front; None for what is no parameter."""
    name = next((name.removeprefix(prefix) for prefix in self.prefixes if name.startswith(prefix)), name)
    name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
    name = self.aliases.get(name, name)
    return None if re.search(self.ignored, name) else name


def _rotary(config: Config, base: float = 10_000.0, kind: str = "", fraction: float = 1.0) -> Rotary:
  """The rotary settings of a config.json, in the form of transformers 5 (`rope_parameters`) or in older ones.

  Args:
    config: the file.
    base: the family's base where the file names none.
    kind: the kind of layer, where each has settings of its own: "full_attention" or "sliding_attention".
    fraction: the family's part of a head that is rotated.
  """
  new = config.get("rope_parameters") or {}
  new = new.get(kind, new) if kind else new
  old = config.get("rope_scaling") or {}
  values = {"rope_theta": config.get("rope_theta", config.get("rotary_emb_base", base)),
            "partial_rotary_factor": config.get("partial_rotary_factor", config.get("rotary_pct", fraction)),
            **({} if new else old), **(new or {})}
  scaling = values.get("rope_type") or values.get("type") or "default"
  require(scaling in ("default", "linear", "dynamic", "yarn", "longrope", "llama3"), "config.json: rope_type", scaling,
          "is no scaling of rotary positions that is known here")
  longest = config.get("max_position_embeddings", 0)
  original = values.get("original_max_position_embeddings") or config.get("original_max_position_embeddings") or longest
  number = lambda name, default: default if values.get(name) is None else float(values[name])
  factor = number("factor", longest / original if scaling == "longrope" and original else 1.0)
  return Rotary(
      base=float(values["rope_theta"]), fraction=float(values["partial_rotary_factor"]), scaling=scaling,
      factor=factor, original_context=int(original), low_frequency=number("low_freq_factor", 1.0),
      high_frequency=number("high_freq_factor", 4.0), beta_fast=number("beta_fast", 32.0),
      beta_slow=number("beta_slow", 1.0), truncate=bool(values.get("truncate", True)),
      attention_factor=values.get("attention_factor") or _yarn_factor(values, factor),
      short_divisors=tuple(values.get("short_factor", ())), long_divisors=tuple(values.get("long_factor", ())))


def _yarn_factor(values: Config, factor: float) -> float | None:
  """YaRN's factor on queries and keys where a file sets its `mscale` and `mscale_all_dim`, as DeepSeek's do."""
  if not (values.get("mscale") and values.get("mscale_all_dim")):
    return None
  scale = lambda weight: 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
  return scale(values["mscale"]) / scale(values["mscale_all_dim"])


def _activation(config: Config, name: str, default: str) -> str:
  given = config.get(name) or default
  return {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "swish": "silu",
          "gelu_python": "gelu"}.get(given, given)


def _common(config: Config, family: str) -> dict[str, Any]:
  """What Llama, Mistral, Qwen and Gemma call alike."""
  n_heads, d_model = config["num_attention_heads"], config["hidden_size"]
  head_width = config.get("head_dim") or d_model // n_heads
  bias = bool(config.get("attention_bias", False))
  return {"family": family, "n_layers": config["num_hidden_layers"], "d_model": d_model,
          "d_mlp": config["intermediate_size"], "n_heads": n_heads,
          "n_key_heads": config.get("num_key_value_heads") or n_heads, "head_width": head_width,
          "vocab_size": config["vocab_size"], "max_context": config.get("max_position_embeddings", 2048),
          "norm_epsilon": config.get("rms_norm_eps", 1e-6),
          "activation": _activation(config, "hidden_act", default="silu"), "qkv_bias": bias, "out_bias": bias,
          "mlp_bias": bool(config.get("mlp_bias", False)), "score_scale": head_width ** -0.5,
          "rotary": _rotary(config), "tied": bool(config.get("tie_word_embeddings", False))}


def _local_layers(config: Config, n_layers: int, otherwise: Callable[[int], bool]) -> tuple[bool, ...]:
  """Which layers have a window: what `layer_types` says, in older files a rule of the family."""
  if kinds := config.get("layer_types"):
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    require(not unknown, "config.json: layer_types", unknown, "full_attention and sliding_attention are known here")
    return tuple(kind == "sliding_attention" for kind in kinds)
  return tuple(map(otherwise, range(n_layers)))


def _with_window(values: dict[str, Any], window: Any, local_layers: tuple[bool, ...]) -> dict[str, Any]:
  return values | ({"window": window, "local_layers": local_layers} if window and any(local_layers) else {})


def _llama(config: Config) -> Architecture:
  return Architecture(**_common(config, "llama"))


def _mistral(config: Config) -> Architecture:
  values, window = _common(config, "llama"), config.get("sliding_window", 4096)
  return Architecture(**_with_window(values, window, (True,) * values["n_layers"]))


def _qwen(config: Config) -> Architecture:
  values = _common(config, "qwen2")
  window = config.get("sliding_window") if config.get("use_sliding_window") else None
  first = config.get("max_window_layers", 0)
  local = _local_layers(config, values["n_layers"], lambda i: i >= first)
  return Architecture(**_with_window(values, window, local))


def _qwen2(config: Config) -> Architecture:
  return dataclasses.replace(_qwen(config), qkv_bias=True, out_bias=False)


def _qwen3(config: Config) -> Architecture:
  return dataclasses.replace(_qwen(config), family="qwen3", qk_norm=True)


# What the configuration classes of Gemma 2 and 3 take where a file names nothing, as those of the larger Gemma 3 do.
_GEMMA_DEFAULTS = {"tie_word_embeddings": True, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
                   "query_pre_attn_scalar": 256, "sliding_window": 4096}


def _gemma(config: Config, family: str, **more: Any) -> Architecture:
  """What Gemma 2 and 3 have in common."""
  config = {**_GEMMA_DEFAULTS, **config}
  values = _common(config, family)
  values |= {"activation": _activation(config, "hidden_activation", default="gelu_tanh"), "norm_offset": True,
             "post_norms": True, "embedding_scale": math.sqrt(values["d_model"]),
             "score_scale": config["query_pre_attn_scalar"] ** -0.5,
             "logit_cap": config.get("final_logit_softcapping") or 0.0}
  local = _local_layers(config, values["n_layers"], more.pop("is_local"))
  return Architecture(**_with_window(values | more, config["sliding_window"], local))


def _gemma2(config: Config) -> Architecture:
  config = {"vocab_size": 256_000, "max_position_embeddings": 8192, **config}
  cap = config.get("attn_logit_softcapping", 50.0) or 0.0
  logit_cap = config.get("final_logit_softcapping", 30.0)
  return _gemma({**config, "final_logit_softcapping": logit_cap}, "gemma", is_local=lambda i: i % 2 == 0, score_cap=cap,
                local_rotary=_rotary(config))


def _gemma3(config: Config) -> Architecture:
  config = {"vocab_size": 262_208, "max_position_embeddings": 131_072, **config.get("text_config", config)}
  pattern = config.get("sliding_window_pattern") or 6
  everywhere = _rotary(config, 1_000_000.0, "full_attention")
  if (config.get("rope_parameters") or {}).get("sliding_attention"):
    local = _rotary(config, 10_000.0, "sliding_attention")
  else:
    local = Rotary(base=float(config.get("rope_local_base_freq", 10_000.0)))
  return _gemma(config, "gemma3", is_local=lambda i: (i + 1) % pattern != 0, qk_norm=True, rotary=everywhere,
                local_rotary=local)


def _gpt2(config: Config) -> Architecture:
  for name in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"):
    require(not config.get(name), f"config.json: {name}", config.get(name), "changes the model in a way not known here")
  d, n_heads = config["n_embd"], config["n_head"]
  return Architecture(
      family="gpt2", n_layers=config["n_layer"], d_model=d, d_mlp=config.get("n_inner") or 4 * d, n_heads=n_heads,
      n_key_heads=n_heads, head_width=d // n_heads, vocab_size=config["vocab_size"],
      max_context=config.get("n_positions", 1024), norm="layer",
      norm_epsilon=config.get("layer_norm_epsilon", 1e-5),
      activation=_activation(config, "activation_function", default="gelu_new"), gated=False, qkv_bias=True,
      out_bias=True, mlp_bias=True, learned_positions=True, tied=config.get("tie_word_embeddings", True),
      score_scale=(d // n_heads) ** -0.5 if config.get("scale_attn_weights", True) else 1.0)


def _gpt_neox(config: Config) -> Architecture:
  d, n_heads = config["hidden_size"], config["num_attention_heads"]
  bias = config.get("attention_bias", True)
  return Architecture(
      family="gpt_neox", n_layers=config["num_hidden_layers"], d_model=d, d_mlp=config["intermediate_size"],
      n_heads=n_heads, n_key_heads=n_heads, head_width=d // n_heads, vocab_size=config["vocab_size"],
      max_context=config.get("max_position_embeddings", 2048), norm="layer",
      norm_epsilon=config.get("layer_norm_eps", 1e-5), activation=_activation(config, "hidden_act", default="gelu"),
      gated=False, qkv_bias=bias, out_bias=bias, mlp_bias=True, parallel=config.get("use_parallel_residual", True),
      rotary=_rotary(config, fraction=0.25), score_scale=(d // n_heads) ** -0.5,
      tied=config.get("tie_word_embeddings", False))


def _bert(config: Config) -> Architecture:
  d, n_heads = config["hidden_size"], config["num_attention_heads"]
  kind = config.get("position_embedding_type", "absolute")
  require(kind == "absolute", "config.json: position_embedding_type", kind, "only absolute positions are known here")
  return Architecture(
      family="bert", n_layers=config["num_hidden_layers"], d_model=d, d_mlp=config["intermediate_size"],
      n_heads=n_heads, n_key_heads=n_heads, head_width=d // n_heads, vocab_size=config["vocab_size"],
      max_context=config.get("max_position_embeddings", 512), norm="layer",
      norm_epsilon=config.get("layer_norm_eps", 1e-12), norm_first=False, norm_embedding=True,
      n_types=config.get("type_vocab_size", 2),
      activation=_activation(config, "hidden_act", default="gelu"), gated=False, qkv_bias=True, out_bias=True,
      mlp_bias=True, learned_positions=True, causal=False, pad_id=config.get("pad_token_id", 0) or 0,
      score_scale=(d // n_heads) ** -0.5)


_GATED_LAYER = (
    Tensor("input_layernorm.weight", "gain_attn_D"),
    Tensor("self_attn.q_proj.weight", "W_qkv_DHJA", "hja,d -> d,h,j,a", "queries"),
    Tensor("self_attn.k_proj.weight", "W_qkv_DHJA", "ha,d -> d,h,a", "keys"),
    Tensor("self_attn.v_proj.weight", "W_qkv_DHJA", "ha,d -> d,h,a", "values"),
    Tensor("self_attn.q_proj.bias", "b_qkv_HJA", "hja -> h,j,a", "queries"),
    Tensor("self_attn.k_proj.bias", "b_qkv_HJA", "ha -> h,a", "keys"),
    Tensor("self_attn.v_proj.bias", "b_qkv_HJA", "ha -> h,a", "values"),
    Tensor("self_attn.o_proj.weight", "W_o_ED", "d,hja -> hja,d"),
    Tensor("self_attn.o_proj.bias", "b_o_D"),
    Tensor("mlp.gate_proj.weight", "W_in_DJM", "m,d -> d,m", "gate"),
    Tensor("mlp.up_proj.weight", "W_in_DJM", "m,d -> d,m", "up"),
    Tensor("mlp.gate_proj.bias", "b_in_JM", "m -> m", "gate"),
    Tensor("mlp.up_proj.bias", "b_in_JM", "m -> m", "up"),
    Tensor("mlp.down_proj.weight", "W_out_MD", "d,m -> m,d"),
    Tensor("mlp.down_proj.bias", "b_out_D"),
)
_MLP_NORM = (Tensor("post_attention_layernorm.weight", "gain_mlp_D"),)
_QK_NORMS = (Tensor("self_attn.q_norm.weight", "gain_q_A", "a -> a"),
             Tensor("self_attn.k_norm.weight", "gain_k_A", "a -> a"))
_GEMMA_NORMS = (
    Tensor("post_attention_layernorm.weight", "gain_attn_out_D"),
    Tensor("pre_feedforward_layernorm.weight", "gain_mlp_D"),
    Tensor("post_feedforward_layernorm.weight", "gain_mlp_out_D"),
)
_GATED_OUTER = (
    Tensor("embed_tokens.weight", "W_embed_VD", "v,d -> v,d"),
    Tensor("norm.weight", "gain_D"),
    Tensor("lm_head.weight", "W_unembed_DV", "v,d -> d,v"),
)
_PREFIXES = ("language_model.model.", "model.language_model.", "language_model.", "model.")
_BUFFERS = r"rotary_emb\.inv_freq$"


def _gated(model_types: tuple[str, ...], read: Callable[[Config], Architecture], *more: Tensor,
           ignored: str = _BUFFERS) -> Family:
  return Family(model_types, read, "layers.{i}", (*_GATED_LAYER, *more), _GATED_OUTER, _PREFIXES, ignored)


FAMILIES: tuple[Family, ...] = (
    _gated(("llama",), _llama, *_MLP_NORM),
    _gated(("mistral",), _mistral, *_MLP_NORM),
    _gated(("qwen2",), _qwen2, *_MLP_NORM),
    _gated(("qwen3",), _qwen3, *_MLP_NORM, *_QK_NORMS),
    _gated(("gemma2",), _gemma2, *_GEMMA_NORMS),
    _gated(("gemma3_text", "gemma3"), _gemma3, *_GEMMA_NORMS, *_QK_NORMS,
           ignored=rf"^vision_tower\.|^multi_modal_projector\.|{_BUFFERS}"),
    Family(
        ("gpt2",), _gpt2, "h.{i}",
        (Tensor("ln_1.weight", "gain_attn_D"), Tensor("ln_1.bias", "bias_attn_D"),
         Tensor("attn.c_attn.weight", "W_qkv_DHJA", "d,3ha -> d,h,3,a"),
         Tensor("attn.c_attn.bias", "b_qkv_HJA", "3ha -> h,3,a"),
         Tensor("attn.c_proj.weight", "W_o_ED", "ha,d -> ha,d"), Tensor("attn.c_proj.bias", "b_o_D"),
         Tensor("ln_2.weight", "gain_mlp_D"), Tensor("ln_2.bias", "bias_mlp_D"),
         Tensor("mlp.c_fc.weight", "W_in_DJM", "d,1m -> d,1,m"), Tensor("mlp.c_fc.bias", "b_in_JM", "1m -> 1,m"),
         Tensor("mlp.c_proj.weight", "W_out_MD", "m,d -> m,d"), Tensor("mlp.c_proj.bias", "b_out_D")),
        (Tensor("wte.weight", "W_embed_VD", "v,d -> v,d"), Tensor("wpe.weight", "W_position_TD", "t,d -> t,d"),
         Tensor("ln_f.weight", "gain_D"), Tensor("ln_f.bias", "bias_D"),
         Tensor("lm_head.weight", "W_unembed_DV", "v,d -> d,v")),
        ("transformer.",), r"\.attn\.(bias|masked_bias)$"),
    Family(
        ("gpt_neox",), _gpt_neox, "layers.{i}",
        (Tensor("input_layernorm.weight", "gain_attn_D"), Tensor("input_layernorm.bias", "bias_attn_D"),
         Tensor("attention.query_key_value.weight", "W_qkv_DHJA", "h3a,d -> d,h,3,a"),
         Tensor("attention.query_key_value.bias", "b_qkv_HJA", "h3a -> h,3,a"),
         Tensor("attention.dense.weight", "W_o_ED", "d,ha -> ha,d"), Tensor("attention.dense.bias", "b_o_D"),
         Tensor("post_attention_layernorm.weight", "gain_mlp_D"), Tensor("post_attention_layernorm.bias", "bias_mlp_D"),
         Tensor("mlp.dense_h_to_4h.weight", "W_in_DJM", "1m,d -> d,1,m"),
         Tensor("mlp.dense_h_to_4h.bias", "b_in_JM", "1m -> 1,m"),
         Tensor("mlp.dense_4h_to_h.weight", "W_out_MD", "d,m -> m,d"), Tensor("mlp.dense_4h_to_h.bias", "b_out_D")),
        (Tensor("embed_in.weight", "W_embed_VD", "v,d -> v,d"), Tensor("final_layer_norm.weight", "gain_D"),
         Tensor("final_layer_norm.bias", "bias_D"), Tensor("embed_out.weight", "W_unembed_DV", "v,d -> d,v")),
        ("gpt_neox.",), r"\.attention\.(bias|masked_bias)$|rotary_emb\.inv_freq$",
        {"lm_head.weight": "embed_out.weight"}),
    Family(
        ("bert",), _bert, "encoder.layer.{i}",
        (Tensor("attention.self.query.weight", "W_qkv_DHJA", "h1a,d -> d,h,1,a", "queries"),
         Tensor("attention.self.query.bias", "b_qkv_HJA", "h1a -> h,1,a", "queries"),
         Tensor("attention.self.key.weight", "W_qkv_DHJA", "ha,d -> d,h,a", "keys"),
         Tensor("attention.self.key.bias", "b_qkv_HJA", "ha -> h,a", "keys"),
         Tensor("attention.self.value.weight", "W_qkv_DHJA", "ha,d -> d,h,a", "values"),
         Tensor("attention.self.value.bias", "b_qkv_HJA", "ha -> h,a", "values"),
         Tensor("attention.output.dense.weight", "W_o_ED", "d,ha -> ha,d"),
         Tensor("attention.output.dense.bias", "b_o_D"),
         Tensor("attention.output.LayerNorm.weight", "gain_attn_D"),
         Tensor("attention.output.LayerNorm.bias", "bias_attn_D"),
         Tensor("intermediate.dense.weight", "W_in_DJM", "1m,d -> d,1,m"),
         Tensor("intermediate.dense.bias", "b_in_JM", "1m -> 1,m"),
         Tensor("output.dense.weight", "W_out_MD", "d,m -> m,d"), Tensor("output.dense.bias", "b_out_D"),
         Tensor("output.LayerNorm.weight", "gain_mlp_D"), Tensor("output.LayerNorm.bias", "bias_mlp_D")),
        (Tensor("embeddings.word_embeddings.weight", "W_embed_VD", "v,d -> v,d"),
         Tensor("embeddings.position_embeddings.weight", "W_position_TD", "t,d -> t,d"),
         Tensor("embeddings.token_type_embeddings.weight", "W_type_SD", "s,d -> s,d"),
         Tensor("embeddings.LayerNorm.weight", "gain_embed_D"), Tensor("embeddings.LayerNorm.bias", "bias_embed_D")),
        ("bert.",), r"position_ids$|^pooler\.|^cls\."),
)


def read_config(config: Config, name: str) -> tuple[Family, Architecture]:
  """The family and the architecture that a config.json describes.

  Raises:
    InputError: it is of no family that is known here, lacks a field, or asks for something that is not known.
  """
  kind = config.get("model_type")
  family = next((family for family in FAMILIES if kind in family.model_types), None)
  if family is None:
    known = ", ".join(kind for family in FAMILIES for kind in family.model_types)
    raise InputError(f"subject.weights={name!r}: its config.json says model_type={kind!r}, which is not supported: "
                     f"known are {known}")
  if "quantization_config" in config:
    raise InputError(f"subject.weights={name!r}: its tensors are quantised ({config['quantization_config']}): give "
                     "the unquantised model, or a .gguf file")
  try:
    return family, family.read(config)
  except InputError:
    raise
  except KeyError as error:
    raise InputError(f"subject.weights={name!r}: its config.json lacks {error}, which {kind} needs") from error
  except (TypeError, AttributeError, ValueError, ArithmeticError) as error:
    raise InputError(f"subject.weights={name!r}: its config.json cannot be used: {error}") from error
