"""The circuit of one feature at one token: the tokens that it comes from, head by head, and the next tokens it raises.

A feature comes from what the layer before it reads at each token: the residual stream, which in a subject of one layer
is the token's embedding. Weights are taken in the subject with its norms' scales and attention patterns held fixed
(`Subject.frozen`). What lies between two MLPs is then linear, and weights are exact: they are what a term of a sum
contributes. Through an MLP they are gradient times activation, a first-order estimate. So beside each weight there is
what really changes when the term is taken out, with everything behind it computed anew.

Letters: T positions of a text, V vocabulary, H heads, D width of the residual stream, A width of all heads side by
side, M width read, O width written, K sources.
"""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from monojax.activations.kept import EVERY, Kept
from monojax.analysis.fidelity import make_encode, side_by_side
from monojax.analysis.interventions import Wired, wired
from monojax.analysis.tables import FeatureTables
from monojax.config import require
from monojax.sae.dictionary import SAE
from monojax.subjects.sample import bucket
from monojax.subjects.subject import LoadedSubject, Subject
from monojax.text.tokens import Tokens


class Source(typing.NamedTuple):
  """A token of the text that a feature's pre-activation comes from.

  Attributes:
    position: of the token in the text, from 0.
    token: the token.
    weight: what the residual stream at this token, as the circuit's layer finds it, contributes to the feature's
      pre-activation.
    by_head: the part of it that a head of this layer has moved to the feature's token, for each head.
    past: the part that has come past the heads, which only the feature's own token has.
    removed: how far the pre-activation falls if the residual stream is 0 there, and all behind it is computed anew,
      patterns of attention and norms included.
  """
  position: int
  token: str
  weight: float
  by_head: tuple[float, ...]
  past: float
  removed: float


class Raised(typing.NamedTuple):
  """A token that a feature raises right after its own.

  Attributes:
    token: the token.
    weight: what the feature contributes to its logit, less the mean over the vocabulary.
    removed: how far that logit, less the mean over the vocabulary, falls if the feature is removed at its token.
  """
  token: str
  weight: float
  removed: float


@dataclasses.dataclass(frozen=True)
class Circuit:
  """What a feature comes from at one token of a text, and what it does to the next.

  Attributes:
    feature: its number.
    tokens: the text up to the feature's token, which is the last one.
    activation: the feature's activation there.
    pre_activation: what its unit computes there before its non-linearity: the sum of all sources' weights and `rest`.
    rest: what comes of no token: of biases, and, where there is an MLP on the way, of its non-linearity.
    layer: the layer that is taken apart, the last one with attention before the feature; None if there is none.
    sources: the tokens with the largest weights, of either sign, the largest first.
    raised: the tokens that it raises most, by what is removed without it.
  """
  feature: int
  tokens: list[str]
  activation: float
  pre_activation: float
  rest: float
  layer: int | None
  sources: list[Source]
  raised: list[Raised]

  def to_dict(self) -> dict[str, typing.Any]:
    """A graph, ready for JSON: {"nodes": [...], "edges": [...]} and the numbers about the feature.

    A node has an "id" and a "kind": "token" (of the text), "feature" or "next" (a token that could follow). An edge
    leads "from" one "to" another with a "weight"; one from a token says by which "head", or None for past the heads.
    """
    feature = f"feature {self.feature}"
    nodes: list[dict[str, typing.Any]] = [
        {"id": f"token {source.position}", "kind": "token", "position": source.position, "token": source.token,
         "weight": source.weight, "removed": source.removed} for source in self.sources]
    nodes.append({"id": feature, "kind": "feature", "feature": self.feature, "position": len(self.tokens) - 1,
                  "activation": self.activation, "pre_activation": self.pre_activation, "rest": self.rest})
    nodes += [{"id": f"next {i}", "kind": "next", "token": raised.token} for i, raised in enumerate(self.raised)]
    edges: list[dict[str, typing.Any]] = []
    for source in self.sources:
      parts = [*enumerate(source.by_head), (None, source.past)]
      edges += [{"from": f"token {source.position}", "to": feature, "layer": self.layer, "head": head, "weight": weight}
                for head, weight in parts if weight]
    edges += [{"from": feature, "to": f"next {i}", "weight": raised.weight, "removed": raised.removed}
              for i, raised in enumerate(self.raised)]
    return {"feature": self.feature, "layer": self.layer, "tokens": self.tokens, "nodes": nodes, "edges": edges}

  def __str__(self) -> str:
    lines = [f"feature {self.feature} on {self.tokens[-1]!r}, token {len(self.tokens) - 1}: activation "
             f"{self.activation:.3f}, pre-activation {self.pre_activation:.3f}, of which {self.rest:.3f} of no token",
             "", f"{'comes from':<26}{'weight':>9}{'removed':>9}   by way of"]
    for source in self.sources:
      parts = sorted([*((abs(weight), f"head {head} {weight:+.3f}") for head, weight in enumerate(source.by_head)),
                      (abs(source.past), f"past the heads {source.past:+.3f}")], reverse=True)
      ways = ", ".join(text for size, text in parts[:3] if size > 0.005 * max(abs(source.weight), 1e-9))
      lines.append(f"{source.position:>5} {source.token!r:<20}{source.weight:>+9.3f}{source.removed:>+9.3f}   {ways}")
    if self.raised:
      lines += ["", f"{'raises':<26}{'weight':>9}{'removed':>9}"]
      lines += [f"      {raised.token!r:<20}{raised.weight:>+9.3f}{raised.removed:>+9.3f}" for raised in self.raised]
    return "\n".join(lines)


