"""Llama, Gemma 2 and BERT in NumPy, written out position by position and head by head, as the tests' reference.

Tensors are named as their files name them; everything is float64.
"""

import math

import numpy as np
from scipy.special import erf


def rms(x, weight, epsilon):
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def layer_norm(x, weight, bias, epsilon):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt((centred ** 2).mean(-1, keepdims=True) + epsilon) * weight + bias


def angles(width, base, scaling=None):
  """The frequency of each pair, one after the other; `scaling` as config.json has that of Llama 3."""
  found = []
  for k in range(width // 2):
    frequency = base ** (-2 * k / width)
    if scaling:
      wavelength = 2 * math.pi / frequency
      long, short = (scaling["original_max_position_embeddings"] / scaling[name]
                     for name in ("low_freq_factor", "high_freq_factor"))
      if wavelength > long:
        frequency /= scaling["factor"]
      elif wavelength > short:
        share = ((scaling["original_max_position_embeddings"] / wavelength - scaling["low_freq_factor"])
                 / (scaling["high_freq_factor"] - scaling["low_freq_factor"]))
        frequency = (1 - share) * frequency / scaling["factor"] + share * frequency
    found.append(frequency)
  return np.array(found)


def turned(x_TA, frequencies):
  """Dimension k rotates with dimension k + A / 2."""
  angle_TP = np.arange(len(x_TA))[:, None] * frequencies
  first, second = np.split(x_TA, 2, axis=-1)
  return np.concatenate([first * np.cos(angle_TP) - second * np.sin(angle_TP),
                         second * np.cos(angle_TP) + first * np.sin(angle_TP)], axis=-1)


def attention(q_TE, k_TE, v_TE, n_heads, n_key_heads, scale, may_see, cap=0.0, frequencies=None):
  """Heads side by side; `may_see(query, key)` says who sees whom."""
  n, width = len(q_TE), q_TE.shape[1] // n_heads
  z_TE = np.zeros_like(q_TE)
  for head in range(n_heads):
    shared = head // (n_heads // n_key_heads)
    q_TA, k_TA, v_TA = (x[:, i * width:(i + 1) * width] for x, i in ((q_TE, head), (k_TE, shared), (v_TE, shared)))
    if frequencies is not None:
      q_TA, k_TA = turned(q_TA, frequencies), turned(k_TA, frequencies)
    for query in range(n):
      keys = [key for key in range(n) if may_see(query, key)]
      scores = np.array([q_TA[query] @ k_TA[key] for key in keys]) * scale
      if cap:
        scores = cap * np.tanh(scores / cap)
      weights = np.exp(scores - scores.max())
      z_TE[query, head * width:(head + 1) * width] = weights / weights.sum() @ v_TA[keys]
  return z_TE


def silu(x):
  return x / (1 + np.exp(-x))


def gelu_tanh(x):
  return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


def gelu_exact(x):
  return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def decoder(tensors, c, tokens_T):
  """(logits, {site: activation}) of Llama or Gemma 2, one context."""
  gemma = c["model_type"] == "gemma2"
  w = {name.removeprefix("model."): value.astype(np.float64) for name, value in tensors.items()}
  n_heads, d = c["num_attention_heads"], c["hidden_size"]
  width, epsilon = c.get("head_dim") or d // n_heads, c["rms_norm_eps"]
  normed = lambda x, name: rms(x, w[name] + gemma, epsilon)
  x = w["embed_tokens.weight"][tokens_T] * (math.sqrt(d) if gemma else 1.0)
  sites = {"embed": x}
  for i in range(c["num_hidden_layers"]):
    p, site = f"layers.{i}.", f"layer.{i}."
    window = c["sliding_window"] if gemma and i % 2 == 0 else len(tokens_T)
    u = normed(x, f"{p}input_layernorm.weight")
    q, k, v = (u @ w[f"{p}self_attn.{name}_proj.weight"].T for name in "qkv")
    z = attention(q, k, v, n_heads, c["num_key_value_heads"], (c["query_pre_attn_scalar"] if gemma else width) ** -0.5,
                  lambda query, key, window=window: query - window < key <= query,
                  c["attn_logit_softcapping"] if gemma else 0.0,
                  angles(width, c.get("rope_theta", 10_000.0), c.get("rope_scaling")))
    out = z @ w[f"{p}self_attn.o_proj.weight"].T
    sites |= {f"{site}attn.in": u, f"{site}attn.z": z}
    if gemma:
      sites[f"{site}attn.out_raw"] = out
      out = normed(out, f"{p}post_attention_layernorm.weight")
    x = x + out
    before = "pre_feedforward" if gemma else "post_attention"
    u = normed(x, f"{p}{before}_layernorm.weight")
    sites |= {f"{site}attn.out": out, f"{site}mid": x, f"{site}mlp.in": u}
    act = gelu_tanh if gemma else silu
    hidden = act(u @ w[f"{p}mlp.gate_proj.weight"].T) * (u @ w[f"{p}mlp.up_proj.weight"].T)
    out = hidden @ w[f"{p}mlp.down_proj.weight"].T
    if gemma:
      sites[f"{site}mlp.out_raw"] = out
      out = normed(out, f"{p}post_feedforward_layernorm.weight")
    x = x + out
    sites |= {f"{site}mlp.hidden": hidden, f"{site}mlp.out": out, f"{site}resid": x}
  u = normed(x, "norm.weight")
  logits = u @ w["embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"].T
  if gemma:
    logits = c["final_logit_softcapping"] * np.tanh(logits / c["final_logit_softcapping"])
  return logits, {**sites, "final.in": u}


def bert(tensors, c, tokens_T):
  """(embedding of the context, {site: activation}) of BERT, one context whose padding has the id 0."""
  w = {name: value.astype(np.float64) for name, value in tensors.items()}
  linear = lambda x, name: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
  normed = lambda x, name: layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], c["layer_norm_eps"])
  n = len(tokens_T)
  x = normed(w["embeddings.word_embeddings.weight"][tokens_T] + w["embeddings.position_embeddings.weight"][:n]
             + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
  n_heads, sites = c["num_attention_heads"], {"embed": x}
  for i in range(c["num_hidden_layers"]):
    p, site = f"encoder.layer.{i}.", f"layer.{i}."
    q, k, v = (linear(x, f"{p}attention.self.{name}") for name in ("query", "key", "value"))
    z = attention(q, k, v, n_heads, n_heads, (c["hidden_size"] // n_heads) ** -0.5,
                  lambda query, key: tokens_T[key] != 0)
    out = linear(z, f"{p}attention.output.dense")
    sites |= {f"{site}attn.in": x, f"{site}attn.z": z, f"{site}attn.out": out}
    x = normed(x + out, f"{p}attention.output.LayerNorm")
    hidden = gelu_exact(linear(x, f"{p}intermediate.dense"))
    out = linear(hidden, f"{p}output.dense")
    sites |= {f"{site}mid": x, f"{site}mlp.in": x, f"{site}mlp.hidden": hidden, f"{site}mlp.out": out}
    x = normed(x + out, f"{p}output.LayerNorm")
    sites[f"{site}resid"] = x
  mean = x[tokens_T != 0].mean(0)
  return mean / np.linalg.norm(mean), {**sites, "final.in": x}
