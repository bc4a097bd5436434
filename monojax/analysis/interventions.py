"""What features do to a text: splicing a dictionary into its subject, removing features, and steering with them.

Each intervention reads the features in the subject as it is, and then runs the subject again with the sites that the
dictionary writes changed. When single features are changed, the reconstruction's error is kept: an activation y becomes
y + (f' - f) W_dec, where f are the features that the dictionary finds and f' those put in their place.

Letters: T positions of one text, N = B T rows, F features, J changes of features, O width of the sites written, V
vocabulary.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from monojax.activations.kept import EVERY, Kept
from monojax.analysis.fidelity import side_by_side
from monojax.config import INT32, require
from monojax.sae.dictionary import SAE
from monojax.sae.model import Dictionary
from monojax.subjects.loss import next_token_loss
from monojax.subjects.sample import sample
from monojax.subjects.subject import LoadedSubject, Subject

KINDS = ("pin", "scale", "ablate")


@dataclasses.dataclass(frozen=True)
class Change:
  """What is done to one feature while the subject reads and writes.

  Attributes:
    feature: its number.
    kind: "pin" holds its activation at `value`; "scale" multiplies it by `value`; "ablate" sets it to 0.
    value: see `kind`. None stands for the feature's largest activation on the analysed text, with "pin" alone, and
      only for `monojax.load`, which knows it.
    positions: (start, stop), the tokens at which it is done, those before `stop`, counted from the first that the
      subject reads; `stop` is None for no end. By default all.

  Raises:
    InputError: the kind, the value or the positions are none of these.
  """
  feature: int
  kind: str = "pin"
  value: float | None = None
  positions: tuple[int, int | None] | None = None

  def __post_init__(self) -> None:
    require(self.kind in KINDS, "kind", self.kind, f"choose one of {', '.join(KINDS)}")
    require(self.kind != "ablate" or self.value is None, "value", self.value, "a feature that is ablated has none")
    require(self.kind != "scale" or self.value is not None, "value", None, "say what the activation is multiplied by")
    require(self.value is None or math.isfinite(self.value), "value", self.value, "must be a finite number")
    start, stop = self.span
    require(0 <= start < stop <= INT32, "positions", self.positions, "must be (start, stop) with 0 <= start < stop")

  @property
  def span(self) -> tuple[int, int]:
    """(start, stop) as numbers, also where none or only one was given."""
    start, stop = self.positions or (0, None)
    return start, INT32 if stop is None else stop


class Changes(typing.NamedTuple):
  """Changes of J features as arrays: an activation f becomes scale f + value at positions from start to stop - 1."""
  feature_J: np.ndarray
  scale_J: np.ndarray
  value_J: np.ndarray
  start_J: np.ndarray
  stop_J: np.ndarray


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
                   changes: Changes) -> jax.Array:
  """Logits (1, T, V) with some features changed; to be traced."""
  change = _change(dictionary, sae_params, changes)
  if reads_first(dictionary, subject):
    edit = _steering_edit(dictionary, change, tokens_1T, 0)
    return subject.apply({"params": params}, tokens_1T, edit, wanted=())[0]
  wanted = {*dictionary.reads, *dictionary.writes, *dictionary.kept.sites}
  _, sites = subject.apply({"params": params}, tokens_1T, wanted=wanted)
  y_NO = side_by_side(sites, dictionary.writes) + change(side_by_side(sites, dictionary.reads),
                                                         jnp.arange(tokens_1T.size))
  return _with_written(subject, dictionary, params, tokens_1T, y_NO, sites)


def reads_first(dictionary: Wired, subject: Subject) -> bool:
  """Whether the dictionary writes one site, and all that it reads is computed before that.

  It is so for autoencoders of one site and for transcoders, and lets one pass do what otherwise takes two. What is
  added to one of several sites would come to the next one as well, where it is added again.
  """
  order = list(subject.site_widths)
  return len(dictionary.writes) == 1 and max(map(order.index, dictionary.reads)) <= order.index(dictionary.writes[0])


def _change(dictionary, sae_params, changes):
  """The function (x_NM, position_N) -> what changing some features adds to what is written, (N, O)."""
  def change(x_NM, position_N):
    f_NF = dictionary.model.apply({"params": sae_params}, x_NM, method="encode")
    change_NJ = (changes.scale_J - 1)[None] * f_NF[:, changes.feature_J] + changes.value_J[None]
    here_NJ = (position_N[:, None] >= changes.start_J[None]) & (position_N[:, None] < changes.stop_J[None])
    return dictionary.model.apply({"params": sae_params}, jnp.where(here_NJ, change_NJ, 0), changes.feature_J, x_NM,
                                  method="change")
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
      position_N = jnp.tile(start + jnp.arange(tokens_BT.shape[1]), len(tokens_BT))
      seen["change"] = jnp.split(change(side_by_side(seen, dictionary.reads), position_N), ends, axis=1)
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
  def losses(params, sae_params, tokens_1T, changes, mean_O):
    """Next-token losses (T - 1,): of the subject, spliced, with the sites' mean in their place, and steered."""
    loss = lambda logits_1TV: next_token_loss(logits_1TV[:, :-1], tokens_1T[:, 1:])[0]
    mean_NO = jnp.broadcast_to(mean_O[None], (tokens_1T.size, len(mean_O)))
    clean, sites = subject.apply({"params": params}, tokens_1T, wanted={*dictionary.reads, *dictionary.kept.sites})
    return {"clean": loss(clean),
            "spliced": loss(spliced_logits(subject, dictionary, params, sae_params, tokens_1T)),
            "ablated": loss(_with_written(subject, dictionary, params, tokens_1T, mean_NO, sites)),
            "steered": loss(steered_logits(subject, dictionary, params, sae_params, tokens_1T, changes))}
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
  run = _compiled_losses(subject.model, wired(sae, kept))
  found = run(subject.params, sae.params, np.asarray([ids], np.int32), as_arrays(as_changes(values or {})),
              jnp.asarray(mean_O, jnp.float32))
  return {name: np.asarray(loss_T) for name, loss_T in found.items()}