def circuit(subject: LoadedSubject, sae: SAE, ids: list[int], feature: int, token_strings: list[str],
            kept: Kept = EVERY, n_listed: int = 10, used_V: np.ndarray | None = None) -> Circuit:
  """The circuit of a feature at the last token of a text.

  Args:
    subject, sae: the subject and its dictionary.
    ids: token ids of the text.
    feature: the feature's number.
    token_strings: a string for each token id.
    kept: the positions that count.
    n_listed: how many sources, and how many raised tokens, are listed at most.
    used_V: bool, the tokens that can be listed as raised; by default all. What a feature does to tokens that the
      subject has hardly seen means little.

  Raises:
    InputError: the feature does not fire at the last token, or the subject reads in both directions.
  """
  require(subject.model.output == "logits", "subject", "an encoder", "reads texts in both directions and predicts no "
          "tokens: a feature in it has no circuit from earlier tokens to later ones")
  n_tokens, last = len(ids), len(ids) - 1
  room = n_tokens if subject.model.depends_on_length else min(bucket(n_tokens), subject.n_context)
  padded_1T = np.zeros((1, max(n_tokens, room)), np.int32)
  padded_1T[0, :n_tokens] = ids  # nothing that stands behind the last token changes what is computed there
  encode = make_encode(subject.model, sae.model, sae.reads, kept)
  activation = float(encode(subject.params, sae.params, padded_1T)[0][last, feature])
  strings = [token_strings[i] for i in ids]
  require(activation > 0, "feature", feature, f"does not fire on the last token, {strings[-1]!r}")
  layer, site, base = heads_before(subject.model, sae.reads)
  dictionary = wired(sae, kept)
  pre_activation, weight_HT = source_weights(subject, sae, padded_1T, last, feature, kept)
  weight_T = weight_HT.sum(0)
  chosen_K = np.argsort(-np.abs(weight_T), kind="stable")[:n_listed]
  without = _without_sources(subject.model, dictionary, base)
  removed_K = pre_activation - np.asarray(without(subject.params, sae.params, padded_1T, np.resize(chosen_K, n_listed),
                                                  last, feature))[:len(chosen_K)]
  sources = [Source(int(i), strings[i], float(weight_T[i]), tuple(weight_HT[:-1, i].tolist()) if site else (),
                    float(weight_HT[-1, i]), float(removed)) for i, removed in zip(chosen_K, removed_K, strict=True)]
  logit_V, removed_V = (np.asarray(part_V, np.float64) for part_V in _raised_by(subject.model, dictionary)(
      subject.params, sae.params, padded_1T, last, feature))
  usable = np.flatnonzero((np.ones(len(logit_V), bool) if used_V is None else used_V)[:len(token_strings)])
  first_K = usable[np.argsort(-removed_V[usable], kind="stable")[:n_listed]]
  raised = [Raised(token_strings[i], float(logit_V[i]), float(removed_V[i])) for i in first_K.tolist()]
  return Circuit(feature, strings, activation, pre_activation, pre_activation - float(weight_T.sum()), layer, sources,
                 raised)


