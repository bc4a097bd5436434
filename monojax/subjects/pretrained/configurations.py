"""How the config.json of each family is read: its switches, in the names of today's transformers and in older ones."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from monojax.config import require
from monojax.subjects.pretrained.architecture import Architecture, Rotary

Config = Mapping[str, Any]  # the content of a config.json


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


def llama(config: Config) -> Architecture:
  return Architecture(**_common(config, "llama"))


def mistral(config: Config) -> Architecture:
  values, window = _common(config, "llama"), config.get("sliding_window", 4096)
  return Architecture(**_with_window(values, window, (True,) * values["n_layers"]))


def _qwen(config: Config) -> Architecture:
  values = _common(config, "qwen2")
  window = config.get("sliding_window") if config.get("use_sliding_window") else None
  first = config.get("max_window_layers", 0)
  local = _local_layers(config, values["n_layers"], lambda i: i >= first)
  return Architecture(**_with_window(values, window, local))


def qwen2(config: Config) -> Architecture:
  return dataclasses.replace(_qwen(config), qkv_bias=True, out_bias=False)


def qwen3(config: Config) -> Architecture:
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


def gemma2(config: Config) -> Architecture:
  config = {"vocab_size": 256_000, "max_position_embeddings": 8192, **config}
  cap = config.get("attn_logit_softcapping", 50.0) or 0.0
  logit_cap = config.get("final_logit_softcapping", 30.0)
  return _gemma({**config, "final_logit_softcapping": logit_cap}, "gemma", is_local=lambda i: i % 2 == 0, score_cap=cap,
                local_rotary=_rotary(config))


def gemma3(config: Config) -> Architecture:
  config = {"vocab_size": 262_208, "max_position_embeddings": 131_072, **config.get("text_config", config)}
  pattern = config.get("sliding_window_pattern") or 6
  everywhere = _rotary(config, 1_000_000.0, "full_attention")
  if (config.get("rope_parameters") or {}).get("sliding_attention"):
    local = _rotary(config, 10_000.0, "sliding_attention")
  else:
    local = Rotary(base=float(config.get("rope_local_base_freq", 10_000.0)))
  return _gemma(config, "gemma3", is_local=lambda i: (i + 1) % pattern != 0, qk_norm=True, rotary=everywhere,
                local_rotary=local)


def gpt2(config: Config) -> Architecture:
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


def gpt_neox(config: Config) -> Architecture:
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


def bert(config: Config) -> Architecture:
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
