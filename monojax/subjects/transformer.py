"""The subject: a decoder-only transformer that returns its activations.

Letters: B batch, T position, D residual width, H heads, K head width, M MLP width, V vocabulary.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

# Where parameters live on the ("data", "model") mesh: the MLP's width and the vocabulary are split.
SHARDING_RULES = {
    "W_in_DM": P(None, "model"), "b_in_M": P("model"), "W_out_MD": P("model", None),
    "W_unembed_DV": P(None, "model"),
}


def rotate(x_BHTK):
  """Rotary position embedding in the half-rotation convention, base 10,000 (arXiv 2104.09864)."""
  n_positions, width = x_BHTK.shape[2], x_BHTK.shape[3]
  frequency_J = 10_000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
  angle_TJ = jnp.arange(n_positions, dtype=jnp.float32)[:, None] * frequency_J[None]
  cos = jnp.cos(angle_TJ)[None, None].astype(x_BHTK.dtype)
  sin = jnp.sin(angle_TJ)[None, None].astype(x_BHTK.dtype)
  a, b = jnp.split(x_BHTK, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def layer_norm(x_BTD, gain_D, bias_D):
  """LayerNorm over the last axis, computed in float32, epsilon 1e-5."""
  x = x_BTD.astype(jnp.float32)
  centred = x - x.mean(-1, keepdims=True)
  scale = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
  return (centred * scale * gain_D[None, None] + bias_D[None, None]).astype(x_BTD.dtype)


class Block(nn.Module):
  """Pre-norm attention and ReLU MLP. Returns the residual stream and the block's sites."""
  d_model: int
  n_heads: int
  d_mlp: int
  residual_scale: float

  def setup(self):
    d, m = self.d_model, self.d_mlp
    normal = nn.initializers.normal
    into_residual = lambda width: normal(self.residual_scale * width ** -0.5)
    self.gain_attn_D = self.param("gain_attn_D", nn.initializers.ones, (d,))
    self.bias_attn_D = self.param("bias_attn_D", nn.initializers.zeros, (d,))
    self.W_qkv_DE = self.param("W_qkv_DE", normal(d ** -0.5), (d, 3 * d))
    self.W_o_ED = self.param("W_o_ED", into_residual(d), (d, d))
    self.gain_mlp_D = self.param("gain_mlp_D", nn.initializers.ones, (d,))
    self.bias_mlp_D = self.param("bias_mlp_D", nn.initializers.zeros, (d,))
    self.W_in_DM = self.param("W_in_DM", normal(d ** -0.5), (d, m))
    self.b_in_M = self.param("b_in_M", nn.initializers.zeros, (m,))
    self.W_out_MD = self.param("W_out_MD", into_residual(m), (m, d))
    self.b_out_D = self.param("b_out_D", nn.initializers.zeros, (d,))

  def __call__(self, x_BTD, site):
    dtype = x_BTD.dtype
    weights = lambda w: w.astype(dtype)
    n_batch, n_positions, _ = x_BTD.shape
    u_BTD = site("attn.in", layer_norm(x_BTD, self.gain_attn_D, self.bias_attn_D))
    qkv = (u_BTD @ weights(self.W_qkv_DE)).reshape(n_batch, n_positions, 3, self.n_heads, -1)
    q_BHTK, k_BHTK, v_BHTK = qkv.transpose(2, 0, 3, 1, 4)
    mixed_BHTK = attend(rotate(q_BHTK), rotate(k_BHTK), v_BHTK)
    attn_BTD = mixed_BHTK.transpose(0, 2, 1, 3).reshape(x_BTD.shape) @ weights(self.W_o_ED)
    x_BTD = x_BTD + site("attn.out", attn_BTD)
    u_BTD = site("mlp.in", layer_norm(x_BTD, self.gain_mlp_D, self.bias_mlp_D))
    pre_BTM = u_BTD @ weights(self.W_in_DM) + weights(self.b_in_M)[None, None]
    hidden_BTM = site("mlp.hidden", jax.nn.relu(pre_BTM))
    out_BTD = hidden_BTM @ weights(self.W_out_MD) + weights(self.b_out_D)[None, None]
    return site("resid", x_BTD + site("mlp.out", out_BTD))


def attend(q_BHTK, k_BHTK, v_BHTK):
  """Causal attention with scale 1/sqrt(K); scores and softmax in float32."""
  n_positions, width = q_BHTK.shape[2:]
  scores_BHTS = jnp.einsum("bhtk,bhsk->bhts", q_BHTK, k_BHTK, preferred_element_type=jnp.float32)
  causal_TS = jnp.tril(jnp.ones((n_positions, n_positions), bool))
  scores_BHTS = jnp.where(causal_TS[None, None], scores_BHTS * width ** -0.5, -1e9)
  weights_BHTS = jax.nn.softmax(scores_BHTS, axis=-1).astype(v_BHTK.dtype)
  return jnp.einsum("bhts,bhsk->bhtk", weights_BHTS, v_BHTK)


class Transformer(nn.Module):
  """`apply(variables, tokens_BT, edit=None) -> (logits_BTV float32, sites)`.

  `sites` maps each site's name to its activation: `embed`, then for layer L `layer.L.attn.in`,
  `layer.L.attn.out`, `layer.L.mlp.in`, `layer.L.mlp.hidden` (after the ReLU: what the paper
  decomposes), `layer.L.mlp.out`, `layer.L.resid`, and `final.in` (after the last LayerNorm). Under
  `jit` what the caller does not use is never computed. `edit` maps a site to a function x -> x that
  replaces the activation there before anything reads it.
  """
  config: "TransformerConfig"  # noqa: F821  (monojax.subjects.config)
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    c = self.config
    self.W_embed_VD = self.param("W_embed_VD", nn.initializers.normal(0.02), (c.vocab_size, c.d_model))
    self.blocks = [Block(c.d_model, c.n_heads, c.d_mlp, (2 * c.n_layers) ** -0.5, name=f"layer_{i}")
                   for i in range(c.n_layers)]
    self.gain_D = self.param("gain_D", nn.initializers.ones, (c.d_model,))
    self.bias_D = self.param("bias_D", nn.initializers.zeros, (c.d_model,))
    self.W_unembed_DV = self.param("W_unembed_DV", nn.initializers.normal(c.d_model ** -0.5),
                                   (c.d_model, c.vocab_size))

  def __call__(self, tokens_BT, edit=None):
    edit = edit or {}
    sites = {}

    def visit(name, value):
      sites[name] = edit[name](value) if name in edit else value
      return sites[name]

    x_BTD = visit("embed", self.W_embed_VD[tokens_BT].astype(self.dtype))
    for i, block in enumerate(self.blocks):
      x_BTD = block(x_BTD, lambda name, value, i=i: visit(f"layer.{i}.{name}", value))
    u_BTD = visit("final.in", layer_norm(x_BTD, self.gain_D, self.bias_D))
    logits_BTV = jnp.einsum("btd,dv->btv", u_BTD, self.W_unembed_DV.astype(self.dtype),
                            preferred_element_type=jnp.float32)
    unknown = set(edit) - set(sites)
    if unknown:
      raise ValueError(f"edit names {sorted(unknown)}; this subject's sites are {sorted(sites)}")
    return logits_BTV, sites