def source_weights(subject: LoadedSubject, sae: SAE, tokens_1T: np.ndarray, position: int, feature: int,
                   kept: Kept = EVERY) -> tuple[float, np.ndarray]:
  """(a feature's pre-activation at a position, what it comes from), whether or not the feature fires there.

  Args:
    subject, sae, feature, kept: as for `circuit`.
    tokens_1T: token ids of the text; those behind the position change nothing.
    position: where.

  Returns:
    The weights are float64 (H + 1, position + 1): by way of each head, and past the heads, from each token.
  """
  _, site, base = heads_before(subject.model, sae.reads)
  found = _sources_of(subject.model, wired(sae, kept), site, base)(subject.params, sae.params, tokens_1T, position,
                                                                  feature)
  return float(found[0]), np.asarray(found[1], np.float64)[:, :position + 1]


def heads_before(subject: Subject, reads: tuple[str, ...]) -> tuple[int | None, str, str]:
  """(layer, site of its heads, site of the residual stream before it) of the last heads that a dictionary can have
  read; (None, "", "embed") if there are none."""
  order = list(subject.site_widths)
  last = max(map(order.index, reads))
  sites = [site for site in order[:last + 1] if site.startswith("layer.") and site.endswith(".attn.z")]
  if not sites:
    return None, "", "embed"
  layer = int(sites[-1].split(".")[1])
  return layer, sites[-1], f"layer.{layer - 1}.resid" if layer else "embed"


def _pre_activation(dictionary: Wired, sae_params: dict, sites: dict, at: jax.Array, feature: jax.Array) -> jax.Array:
  """A feature's pre-activation at one position of each context, (B,); to be traced."""
  x_BTM = jnp.concatenate([sites[name] for name in dictionary.reads], axis=-1).astype(jnp.float32)
  h_BF = dictionary.model.apply({"params": sae_params}, jnp.take(x_BTM, at, axis=1), method="pre_activations")
  return jnp.take(h_BF, feature, axis=1)


@functools.lru_cache(maxsize=8)
def _sources_of(subject: Subject, dictionary: Wired, site: str, base: str) -> typing.Callable:
  """The compiled function (params, sae_params, tokens_1T, at, feature) -> (pre-activation, weights).

  Weights (H + 1, T) are what the activation at the site `base` contributes through each head of `site`, and past them.
  They are gradient times activation. For each head, derivatives go through the numbers of that head alone.
  """
  frozen, n_heads = subject.frozen(), subject.n_heads if site else 0

  @jax.jit
  def run(params, sae_params, tokens_1T, at, feature):
    base_1TD = subject.apply({"params": params}, tokens_1T, wanted=(base,))[1][base]

    def pre_activation(base_1TD, open_A):
      edit = {base: lambda x: base_1TD}
      if site:
        still = jax.lax.stop_gradient
        edit[site] = lambda z: still(z) + (open_A * (z - still(z)).astype(jnp.float32)).astype(z.dtype)
      _, sites = frozen.apply({"params": params}, tokens_1T, edit, wanted=dictionary.reads)
      return _pre_activation(dictionary, sae_params, sites, at, feature)[0]

    def weights(open_A):
      value, gradient_1TD = jax.value_and_grad(pre_activation)(base_1TD, open_A[None, None])
      return value, (gradient_1TD.astype(jnp.float32) * base_1TD.astype(jnp.float32)).sum(-1)[0]
    width = subject.site_widths[site] // n_heads if site else 1
    open_HA = jnp.repeat(jnp.eye(n_heads + 1, n_heads), width, axis=1)  # a row for each head; the last one closes all
    value_H, weight_HT = jax.lax.map(weights, open_HA)
    # What comes past the heads is in every row, whichever head is open.
    return value_H[-1], jnp.concatenate([weight_HT[:-1] - weight_HT[-1:], weight_HT[-1:]])
  return run


