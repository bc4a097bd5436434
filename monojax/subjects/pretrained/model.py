"""The transformer that every family of pretrained models is an instance of. It returns its inner activations.

Letters: B contexts of a batch, T positions of a context, N = B T rows, S positions of keys, D width of the residual
stream, M width of the MLP, V tokens of the vocabulary, A width of a head, E width of all heads side by side. In this
module H is heads of keys and values, and J is the heads of queries that share one of them (in the joint weights of
queries, keys and values two more: the keys' and the values'; in the MLP's first map 2: the gate's and the up map's).

Matrices are as most files have them, outputs before inputs, so that reading one is no more than a copy. The parameters
of all layers are stacked: each array of a layer has an axis in front, one entry a layer, which names leave out. Layers
of which no site is wanted or edited run in one compiled loop, the others one by one between loops.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from monojax.linear import matmul
from monojax.subjects.pretrained.architecture import Architecture
from monojax.subjects.pretrained.attention import attend, rotate, rotation
from monojax.subjects.subject import Cache, Edit, LogitPath, Sites

# Where parameters are on the mesh: heads, the MLP's width and the vocabulary are split over its axis "model". Those of
# layers have an axis for the layers in front.
_SHARDING_RULES = {
    "W_qkv_HJAD": P(None, "model"), "b_qkv_HJA": P(None, "model"), "W_o_DE": P(None, None, "model"),
    "W_in_JMD": P(None, None, "model"), "b_in_JM": P(None, None, "model"), "W_out_DM": P(None, None, "model"),
    "W_embed_VD": P("model"), "W_unembed_VD": P("model"),
}
_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu, "gelu": functools.partial(jax.nn.gelu, approximate=False), "gelu_tanh": jax.nn.gelu,
    "relu": jax.nn.relu}
Visit = Callable[[str, jax.Array], jax.Array]


def layer_shapes(a: Architecture) -> dict[str, tuple[int, ...]]:
  """The shapes of one layer's parameters, by name."""
  d, m, h, j, width = a.d_model, a.d_mlp, a.n_key_heads, a.group, a.head_width
  gates, has_bias = 2 if a.gated else 1, a.norm == "layer"
  shapes: dict[str, tuple[int, ...]] = {"gain_attn_D": (d,), "W_qkv_HJAD": (h, j + 2, width, d),
                                        "W_o_DE": (d, h * j * width), "gain_mlp_D": (d,), "W_in_JMD": (gates, m, d),
                                        "W_out_DM": (d, m)}
  if has_bias:
    shapes |= {"bias_attn_D": (d,), "bias_mlp_D": (d,)}
  if a.qkv_bias:
    shapes["b_qkv_HJA"] = (h, j + 2, width)
  if a.out_bias:
    shapes["b_o_D"] = (d,)
  if a.mlp_bias:
    shapes |= {"b_in_JM": (gates, m), "b_out_D": (d,)}
  if a.qk_norm:
    shapes |= {"gain_q_A": (width,), "gain_k_A": (width,)}
  if a.post_norms:
    shapes |= {"gain_attn_out_D": (d,), "gain_mlp_out_D": (d,)}
  return shapes


def outer_shapes(a: Architecture, with_head: bool) -> dict[str, tuple[int, ...]]:
  """The shapes of the parameters outside of layers, by name; those after the last layer only `with_head`."""
  shapes: dict[str, tuple[int, ...]] = {"W_embed_VD": (a.vocab_size, a.d_model)}
  if a.learned_positions:
    shapes["W_position_TD"] = (a.max_context, a.d_model)
  if a.norm_embedding:
    shapes |= {"gain_embed_D": (a.d_model,), "bias_embed_D": (a.d_model,)}
  if a.n_types:
    shapes["W_type_SD"] = (a.n_types, a.d_model)
  if with_head and a.norm_first:
    shapes["gain_D"] = (a.d_model,)
    if a.norm == "layer":
      shapes["bias_D"] = (a.d_model,)
  if with_head and a.causal and not a.tied:
    shapes["W_unembed_VD"] = (a.vocab_size, a.d_model)
  return shapes


def param_shapes(a: Architecture, n_loaded: int, dtype: Any) -> dict[str, Any]:
  """The tree of parameters of a model of which so many layers are loaded, as shape structs."""
  struct = lambda shapes, *axes: {name: jax.ShapeDtypeStruct((*axes, *shape), dtype) for name, shape in shapes.items()}
  return {**struct(outer_shapes(a, n_loaded == a.n_layers)), "layers": struct(layer_shapes(a), n_loaded)}


