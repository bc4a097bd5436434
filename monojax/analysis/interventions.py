"""What features do to a text: splicing a dictionary into its subject, removing features, and steering with them.

Each intervention reads the features in the subject as it is, and then runs the subject again with the sites that the
dictionary writes changed. When single features are changed, the reconstruction's error is kept: an activation y becomes
y + (f' - f) W_dec, where f are the features that the dictionary finds and f' those put in their place.

Letters: T positions of one text, F features, O width of the sites written, V vocabulary.
"""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from monojax.activations.kept import EVERY, Kept
from monojax.analysis.fidelity import side_by_side
from monojax.sae.dictionary import SAE
from monojax.sae.model import Dictionary
from monojax.subjects.loss import next_token_loss
from monojax.subjects.sample import sample
from monojax.subjects.subject import LoadedSubject, Subject


class Wired(typing.NamedTuple):
  """What a compiled function depends on: a dictionary's model, the names of its sites, and where it is put in place."""
  model: Dictionary
  reads: tuple[str, ...]
  writes: tuple[str, ...]
  kept: Kept = EVERY


def wired(sae: SAE, kept: Kept = EVERY) -> Wired:
  """The parts of a dictionary that a compiled function depends on; only positions `kept` are changed."""
  return Wired(sae.model, sae.reads, sae.writes, kept)


def spliced_logits(subject: Subject, dictionary: Wired, params: dict, sae_params: dict,
                   tokens_1T: jax.Array) -> jax.Array:
  """Logits (1, T, V) with the dictionary's reconstruction in the place of the sites that it writes; to be traced."""
  _, sites = subject.apply({"params": params}, tokens_1T, wanted={*dictionary.reads, *dictionary.kept.sites})
  y_NO, _ = dictionary.model.apply({"params": sae_params}, side_by_side(sites, dictionary.reads))
  return _with_written(subject, dictionary, params, tokens_1T, y_NO, sites)


def steered_logits(subject: Subject, dictionary: Wired, params: dict, sae_params: dict, tokens_1T: jax.Array,
                   feature_J: jax.Array, value_J: jax.Array) -> jax.Array:
  """Logits (1, T, V) with some features held at given values at every position; to be traced."""
  change = _change(dictionary, sae_params, feature_J, value_J)
  if reads_first(dictionary, subject):
    edit = _steering_edit(dictionary, change, tokens_1T, 0)
    return subject.apply({"params": params}, tokens_1T, edit, wanted=())[0]
  wanted = {*dictionary.reads, *dictionary.writes, *dictionary.kept.sites}
  _, sites = subject.apply({"params": params}, tokens_1T, wanted=wanted)
  y_NO = side_by_side(sites, dictionary.writes) + change(side_by_side(sites, dictionary.reads))
  return _with_written(subject, dictionary, params, tokens_1T, y_NO, sites)


def reads_first(dictionary: Wired, subject: Subject) -> bool:
  """Whether all that the dictionary reads is computed before anything that it writes.

  It is so for autoencoders of one site and for transcoders, and lets one pass do what otherwise takes two.
  """
  order = list(subject.site_widths)
  return max(map(order.index, dictionary.reads)) <= min(map(order.index, dictionary.writes))


def _change(dictionary, sae_params, feature_J, value_J):
  """The function x_NM -> what holding some features at given values adds to what is written, (N, O)."""
  def change(x_NM):
    f_NF = dictionary.model.apply({"params": sae_params}, x_NM, method="encode")
    change_NJ = value_J[None] - f_NF[:, feature_J]
    return dictionary.model.apply({"params": sae_params}, change_NJ, feature_J, x_NM, method="change")
  return change


def _steering_edit(dictionary, change, tokens_BT, start):
  """The edits that add a change to the sites written in the pass that reads what it is computed from.

  Whether a position counts is told by what has been computed by then: sites behind those written are not asked.

  Args:
    dictionary: `Wired`, of which `reads_first` is true.
    change: from `_change`.
    tokens_BT: the tokens of the pass.
    start: the position of the first of them.
  """
  seen = {}
  ends = np.cumsum([dictionary.model.wiring.widths[i] for i in dictionary.model.wiring.writes])[:-1]

  looked_at = {*dictionary.reads, *dictionary.kept.sites}

  def visit(site, x_BTD):
    if site in looked_at:
      seen[site] = x_BTD
    if site not in dictionary.writes:
      return x_BTD
    if "change" not in seen:
      seen["counts"] = dictionary.kept.counts(tokens_BT, {name: seen[name] for name in looked_at & seen.keys()}, start)
      seen["change"] = jnp.split(change(side_by_side(seen, dictionary.reads)), ends, axis=1)
    added_BTD = seen["change"][dictionary.writes.index(site)].reshape(x_BTD.shape).astype(x_BTD.dtype)
    return x_BTD + jnp.where(seen["counts"][..., None], added_BTD, 0)
  return {site: functools.partial(visit, site) for site in looked_at.union(dictionary.writes)}