@functools.lru_cache(maxsize=8)
def _without_sources(subject: Subject, dictionary: Wired, base: str) -> typing.Callable:
  """The compiled function (params, sae_params, tokens_1T, source_K, at, feature) -> pre-activations (K,), each with the
  site `base` set to 0 at one of the tokens."""
  @jax.jit
  def run(params, sae_params, tokens_1T, source_K, at, feature):
    base_1TD = subject.apply({"params": params}, tokens_1T, wanted=(base,))[1][base]

    def one(source):
      here_1T1 = (jnp.arange(tokens_1T.shape[1]) == source)[None, :, None]
      _, sites = subject.apply({"params": params}, tokens_1T, {base: lambda x: jnp.where(here_1T1, 0, base_1TD)},
                               wanted=dictionary.reads)
      return _pre_activation(dictionary, sae_params, sites, at, feature)[0]
    return jax.lax.map(one, source_K)
  return run


@functools.lru_cache(maxsize=8)
def _raised_by(subject: Subject, dictionary: Wired) -> typing.Callable:
  """The compiled function (params, sae_params, tokens_1T, at, feature) -> (weights_V, removed_V); see `Raised`."""
  frozen = subject.frozen()

  @jax.jit
  def run(params, sae_params, tokens_1T, at, feature):
    _, sites = subject.apply({"params": params}, tokens_1T, wanted={*dictionary.reads, *dictionary.writes})
    x_1M = jnp.take(side_by_side(sites, dictionary.reads), at[None], axis=0)
    f_11 = jnp.take(dictionary.model.apply({"params": sae_params}, x_1M, method="encode"), feature[None], axis=1)
    added_O = dictionary.model.apply({"params": sae_params}, f_11, feature[None], x_1M, method="change")[0]
    parts = zip(dictionary.writes, dictionary.model.wiring.written(), strict=True)
    columns = {site: slice(first, last) for site, (first, last) in parts}
    here_T = jnp.arange(tokens_1T.shape[1]) == at

    def logits(model, times):
      """Logits (V,) at the position with the feature's part added so many times."""
      def edited(_, site, added):  # what is added to a site before this one would be in x as well
        return sites[site] + (times * here_T[None, :, None] * added[None, None]).astype(sites[site].dtype)
      edit = {site: functools.partial(edited, site=site, added=added_O[part]) for site, part in columns.items()}
      logits_1TV, _ = model.apply({"params": params}, tokens_1T, edit, wanted=())
      logit_V = jnp.take(logits_1TV[0], at, axis=0)
      return logit_V - logit_V.mean()
    now_V, backward = jax.vjp(functools.partial(logits, frozen), 0.0)
    # The derivative of all logits by one number. Products of the subjects have gradients backwards alone; a gradient is
    # linear in what comes from behind, and its own gradient by that is the derivative forwards.
    weight_V = jax.grad(lambda g_V: backward(g_V)[0])(jnp.zeros_like(now_V))
    return weight_V, now_V - logits(subject, -1.0)
  return lambda params, sae_params, tokens_1T, at, feature: run(params, sae_params, tokens_1T, jnp.int32(at),
                                                                jnp.int32(feature))


def strongest_example(tokens: Tokens, tables: FeatureTables, feature: int, n_context: int) -> list[int]:
  """The token ids of the context in which a feature is strongest on the analysed text, up to its token.

  Args:
    tokens: the analysed text, in which the tables know where examples are.
    tables: the dictionary's analysis.
    feature: the feature's number.
    n_context: the tokens of a context.

  Raises:
    InputError: the feature does not fire on that text, or the analysis does not know where its examples are.
  """
  require(tables.has("example_position_FE"), "text", None, "this analysis was made by monojax before 0.2, which did "
          "not keep where examples are: give a text on which the feature fires")
  position = int(tables.example_position_FE[feature, 0])
  require(position >= 0, "feature", feature, "never fires on the analysed text: give a text on which it does")
  n_prefix = len(tokens.prefix)
  context, place = divmod(position, n_context - n_prefix)
  return tokens.context(np.array([context]), n_context)[0, :place + n_prefix + 1].tolist()