class PretrainedTransformer(nn.Module):
  """A subject (see the contract in `subject.py`) of any family of pretrained transformers.

  Its sites are `embed`, the first residual stream; for each layer L `layer.L.attn.in`, `.attn.z` (heads side by side,
  before the output map), `.attn.out` (what is added to the residual stream), `.mid` (the stream between attention and
  MLP; not where both are parallel), `.mlp.in`, `.mlp.hidden`, `.mlp.out` and `.resid`; and `final.in`, what the last
  norm gives. Families that norm what they add have `.attn.out_raw` and `.mlp.out_raw`, which is before that norm.

  Attributes:
    architecture: the switches.
    dtype: the dtype of activations and of the operands of matrix products.
    n_loaded: the layers that there are parameters of, from the first; fewer than all layers have no head, and logits
      are then None.
    freeze: whether the scales of norms and the patterns of attention are constants to derivatives: see `frozen`.
  """
  architecture: Architecture
  dtype: Any = jnp.float32
  n_loaded: int = 0
  freeze: bool = False

  @property
  def n_vocab(self) -> int:
    return self.architecture.vocab_size

  @property
  def max_context(self) -> int | None:
    return self.architecture.max_context

  @property
  def n_heads(self) -> int:
    return self.architecture.n_heads

  @property
  def sharding_rules(self) -> Mapping[str, P]:
    return _SHARDING_RULES

  @property
  def output(self) -> Literal["logits", "embedding"]:
    return "logits" if self.architecture.causal else "embedding"

  @property
  def depends_on_length(self) -> bool:
    a = self.architecture
    return not a.learned_positions and any(r.depends_on_length for r in (a.rotary, a.local_rotary))

  @property
  def site_widths(self) -> dict[str, int]:
    return self.architecture.site_widths

  @property
  def whole(self) -> bool:
    """Whether all layers are loaded, and the head after them."""
    return self.n_loaded == self.architecture.n_layers

  @nn.nowrap
  def logit_path(self, params: dict, site: str) -> LogitPath | None:
    a = self.architecture
    kind = site.split(".", 2)[-1]
    normed = {"attn.z", "mlp.hidden", "attn.out_raw", "mlp.out_raw"} if a.post_norms else set()
    if not (self.whole and a.causal) or kind.endswith("in") or kind in normed:
      return None
    into = {"mlp.hidden": "W_out_DM", "attn.z": "W_o_DE"}.get(kind)
    to_residual_MD = None if into is None else params["layers"][into][int(site.split(".")[1])].T
    W_unembed_VD = params["W_embed_VD" if a.tied else "W_unembed_VD"]
    last = f"layer.{a.n_layers - 1}."
    # What of the last layer goes into the residual stream and nowhere else.
    unread = {"mlp.hidden", "mlp.out", "resid"} | ({"attn.z", "attn.out"} if a.parallel else set())
    return LogitPath(to_residual_MD, "layer" if a.norm == "layer" else "rms", params["gain_D"] + a.norm_offset,
                     W_unembed_VD.T, f"{last}resid", site.startswith(last) and kind in unread, a.norm_epsilon,
                     params.get("bias_D"), a.logit_cap)

  @nn.nowrap
  def new_cache(self, n_contexts: int, n_positions: int) -> Cache | None:
    a = self.architecture
    if not a.causal:
      return None
    empty = jnp.zeros((self.n_loaded, n_contexts, n_positions, a.n_key_heads, a.head_width), self.dtype)
    return {"k": empty, "v": empty, "length": jnp.zeros((), jnp.int32)}

  @nn.nowrap
  def frozen(self) -> "PretrainedTransformer":
    return self.clone(freeze=True)

  @nn.nowrap
  def extend(self, variables: dict, cache: Cache, tokens_BT: jax.Array,
             edit: Edit | None = None) -> tuple[jax.Array, Cache]:
    logits_BTV, _, cache = self.apply(variables, tokens_BT, edit, wanted=(), cache=cache)
    return logits_BTV, cache

  @nn.compact
  def __call__(self, tokens_BT: jax.Array, edit: Edit | None = None, *, wanted: Collection[str] | None = None,
               cache: Cache | None = None) -> Any:
    """(logits, sites), and the filled cache where one is given; see `Subject.apply` and `Subject.extend`."""
    a = self.architecture
    params = {name: self.param(name, _initial(name), shape)
              for name, shape in outer_shapes(a, self.n_loaded == a.n_layers).items()}
    shapes = {name: (self.n_loaded, *shape) for name, shape in layer_shapes(a).items()}
    layers = self.param("layers", lambda key: {name: _initial(name)(jax.random.fold_in(key, i), shape)
                                               for i, (name, shape) in enumerate(sorted(shapes.items()))})
    known = [name for name in a.site_widths if self.whole or layer_of(name) < self.n_loaded]
    wanted, edit = known if wanted is None else tuple(wanted), edit or {}
    if unknown := sorted({*edit, *wanted}.difference(known)):
      raise ValueError(f"there is no site {unknown}; this subject's sites are {known}")
    return _Pass(a, self.dtype, self.freeze, params, layers, edit, frozenset(wanted)).run(tokens_BT, cache, self.whole)