def _with_written(subject, dictionary, params, tokens_1T, y_NO, sites):
  """Logits of the subject with the rows `y_NO` in the place of the sites written, at positions that count.

  `sites` are the activations that the dictionary reads, and those that tell which positions count.
  """
  edit, first = {}, 0
  counts_1T1 = None if dictionary.kept.all else dictionary.kept.counts(tokens_1T, sites)[..., None]
  changed = lambda x, part: part if counts_1T1 is None else jnp.where(counts_1T1, part, x)
  for site in dictionary.writes:
    width = subject.site_widths[site]
    part = y_NO[:, first:first + width].reshape(*tokens_1T.shape, width)
    edit[site] = lambda x, part=part: changed(x, part.astype(x.dtype))
    first += width
  return subject.apply({"params": params}, tokens_1T, edit, wanted=())[0]


@functools.lru_cache(maxsize=8)
def _compiled_losses(subject: Subject, dictionary: Wired):
  @jax.jit
  def losses(params, sae_params, tokens_1T, feature_J, value_J, mean_O):
    """Next-token losses (T - 1,): of the subject, spliced, with the sites' mean in their place, and steered."""
    loss = lambda logits_1TV: next_token_loss(logits_1TV[:, :-1], tokens_1T[:, 1:])[0]
    mean_NO = jnp.broadcast_to(mean_O[None], (tokens_1T.size, len(mean_O)))
    clean, sites = subject.apply({"params": params}, tokens_1T, wanted={*dictionary.reads, *dictionary.kept.sites})
    return {"clean": loss(clean),
            "spliced": loss(spliced_logits(subject, dictionary, params, sae_params, tokens_1T)),
            "ablated": loss(_with_written(subject, dictionary, params, tokens_1T, mean_NO, sites)),
            "steered": loss(steered_logits(subject, dictionary, params, sae_params, tokens_1T, feature_J, value_J))}
  return losses


def losses(subject: LoadedSubject, sae: SAE, mean_O: np.ndarray, ids: list[int],
           values: dict[int, float] | None = None, kept: Kept = EVERY) -> dict[str, np.ndarray]:
  """The loss of each next token of a text, in nats, under several interventions.

  Args:
    subject, sae: the subject and its dictionary.
    mean_O: the mean activation of the sites written, side by side.
    ids: token ids of the text, at least two; at most the subject's context.
    values: {feature: the value that it is held at} for "steered"; with 0 a feature is removed.
    kept: the positions at which something is changed.

  Returns:
    {"clean", "spliced", "ablated", "steered"}: arrays of shape (T - 1,); entry i is the loss of token i + 1. "Ablated"
    has the sites' mean in their place.
  """
  feature_J, value_J = as_arrays(values or {})
  run = _compiled_losses(subject.model, wired(sae, kept))
  found = run(subject.params, sae.params, np.asarray([ids], np.int32), feature_J, value_J,
              jnp.asarray(mean_O, jnp.float32))
  return {name: np.asarray(loss_T) for name, loss_T in found.items()}


def as_arrays(values: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
  """(features, values) as arrays."""
  return np.fromiter(values, np.int32, len(values)), np.fromiter(values.values(), np.float32, len(values))


def steer(subject: LoadedSubject, sae: SAE, prompt: list[int], values: dict[int, float], n_tokens: int, seed: int = 0,
          temperature: float = 0.8, kept: Kept = EVERY) -> list[int]:
  """Continues a prompt with some features held at given values at every position that counts.

  Args:
    subject, sae: the subject and its dictionary.
    prompt: token ids, at least one.
    values: {feature: the value that it is held at}.
    n_tokens: how many tokens to add; fewer where the subject's context is full.
    seed: of the draw of tokens.
    temperature: the logits are divided by it.
    kept: the positions that count.

  Returns:
    Token ids of the prompt and its continuation.
  """
  dictionary = wired(sae, kept)
  how = {"edit_of": _steering(dictionary)} if reads_first(dictionary, subject.model) else {
      "logits_of": _steering_in_two(dictionary)}
  return sample(subject, prompt, n_tokens, jax.random.key(seed), temperature, given=(sae.params, *as_arrays(values)),
                **how)


@functools.lru_cache(maxsize=8)
def _steering(dictionary: Wired):
  """The function that gives `sample` the edits of a pass."""
  def edit_of(given, tokens_BT, start):
    return _steering_edit(dictionary, _change(dictionary, *given), tokens_BT, start)
  return edit_of


@functools.lru_cache(maxsize=8)
def _steering_in_two(dictionary: Wired):
  """The function that gives `sample` the next token's logits where one pass does not do."""
  return lambda subject, params, tokens_1T, given: steered_logits(
      subject, dictionary, params, given[0], tokens_1T, *given[1:])
