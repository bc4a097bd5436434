"""The transformer that monojax trains itself. It is decoder-only, and it returns its inner activations.

Letters: B contexts of a batch, T positions of a context, N = B T rows, D width of the residual stream, H attention
heads, M width of the MLP, V tokens of the vocabulary. In this module K is the width of a head, and the E of `W_o_ED` is
the width of all heads side by side, H K.

Inside the model rows are flat, (N, D), because XLA's matrix products on a CPU are up to twice as fast on matrices as on
arrays of shape (B, T, D). Sites have the shape (B, T, width).
"""

from collections.abc import Callable, Collection, Mapping
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from monojax.linear import matmul
from monojax.subjects.config import TransformerConfig
from monojax.subjects.loss import unembed_loss
from monojax.subjects.subject import Cache, Edit, LogitPath, Sites

# Where parameters are on the mesh: the MLP's width and the vocabulary are split over its axis "model".
SHARDING_RULES = {
    "W_in_DM": P(None, "model"), "b_in_M": P("model"), "W_out_MD": P("model", None),
    "W_unembed_DV": P(None, "model"),
}
NORM_EPSILON = 1e-5


def rotate(x_BTHK: jax.Array) -> jax.Array:
  """Rotary position embedding of queries or keys, with base 10,000 (arXiv 2104.09864).

  Of the K numbers of a head, number i and number i + K / 2 are rotated together, which is the half-rotation convention.
  """
  n_positions, width = x_BTHK.shape[1], x_BTHK.shape[3]
  frequency_J = 10_000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
  angle_TJ = jnp.arange(n_positions, dtype=jnp.float32)[:, None] * frequency_J[None]
  cos = jnp.cos(angle_TJ)[None, :, None].astype(x_BTHK.dtype)
  sin = jnp.sin(angle_TJ)[None, :, None].astype(x_BTHK.dtype)
  a, b = jnp.split(x_BTHK, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def layer_norm(x_ND: jax.Array, gain_D: jax.Array, bias_D: jax.Array, freeze: bool = False) -> jax.Array:
  """LayerNorm over the last axis, computed in float32 with epsilon 1e-5.

  With `freeze` what it divides by is a constant to derivatives; see `Subject.frozen`.
  """
  x = x_ND.astype(jnp.float32)
  centred = x - x.mean(-1, keepdims=True)
  scale = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + NORM_EPSILON)
  if freeze:
    scale = jax.lax.stop_gradient(scale)
  return (centred * scale * gain_D[None] + bias_D[None]).astype(x_ND.dtype)