def _initial(name: str) -> Callable[..., jax.Array]:
  """How a parameter starts where none are loaded: matrices at random, biases at 0, gains where they do nothing."""
  if name.startswith("W_"):
    return lambda key, shape: 0.02 * jax.random.normal(key, shape)
  return lambda key, shape: jnp.full(shape, float(name.startswith("gain")))


def layer_of(site: str) -> int:
  """The layer that a site is in; -1 before the first, and a large number after the last."""
  parts = site.split(".")
  return int(parts[1]) if parts[0] == "layer" else -1 if site == "embed" else 1 << 30


class _Pass:
  """One forward pass, while it is traced.

  Attributes:
    a, dtype, freeze: of the model.
    params, layers: parameters outside of layers, and those of all layers.
    edit, wanted: see `Subject.apply`.
    sites: the wanted activations found so far.
  """

  def __init__(self, a: Architecture, dtype: Any, freeze: bool, params: Mapping[str, jax.Array],
               layers: dict[str, jax.Array], edit: Edit, wanted: frozenset[str]):
    self.a, self.dtype, self.freeze, self.edit, self.wanted = a, dtype, freeze, edit, wanted
    self.params, self.layers = params, layers
    self.sites: Sites = {}

  def run(self, tokens_BT: jax.Array, cache: Cache | None, whole: bool) -> Any:
    """The pass over tokens, behind those that are in the cache."""
    a, n_positions = self.a, tokens_BT.shape[1]
    self.shape = tokens_BT.shape
    start = jnp.zeros((), jnp.int32) if cache is None else cache["length"]
    self.position_T = start + jnp.arange(n_positions, dtype=jnp.int32)
    self.n_keys = n_positions if cache is None else cache["k"].shape[2]
    self.seen_BS = tokens_BT != a.pad_id if not a.causal and a.pad_id >= 0 else None
    self.rotations = [rotation(r.frequencies(a.head_width, self.n_keys), self.position_T, self.dtype)
                      for r in (a.rotary, a.local_rotary)] if not a.learned_positions else None
    x_ND = self._embed(tokens_BT)
    memory = None if cache is None else (cache["k"], cache["v"])
    n_loaded = len(self.layers["W_o_DE"])
    alone = {layer_of(name) for name in {*self.edit, *self.wanted}}
    for first, last in _stretches(n_loaded, alone):
      if last - first == 1 and first in alone:
        visit = lambda name, value, i=first: self._visit(f"layer.{i}.{name}", value)
        x_ND, memory = self._block(first, {name: p[first] for name, p in self.layers.items()}, x_ND, memory, visit)
      else:
        x_ND, memory = self._loop(first, last, x_ND, memory)
    output = self._output(x_ND, tokens_BT) if whole else None
    if cache is None or memory is None:
      return output, self.sites
    return output, self.sites, {"k": memory[0], "v": memory[1], "length": start + n_positions}

  def _visit(self, name: str, value_ND: jax.Array) -> jax.Array:
    """Replaces the activation at a site if it is edited, and keeps it if it is wanted."""
    if name not in self.edit and name not in self.wanted:
      return value_ND
    value_BTD = value_ND.reshape(*self.shape, -1)
    if name in self.edit:
      value_BTD = self.edit[name](value_BTD)
    if name in self.wanted:
      self.sites[name] = value_BTD
    return value_BTD.reshape(value_ND.shape)

  def _embed(self, tokens_BT: jax.Array) -> jax.Array:
    a = self.a
    x_ND = self.params["W_embed_VD"][tokens_BT.reshape(-1)].astype(self.dtype)
    if a.embedding_scale != 1.0:
      x_ND = x_ND * jnp.asarray(a.embedding_scale, self.dtype)
    if a.n_types:
      x_ND = x_ND + self.params["W_type_SD"][:1].astype(self.dtype)
    if a.learned_positions:
      position_TD = self.params["W_position_TD"][self.position_T].astype(self.dtype)
      x_ND = (x_ND.reshape(*self.shape, -1) + position_TD[None]).reshape(x_ND.shape)
    if a.norm_embedding:
      x_ND = self._norm(x_ND, self.params["gain_embed_D"], self.params["bias_embed_D"])
    return self._visit("embed", x_ND)

  def _loop(self, first: int, last: int, x_ND: jax.Array, memory: Any) -> tuple[jax.Array, Any]:
    """Layers first..last-1 in one compiled loop, which reads each layer's parameters where they lie."""
    def body(carry, i):
      p = jax.tree.map(lambda stack: jax.lax.dynamic_index_in_dim(stack, i, keepdims=False), self.layers)
      x_ND, memory = carry
      return self._block(i, p, x_ND, memory, lambda name, value: value), None
    return jax.lax.scan(body, (x_ND, memory), jnp.arange(first, last))[0]

  def _block(self, i: Any, p: Mapping[str, jax.Array], x_ND: jax.Array, memory: Any,
             visit: Visit) -> tuple[jax.Array, Any]:
    """The residual stream after layer `i`, and the cache with that layer's keys and values."""
    a = self.a
    norm = lambda x, name: self._norm(x, p[f"gain_{name}_D"], p.get(f"bias_{name}_D"))
    u_ND = visit("attn.in", norm(x_ND, "attn") if a.norm_first else x_ND)
    z_NE, memory = self._attention(i, p, u_ND, memory)
    out_ND = self._linear(visit("attn.z", z_NE), p["W_o_DE"], p.get("b_o_D"))
    if a.post_norms:
      out_ND = norm(visit("attn.out_raw", out_ND), "attn_out")
    attention_ND = visit("attn.out", out_ND)
    if not a.parallel:
      x_ND = x_ND + attention_ND
      x_ND = visit("mid", x_ND if a.norm_first else norm(x_ND, "attn"))
    u_ND = visit("mlp.in", norm(x_ND, "mlp") if a.norm_first else x_ND)
    hidden_NM = visit("mlp.hidden", self._hidden(p, u_ND))
    out_ND = self._linear(hidden_NM, p["W_out_DM"], p.get("b_out_D"))
    if a.post_norms:
      out_ND = norm(visit("mlp.out_raw", out_ND), "mlp_out")
    x_ND = x_ND + visit("mlp.out", out_ND)
    if a.parallel:
      x_ND = x_ND + attention_ND
    return visit("resid", x_ND if a.norm_first else norm(x_ND, "mlp")), memory

  def _attention(self, i: Any, p: Mapping[str, jax.Array], u_ND: jax.Array, memory: Any) -> tuple[jax.Array, Any]:
    """What each head reads from the positions that it looks at, heads side by side."""
    a = self.a
    n_columns, _, width, _ = p["W_qkv_HJAD"].shape
    qkv_NX = self._linear(u_ND, p["W_qkv_HJAD"].reshape(-1, a.d_model),
                          p["b_qkv_HJA"].reshape(-1) if a.qkv_bias else None)
    qkv_BTHJA = qkv_NX.reshape(*self.shape, n_columns, a.group + 2, width)
    q_BTHJA, k_BTHA, v_BTHA = qkv_BTHJA[..., :-2, :], qkv_BTHJA[..., -2, :], qkv_BTHJA[..., -1, :]
    if a.qk_norm:
      q_BTHJA, k_BTHA = self._norm(q_BTHJA, p["gain_q_A"]), self._norm(k_BTHA, p["gain_k_A"])
    is_local = jnp.asarray(a.local_layers)[i] if any(a.local_layers) else False
    if self.rotations:
      everywhere, local = self.rotations
      cos_TA, sin_TA = (everywhere if is_local is False else
                        jax.tree.map(lambda here, there: jnp.where(is_local, here, there), local, everywhere))
      q_BTHJA = rotate(q_BTHJA, cos_TA[:, None, None], sin_TA[:, None, None])
      k_BTHA = rotate(k_BTHA, cos_TA[:, None], sin_TA[:, None])
    k_BSHA, v_BSHA = k_BTHA, v_BTHA
    if memory is not None:
      at = (i, 0, self.position_T[0], 0, 0)
      memory = tuple(jax.lax.dynamic_update_slice(stack, new[None], at)
                     for stack, new in zip(memory, (k_BTHA, v_BTHA), strict=True))
      k_BSHA, v_BSHA = (jax.lax.dynamic_index_in_dim(stack, i, keepdims=False) for stack in memory)
    z_BTHJA = attend(q_BTHJA, k_BSHA, v_BSHA, self.position_T, a, is_local, self.seen_BS, memory is None,
                      self.freeze)
    return z_BTHJA.reshape(len(u_ND), -1), memory

  def _hidden(self, p: Mapping[str, jax.Array], u_ND: jax.Array) -> jax.Array:
    """The hidden layer of the MLP, after its activation function and its gate."""
    a = self.a
    pre_NX = self._linear(u_ND, p["W_in_JMD"].reshape(-1, a.d_model), p["b_in_JM"].reshape(-1) if a.mlp_bias else None)
    act = _ACTIVATIONS[a.activation]
    if not a.gated:
      return act(pre_NX)
    gate_NM, up_NM = jnp.split(pre_NX, 2, axis=-1)
    return act(gate_NM) * up_NM

  def _output(self, x_ND: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """The logits, float32; of a model that is not causal, each context's embedding."""
    a = self.a
    u_ND = self._norm(x_ND, self.params["gain_D"], self.params.get("bias_D")) if a.norm_first else x_ND
    u_ND = self._visit("final.in", u_ND)
    if not a.causal:
      return embedding(u_ND.reshape(*self.shape, -1), tokens_BT != a.pad_id)
    W_unembed_VD = self.params["W_embed_VD" if a.tied else "W_unembed_VD"]
    logits_NV = matmul(u_ND, W_unembed_VD.T, self.dtype)
    if a.logit_cap:
      logits_NV = a.logit_cap * jnp.tanh(logits_NV / a.logit_cap)
    return logits_NV.reshape(*self.shape, -1)

  def _linear(self, x_NI: jax.Array, W_OI: jax.Array, b_O: jax.Array | None) -> jax.Array:
    y_NO = matmul(x_NI, W_OI.T, self.dtype).astype(self.dtype)
    return y_NO if b_O is None else y_NO + b_O.astype(self.dtype)[None]

  def _norm(self, x: jax.Array, gain_D: jax.Array, bias_D: jax.Array | None = None) -> jax.Array:
    return norm(x, gain_D, bias_D, self.a, self.freeze)


def _stretches(n_layers: int, alone: set[int]) -> list[tuple[int, int]]:
  """The layers as (first, last + 1): each of `alone` by itself, those between together.

  For instance, of 6 layers with 2 alone: (0, 2), (2, 3), (3, 6).
  """
  edges = sorted({0, n_layers, *(edge for i in alone if 0 <= i < n_layers for edge in (i, i + 1))})
  return list(zip(edges[:-1], edges[1:], strict=True))


def norm(x: jax.Array, gain_D: jax.Array, bias_D: jax.Array | None, a: Architecture,
         freeze: bool = False) -> jax.Array:
  """LayerNorm or RMSNorm over the last axis, in float32; with `freeze` its scale is a constant to derivatives."""
  value = x.astype(jnp.float32)
  if a.norm == "layer":
    value = value - value.mean(-1, keepdims=True)
  scale = jax.lax.rsqrt(jnp.square(value).mean(-1, keepdims=True) + a.norm_epsilon)
  value = value * (jax.lax.stop_gradient(scale) if freeze else scale)
  shape = (1,) * (x.ndim - 1) + (-1,)
  value = value * (gain_D.astype(jnp.float32) + a.norm_offset).reshape(shape)
  if bias_D is not None:
    value = value + bias_D.astype(jnp.float32).reshape(shape)
  return value.astype(x.dtype)


def embedding(x_BTD: jax.Array, real_BT: jax.Array) -> jax.Array:
  """The embedding of each context, (B, D): the mean over its real tokens, scaled to unit length."""
  real_BT1 = real_BT[..., None].astype(jnp.float32)
  mean_BD = (x_BTD.astype(jnp.float32) * real_BT1).sum(1) / jnp.maximum(real_BT1.sum(1), 1.0)
  return mean_BD / jnp.maximum(jnp.linalg.norm(mean_BD, axis=1, keepdims=True), 1e-12)
