"""How faithful a dictionary is document by document: intervals over documents, a row for each domain, texts sampled.

A mean over tokens hides two things: how far it would move with other text, and that a dictionary may be good on one
kind of text and poor on another. Tokens of one document are alike, so the unit that is drawn again for an interval is
the document.

Letters: B contexts of a batch, T positions, U = T + 1, N = B * T rows or draws of documents, R rows of a sample, O
width of the sites written, J documents, C contexts, V vocabulary.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from monojax import metrics
from monojax.activations.kept import EVERY, Kept
from monojax.analysis.config import FidelityConfig
from monojax.analysis.fidelity import replacing, side_by_side
from monojax.analysis.interventions import Wired, spliced_logits, wired
from monojax.config import require
from monojax.sae.dictionary import SAE
from monojax.subjects.loss import next_token_loss
from monojax.subjects.sample import sample
from monojax.subjects.spliced import scores_by_position
from monojax.subjects.subject import LAST, LoadedSubject, Subject
from monojax.subjects.train import contexts_per_batch
from monojax.text.tokens import NO_POSITION, Tokens

ABLATIONS = ("zero", "mean", "resample")
CHANGES = ("spliced", *ABLATIONS)  # what the sites written are replaced by
_DRAWS_AT_ONCE = 50


@dataclasses.dataclass(frozen=True)
class DocumentLosses:
  """What replacing activations does to the subject's predictions, summed over the positions of each document.

  Attributes:
    document_J: int64 numbers of the documents in their split, rising; only those with a position that counts.
    domain_J: int32 index of each one's domain, -1 where it has no label.
    n_tokens_J: int64, how many positions count.
    ce_J: {"clean", "spliced", "zero", "mean", "resample": sums of the next token's cross-entropy in nats}, float64.
    kl_J: the same of KL(clean || changed), without "clean".
  """
  document_J: np.ndarray
  domain_J: np.ndarray
  n_tokens_J: np.ndarray
  ce_J: dict[str, np.ndarray]
  kl_J: dict[str, np.ndarray]

  def of(self, chosen_J: np.ndarray) -> "DocumentLosses":
    """Those of some of the documents."""
    pick = lambda sums: {name: values_J[chosen_J] for name, values_J in sums.items()}
    return DocumentLosses(self.document_J[chosen_J], self.domain_J[chosen_J], self.n_tokens_J[chosen_J],
                          pick(self.ce_J), pick(self.kl_J))


def document_losses(subject: LoadedSubject, sae: SAE, mean_O: np.ndarray, sample_RO: np.ndarray, tokens: Tokens,
                    config: FidelityConfig, kept: Kept = EVERY) -> DocumentLosses:
  """Measures a spliced dictionary, and three ways to wipe its sites, on every position that counts.

  The ablations put in the place of the activations zeros; their mean; or, at every position anew, those of another
  position, drawn from a sample. The last keeps the activations typical, and takes from them all that they tell of the
  text.

  Args:
    subject: the subject, which predicts tokens.
    sae: the dictionary.
    mean_O: the mean activation of the sites written, side by side.
    sample_RO: activations of the sites written at random positions of training text.
    tokens: held-out tokens.
    config: how many of them, and the seed.
    kept: the positions that count; at others activations stay as they are.

  Raises:
    InputError: the subject is an encoder.
  """
  require_predicts(subject)
  batch_contexts, width = contexts_per_batch(subject), subject.n_context
  losses_of = _make_losses(subject.model, sae.model, sae.reads, sae.writes, kept)
  context_C = tokens.choose(width + 1, config.n_tokens, config.seed)
  rng = np.random.default_rng([config.seed, 1])
  n_documents = len(tokens.start_D)
  n_tokens_J = np.zeros(n_documents, np.int64)
  sums = {name: np.zeros(n_documents) for name in _names()}
  with metrics.progress(len(context_C) * width, "tokens", "losses by document", scale=True) as bar:
    for first in range(0, len(context_C), batch_contexts):
      index_B = context_C[first:first + batch_contexts]
      padded_B = np.pad(index_B, (0, batch_contexts - len(index_B)), mode="edge")
      row_BT = np.zeros((batch_contexts, width), np.int32)
      row_BT[:len(index_B)] = rng.integers(len(sample_RO), size=(len(index_B), width))
      found, counts_BT = losses_of(subject.params, sae.params, tokens.context(padded_B, width + 1), row_BT,
                                   jnp.asarray(mean_O, jnp.float32), jnp.asarray(sample_RO, jnp.float32))
      position_BT = tokens.positions(index_B, width + 1)[:, :-1]
      counted_BT = np.asarray(counts_BT)[:len(index_B)] & (position_BT != NO_POSITION)
      document_N = tokens.position_document(position_BT[counted_BT])
      n_tokens_J += np.bincount(document_N, minlength=n_documents)
      for name, loss_BT in found.items():
        sums[name] += np.bincount(document_N, np.asarray(loss_BT)[:len(index_B)][counted_BT], n_documents)
      bar.update(len(index_B) * width)
  there_J = np.flatnonzero(n_tokens_J)
  of = lambda kind: {name.partition("/")[2]: sums_J[there_J] for name, sums_J in sums.items() if name.startswith(kind)}
  return DocumentLosses(there_J, tokens.domain_D[there_J], n_tokens_J[there_J], of("ce/"), of("kl/"))


def require_predicts(subject: LoadedSubject) -> None:
  """Raises `InputError` if the subject is an encoder."""
  require(subject.model.output == "logits", "subject", "an encoder", "predicts no tokens, so that there is no loss")


def _names() -> list[str]:
  return ["ce/clean", *(f"{kind}/{name}" for kind in ("ce", "kl") for name in CHANGES)]


@functools.lru_cache(maxsize=8)
def _make_losses(subject: Subject, sae: typing.Any, reads: tuple[str, ...], writes: tuple[str, ...], kept: Kept):
  """The compiled losses (B, T) by the names of `_names`, and which positions count."""
  @jax.jit
  def losses(subject_params, sae_params, tokens_BU, row_BT, mean_O, sample_RO):
    inputs_BT, targets_BT = tokens_BU[:, :-1], tokens_BU[:, 1:]
    _, sites = subject.apply({"params": subject_params}, inputs_BT,
                             wanted=tuple(dict.fromkeys((*reads, *writes, *kept.sites, LAST))))
    counts_BT = jnp.asarray(kept.counts(inputs_BT, sites))
    y_hat_NO, _ = sae.apply({"params": sae_params}, side_by_side(sites, reads))
    values = {"spliced": y_hat_NO.reshape(*inputs_BT.shape, -1), "zero": jnp.zeros((1, 1, 1)), "mean": mean_O,
              "resample": sample_RO[row_BT]}
    last = {"clean": sites[LAST]}
    for name in CHANGES:
      edit = replacing(values[name], sites, writes, counts_BT[..., None])
      last[name] = subject.apply({"params": subject_params}, inputs_BT, edit, wanted=(LAST,))[1][LAST]
    return scores_by_position(subject, subject_params, last, targets_BT), counts_BT
  return losses


def statistics(n_tokens: typing.Any, ce: Mapping[str, typing.Any], kl: Mapping[str, typing.Any]) -> dict:
  """The figures that follow from sums over documents; of arrays of sums, arrays of figures.

  Args:
    n_tokens: how many positions count.
    ce, kl: sums, as `DocumentLosses` has them.

  Returns:
    {"ce_clean", "ce_spliced", "ce_zero", ... (nats a token), "ce_recovered_zero", "ce_recovered_mean",
    "ce_recovered_resample", "kl_spliced", ..., "kl_recovered_zero", ...}: recovered are
    (CE_ablated - CE_spliced) / (CE_ablated - CE_clean) and 1 - KL_spliced / KL_ablated, NaN where the ablation does
    no harm.
  """
  mean = {f"ce_{name}": value / n_tokens for name, value in ce.items()}
  mean |= {f"kl_{name}": value / n_tokens for name, value in kl.items()}
  ratio = lambda part, whole: np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)
  recovered = {f"ce_recovered_{name}": ratio(mean[f"ce_{name}"] - mean["ce_spliced"],
                                             mean[f"ce_{name}"] - mean["ce_clean"]) for name in ABLATIONS}
  recovered |= {f"kl_recovered_{name}": ratio(mean[f"kl_{name}"] - mean["kl_spliced"], mean[f"kl_{name}"])
                for name in ABLATIONS}
  return mean | recovered


def with_intervals(losses: DocumentLosses, n_draws: int, seed: int = 0) -> dict[str, float | None]:
  """The figures over all documents, each with the bounds of its 95 % interval.

  As many documents are drawn from those measured, with replacement, and the figures computed anew; the interval holds
  the middle 95 % of such figures (the percentile bootstrap).

  Returns:
    The figures of `statistics`, and "NAME_low" and "NAME_high" of each. A figure is None where it is not defined, as
    where an ablation does not raise the loss, and bounds are where their figure is, where `n_draws` is 0, and of fewer
    than two documents.
  """
  every = statistics(*_summed(losses, np.ones((1, len(losses.document_J)))))
  defined = lambda value: float(value) if np.isfinite(value) else None
  figures = {name: defined(value[0]) for name, value in every.items()}
  figures |= {f"{name}_{end}": None for name in every for end in ("low", "high")}
  if not n_draws or len(losses.document_J) < 2:
    return figures
  rng, n = np.random.default_rng(seed), len(losses.document_J)
  draws: dict[str, list[np.ndarray]] = {name: [] for name in every}
  for first in range(0, n_draws, _DRAWS_AT_ONCE):
    times_NJ = rng.multinomial(n, np.full(n, 1 / n), min(_DRAWS_AT_ONCE, n_draws - first))
    for name, value in statistics(*_summed(losses, times_NJ)).items():
      draws[name].append(value)
  for name, values in draws.items():
    found = np.concatenate(values)
    found = found[np.isfinite(found)]
    if figures[name] is not None and len(found):
      figures[f"{name}_low"], figures[f"{name}_high"] = map(float, np.percentile(found, (2.5, 97.5)))
  return figures


def _summed(losses: DocumentLosses, times_NJ: np.ndarray):
  """The arguments of `statistics`, arrays with an entry for each draw, in which a document occurs so many times."""
  total = lambda sums: {name: times_NJ @ values_J for name, values_J in sums.items()}
  return times_NJ @ losses.n_tokens_J, total(losses.ce_J), total(losses.kl_J)


def by_domain(losses: DocumentLosses, domains: Sequence[str], n_draws: int, seed: int = 0) -> list[dict]:
  """A row for each domain that has documents: its name, documents, tokens, and `with_intervals`; most tokens first."""
  rows = []
  for index in np.unique(losses.domain_J):
    chosen = losses.of(losses.domain_J == index)
    rows.append({"domain": domains[index] if index >= 0 else "", "documents": len(chosen.document_J),
                 "tokens": int(chosen.n_tokens_J.sum()), **with_intervals(chosen, n_draws, seed)})
  return sorted(rows, key=lambda row: -row["tokens"])


class Continuation(typing.NamedTuple):
  """One continuation of a held-out text.

  Attributes:
    by: who continues it: "subject", the subject with the dictionary "spliced" in, or the "text" itself.
    prompt, ids: token ids of the beginning and of the continuation.
    loss: the mean loss of the continuation's tokens under the subject as it is, in nats.
  """
  by: str
  prompt: list[int]
  ids: list[int]
  loss: float


def continuations(subject: LoadedSubject, sae: SAE, tokens: Tokens, config: FidelityConfig,
                  kept: Kept = EVERY) -> list[Continuation]:
  """What splicing does to generated text: continuations of held-out text, and how likely the subject finds them.

  The more the spliced subject's text surprises the subject as it is, the more the dictionary has changed what it
  writes. The loss of the subject's own continuations is the value without any change, up to chance.

  Args:
    subject, sae, tokens, kept: as for `document_losses`.
    config: how many texts, how long, at which temperature.
  """
  n_prompt = min(config.prompt_tokens, subject.n_context - 1)
  n_added = min(config.sample_tokens, subject.n_context - n_prompt)
  context_C = tokens.choose(subject.n_context, 0, config.seed)
  chosen_C = np.random.default_rng([config.seed, 2]).permutation(context_C)[:config.n_samples]
  logits_of = _spliced(wired(sae, kept))
  found = []
  for number, context in enumerate(chosen_C):
    ids = tokens.context(np.array([context]), subject.n_context)[0].tolist()[:n_prompt + n_added]
    prompt, key = ids[:n_prompt], jax.random.fold_in(jax.random.key(config.seed), number)
    texts = {"text": ids, "subject": sample(subject, prompt, n_added, key, config.temperature),
             "spliced": sample(subject, prompt, n_added, key, config.temperature, given=sae.params,
                               logits_of=logits_of)}
    for by, whole in texts.items():
      loss_T = np.asarray(_make_loss(subject.model)(subject.params, np.asarray([whole], np.int32)))
      found.append(Continuation(by, prompt, whole[n_prompt:], float(loss_T[n_prompt - 1:].mean())))
  return found


@functools.lru_cache(maxsize=8)
def _spliced(dictionary: Wired) -> Callable:
  """The function that gives `sample` the next token's logits with the dictionary spliced in."""
  return lambda subject, params, tokens_1T, given: spliced_logits(subject, dictionary, params, given, tokens_1T)


@functools.lru_cache(maxsize=8)
def _make_loss(subject: Subject) -> Callable:
  """The compiled function (params, tokens_1T) -> losses of all tokens but the first, (T - 1,)."""
  @jax.jit
  def loss(params, tokens_1T):
    logits_1TV, _ = subject.apply({"params": params}, tokens_1T, wanted=())
    return next_token_loss(logits_1TV[:, :-1], tokens_1T[:, 1:])[0]
  return loss