def as_changes(features: Mapping[int, float] | Sequence[Change]) -> list[Change]:
  """Changes of features, also from a dict {feature: the value that it is held at}."""
  if isinstance(features, Mapping):
    return [Change(feature, "pin", value) for feature, value in features.items()]
  return list(features)


def as_arrays(changes: Sequence[Change]) -> Changes:
  """Changes as arrays.

  Raises:
    InputError: a value is missing, or two changes are of one feature at one position.
  """
  spans: dict[int, list[tuple[int, int]]] = {}
  for change in changes:
    require(change.kind == "ablate" or change.value is not None, "value", None,
            f"say what feature {change.feature} is held at")
    start, stop = change.span
    for before in spans.setdefault(change.feature, []):
      require(stop <= before[0] or before[1] <= start, "feature", change.feature,
              "two changes of it are at the same positions: give one, or positions that do not overlap")
    spans[change.feature].append((start, stop))
  column = lambda values, dtype: np.asarray(list(values), dtype)
  return Changes(column((c.feature for c in changes), np.int32),
                 column((c.value if c.kind == "scale" else 0 for c in changes), np.float32),
                 column((c.value if c.kind == "pin" else 0 for c in changes), np.float32),
                 column((c.span[0] for c in changes), np.int32), column((c.span[1] for c in changes), np.int32))


def steer(subject: LoadedSubject, sae: SAE, prompt: list[int], features: Mapping[int, float] | Sequence[Change],
          n_tokens: int, seed: int = 0, temperature: float = 0.8, kept: Kept = EVERY,
          use_cache: bool = True) -> list[int]:
  """Continues a prompt with some features changed, at positions that count.

  Args:
    subject, sae: the subject and its dictionary.
    prompt: token ids, at least one.
    features: {feature: the value that it is held at}, or changes.
    n_tokens: how many tokens to add; fewer where the subject's context is full.
    seed: of the draw of tokens.
    temperature: the logits are divided by it.
    kept: the positions that count.
    use_cache: whether keys and values of earlier tokens are remembered, where the subject can and one pass does all.

  Returns:
    Token ids of the prompt and its continuation.

  Raises:
    InputError: two changes are of one feature at one position, or a value is missing.
  """
  dictionary = wired(sae, kept)
  how = {"edit_of": _steering(dictionary)} if reads_first(dictionary, subject.model) else {
      "logits_of": _steering_in_two(dictionary)}
  return sample(subject, prompt, n_tokens, jax.random.key(seed), temperature,
                given=(sae.params, as_arrays(as_changes(features))), use_cache=use_cache, **how)


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
      subject, dictionary, params, given[0], tokens_1T, given[1])


@functools.lru_cache(maxsize=8)
def _compiled_last(subject: Subject, dictionary: Wired):
  @jax.jit
  def run(params, sae_params, tokens_1T, changes):
    """Logits (V,) at the last position: of the subject as it is, and with some features changed."""
    clean_1TV, _ = subject.apply({"params": params}, tokens_1T, wanted=())
    changed_1TV = steered_logits(subject, dictionary, params, sae_params, tokens_1T, changes)
    return clean_1TV[0, -1], changed_1TV[0, -1]
  return run


def next_token_logits(subject: LoadedSubject, sae: SAE, prompt: list[int], changes: Sequence[Change],
                      kept: Kept = EVERY) -> tuple[np.ndarray, np.ndarray]:
  """Logits of the token after a prompt, (V,) each: of the subject as it is, and with some features changed.

  Args:
    subject, sae, prompt, kept: as for `steer`.
    changes: as for `steer`.
  """
  run = _compiled_last(subject.model, wired(sae, kept))
  clean_V, changed_V = run(subject.params, sae.params, np.asarray([prompt], np.int32), as_arrays(changes))
  return np.asarray(clean_V), np.asarray(changed_V)