class Block(nn.Module):
  """One layer: attention and an MLP with a ReLU, each of which reads the residual stream through a LayerNorm.

  Attributes:
    d_model, n_heads, d_mlp: see `TransformerConfig`.
    residual_scale: factor on the initial weights of the two matrices that write into the residual stream.
    freeze: see `Transformer`.
  """
  d_model: int
  n_heads: int
  d_mlp: int
  residual_scale: float
  freeze: bool = False

  def setup(self) -> None:
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

  def __call__(self, x_ND: jax.Array, n_positions: int, site: Callable[[str, jax.Array], jax.Array]) -> jax.Array:
    """The residual stream after this layer.

    Args:
      x_ND: the residual stream before it, the contexts of a batch one after the other.
      n_positions: T.
      site: (name, activation) -> activation, called at each site; what it returns is what the layer goes on with.
    """
    dtype = x_ND.dtype
    linear = lambda u, W: matmul(u, W, dtype).astype(dtype)
    u_ND = site("attn.in", layer_norm(x_ND, self.gain_attn_D, self.bias_attn_D, self.freeze))
    heads = lambda W_DD: linear(u_ND, W_DD).reshape(-1, n_positions, self.n_heads,
                                                    self.d_model // self.n_heads)
    q_BTHK, k_BTHK, v_BTHK = (heads(W_DD) for W_DD in jnp.split(self.W_qkv_DE, 3, axis=1))
    mixed_BTHK = attend(rotate(q_BTHK), rotate(k_BTHK), v_BTHK, self.freeze)
    z_NE = site("attn.z", mixed_BTHK.reshape(x_ND.shape))
    x_ND = x_ND + site("attn.out", linear(z_NE, self.W_o_ED))
    u_ND = site("mlp.in", layer_norm(x_ND, self.gain_mlp_D, self.bias_mlp_D, self.freeze))
    pre_NM = linear(u_ND, self.W_in_DM) + self.b_in_M.astype(dtype)[None]
    hidden_NM = site("mlp.hidden", jax.nn.relu(pre_NM))
    out_ND = site("mlp.out", linear(hidden_NM, self.W_out_MD) + self.b_out_D.astype(dtype)[None])
    return site("resid", x_ND + out_ND)


def attend(q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array, freeze: bool = False) -> jax.Array:
  """Causal attention with scale 1/sqrt(K), a result of shape (B, T, H, K); scores and softmax are in float32.

  With `freeze` the weights, which say how much a query reads of each key, are constants to derivatives.

  Each head is a product of its own because XLA's CPU runtime computes a batched product on one core, and independent
  products on all cores. Within a head, the first half of the queries is not compared with the second half of the keys,
  which it must not see.
  """
  n_positions, n_heads, width = q_BTHK.shape[1:]

  def queries(q_BQK, k_BSK, v_BSK):
    """Attention of the last Q of S positions. Each of them sees the positions up to its own."""
    n_queries, n_keys = q_BQK.shape[1], k_BSK.shape[1]
    causal_QS = jnp.tril(jnp.ones((n_queries, n_keys), bool), n_keys - n_queries)
    scores_BQS = jnp.einsum("bqk,bsk->bqs", q_BQK, k_BSK, preferred_element_type=jnp.float32)
    scores_BQS = jnp.where(causal_QS[None], scores_BQS * width ** -0.5, -1e9)
    weights_BQS = jax.nn.softmax(scores_BQS, axis=-1).astype(v_BSK.dtype)
    if freeze:
      weights_BQS = jax.lax.stop_gradient(weights_BQS)
    return jnp.einsum("bqs,bsk->bqk", weights_BQS, v_BSK)

  def head(q_BTK, k_BTK, v_BTK):
    half = n_positions // 2
    early_BQK = queries(q_BTK[:, :half], k_BTK[:, :half], v_BTK[:, :half])
    return jnp.concatenate([early_BQK, queries(q_BTK[:, half:], k_BTK, v_BTK)], axis=1)

  return jnp.stack([head(q_BTHK[:, :, h], k_BTHK[:, :, h], v_BTHK[:, :, h]) for h in range(n_heads)], axis=2)


class Transformer(nn.Module):
  """A subject (see the contract in `subject.py`): layers of causal attention with rotary positions and a ReLU MLP.

  Its sites are `embed`; for each layer L `layer.L.attn.in`, `layer.L.attn.z`, `layer.L.attn.out`, `layer.L.mlp.in`,
  `layer.L.mlp.hidden` (the activations after the ReLU, which Towards Monosemanticity decomposes), `layer.L.mlp.out` and
  `layer.L.resid`; and `final.in`, which is what the last LayerNorm gives to the unembedding.

  Attributes:
    config: the architecture.
    dtype: the dtype of activations and of the operands of matrix products; parameters are float32.
    freeze: whether the scales of norms and the patterns of attention are constants to derivatives: see `frozen`.
  """
  config: TransformerConfig
  dtype: jnp.dtype = jnp.float32
  freeze: bool = False

  @property
  def n_vocab(self) -> int:
    return self.config.vocab_size

  @property
  def max_context(self) -> int | None:
    return None  # rotary positions have no limit

  @property
  def site_widths(self) -> dict[str, int]:
    d, m = self.config.d_model, self.config.d_mlp
    block = {"attn.in": d, "attn.z": d, "attn.out": d, "mlp.in": d, "mlp.hidden": m, "mlp.out": d, "resid": d}
    blocks = {f"layer.{i}.{name}": width for i in range(self.config.n_layers) for name, width in block.items()}
    return {"embed": d, **blocks, "final.in": d}

  @property
  def n_heads(self) -> int:
    return self.config.n_heads

  @property
  def sharding_rules(self) -> Mapping[str, P]:
    return {}  # when it is run it is whole on every device: `SHARDING_RULES` are for its training

  @property
  def output(self) -> Literal["logits", "embedding"]:
    return "logits"

  @property
  def depends_on_length(self) -> bool:
    return False

  @nn.nowrap
  def new_cache(self, n_contexts: int, n_positions: int) -> Cache | None:
    return None

  @nn.nowrap
  def extend(self, variables: dict, cache: Cache, tokens_BT: jax.Array,
             edit: Edit | None = None) -> tuple[jax.Array, Cache]:
    raise ValueError("this subject keeps no cache: new_cache gives None")

  @nn.nowrap
  def logit_path(self, params: dict, site: str) -> LogitPath | None:
    if site.endswith(".in"):  # what a LayerNorm gives is read by what follows and not added to the residual stream
      return None
    into = {"mlp.hidden": "W_out_MD", "attn.z": "W_o_ED"}.get(site.split(".", 2)[-1])
    to_residual_MD = None if into is None else params[f"layer_{site.split('.')[1]}"][into]
    last = f"layer.{self.config.n_layers - 1}."
    only = site in (f"{last}mlp.hidden", f"{last}mlp.out", f"{last}resid")
    return LogitPath(to_residual_MD, "layer", params["gain_D"], params["W_unembed_DV"], f"{last}resid", only,
                     NORM_EPSILON, params["bias_D"])

  @nn.nowrap
  def frozen(self) -> "Transformer":
    return self.clone(freeze=True)

  @nn.nowrap
  def training_loss(self, params: dict, tokens_BU: jax.Array) -> jax.Array:
    """The mean cross-entropy of each next token in nats, a scalar, computed without ever holding all logits.

    Args:
      params: the parameters.
      tokens_BU: token ids, (B, T + 1). Inputs are all but the last of each context, targets all but the first.
    """
    _, sites = self.apply({"params": params}, tokens_BU[:, :-1], wanted=("final.in",))
    return unembed_loss(sites["final.in"], params["W_unembed_DV"], tokens_BU[:, 1:], self.dtype)

  def setup(self) -> None:
    c = self.config
    self.W_embed_VD = self.param("W_embed_VD", nn.initializers.normal(0.02), (c.vocab_size, c.d_model))
    self.blocks = [Block(c.d_model, c.n_heads, c.d_mlp, (2 * c.n_layers) ** -0.5, self.freeze, name=f"layer_{i}")
                   for i in range(c.n_layers)]
    self.gain_D = self.param("gain_D", nn.initializers.ones, (c.d_model,))
    self.bias_D = self.param("bias_D", nn.initializers.zeros, (c.d_model,))
    self.W_unembed_DV = self.param("W_unembed_DV", nn.initializers.normal(c.d_model ** -0.5),
                                   (c.d_model, c.vocab_size))

  def __call__(self, tokens_BT: jax.Array, edit: Edit | None = None, *,
               wanted: Collection[str] | None = None) -> tuple[jax.Array, Sites]:
    edit = edit or {}
    sites: Sites = {}
    n_batch, n_positions = tokens_BT.shape

    def visit(name, value_ND):
      value_BTD = value_ND.reshape(n_batch, n_positions, -1)
      sites[name] = edit[name](value_BTD) if name in edit else value_BTD
      return sites[name].reshape(value_ND.shape)

    x_ND = visit("embed", self.W_embed_VD[tokens_BT.reshape(-1)].astype(self.dtype))
    for i, block in enumerate(self.blocks):
      visit_block = lambda name, value, i=i: visit(f"layer.{i}.{name}", value)
      x_ND = block(x_ND, n_positions, visit_block)
    u_ND = visit("final.in", layer_norm(x_ND, self.gain_D, self.bias_D, self.freeze))
    logits_NV = matmul(u_ND, self.W_unembed_DV, self.dtype)
    logits_BTV = logits_NV.reshape(n_batch, n_positions, -1)
    unknown = {*edit, *(wanted or ())} - set(sites)
    if unknown:
      raise ValueError(f"there is no site {sorted(unknown)}; this subject's sites are {sorted(sites)}")
    return logits_BTV, sites if wanted is None else {name: sites[name] for name in wanted}
