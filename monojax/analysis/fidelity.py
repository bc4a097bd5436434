"""How faithful a dictionary is on held-out text: L0, explained variance, cross-entropy recovered.

Letters: B contexts of a batch, T positions, U = T + 1 tokens of a context and its last target, N = B * T rows, M width
of the sites read, O width of the sites written, F features, J selections of them, C contexts.
"""

import collections.abc
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from monojax import metrics
from monojax.activations.kept import EVERY, Kept
from monojax.sae.dictionary import SAE
from monojax.sae.model import Dictionary
from monojax.subjects.spliced import scores_by_position
from monojax.subjects.subject import LAST, Edit, LoadedSubject, Sites, Subject
from monojax.subjects.train import contexts_per_batch
from monojax.text.tokens import Tokens
from monojax.variance import joined, share_unexplained, spread

# Scores that depend on the subject alone, whatever the dictionary.
BASELINE = ("ce_clean", "ce_zero", "ce_mean", "kl_zero", "kl_mean")
_OF_ENCODERS = ("cosine_zero", "cosine_mean")  # the same of a subject that predicts no tokens


def side_by_side(sites: Sites, names: typing.Sequence[str]) -> jax.Array:
  """Activations of some of a subject's sites as rows, (N, M) float32, N = B * T."""
  x_BTM = jnp.concatenate([sites[name] for name in names], axis=-1)
  return x_BTM.astype(jnp.float32).reshape(-1, x_BTM.shape[-1])


@functools.lru_cache(maxsize=8)
def make_encode(subject: Subject, sae: Dictionary, reads: tuple[str, ...], kept: Kept = EVERY,
                beside: str = "") -> typing.Callable:
  """The compiled function (subject_params, sae_params, tokens_BT) -> (f_NF, x_NM), N = B * T rows.

  Asked for again with equal arguments it is the same function, which is not compiled again.

  Args:
    subject, sae: the models.
    reads: names of the sites that the dictionary reads.
    kept: the positions that count; rows of others are 0.
    beside: a further site, whose activations, as they are at every position, become a third array.
  """
  others = (beside,) if beside else ()

  @jax.jit
  def encode(subject_params, sae_params, tokens_BT):
    wanted = tuple(dict.fromkeys(reads + kept.sites + others))
    _, sites = subject.apply({"params": subject_params}, tokens_BT, wanted=wanted)
    x_NM = side_by_side(sites, reads)
    f_NF = sae.apply({"params": sae_params}, x_NM, method="encode")
    more = tuple(side_by_side(sites, (site,)) for site in others)
    if kept.all:
      return f_NF, x_NM, *more
    counts_N1 = kept.counts(tokens_BT, sites).reshape(-1, 1)
    return jnp.where(counts_N1, f_NF, 0), jnp.where(counts_N1, x_NM, 0), *more
  return encode


def fidelity(subject: LoadedSubject, sae: SAE, mean_O: np.ndarray, tokens: Tokens, n_tokens: int,
             batch_contexts: int | None = None, baseline: dict | None = None, kept: Kept = EVERY) -> dict:
  """Measures a dictionary spliced into its subject at every position of held-out contexts that counts.

  Activations at other positions stay as they are. All figures are over positions that count; a loss is that of the
  token after such a position.

  Explained variance is 1 - E|x - x_hat|^2 / E|x - E x|^2 over all tokens, of the sites written (batches are joined in
  float64, see `monojax.variance`); normalised MSE is one minus that. Both are `None` where all rows are equal. The L2
  ratio |x_hat| / |x| is the mean over tokens where x is not 0.
  Cross-entropy recovered is (CE_ablated - CE_spliced) / (CE_ablated - CE_clean), with the site set to
  zero, or to its mean; several sites are replaced together. KL is the divergence of the next token's distribution from
  that of the subject as it is, KL(clean || changed) in nats; KL recovered is 1 - KL_spliced / KL_ablated.

  An encoder predicts no tokens: in place of cross-entropy and KL there is the cosine between a context's embedding and
  that of the subject as it is, the mean over contexts.

  Args:
    subject: the subject.
    sae: the dictionary. It reads the sites `sae.reads` in the subject as it is, and what it reconstructs takes the
      place of the sites `sae.writes`.
    mean_O: the mean activation of the sites written, side by side.
    tokens: held-out tokens.
    n_tokens: about how many to use, in random contexts; 0 uses every whole context.
    batch_contexts: contexts in a forward pass; by default as many as `contexts_per_batch` says.
    baseline: another dictionary's scores on the same tokens, whose `BASELINE` is then not computed again.
    kept: the positions that count.

  Returns:
    dict of floats: l0, l1, mse, normalised_mse, explained_variance, l2_ratio, ce_clean, ce_spliced,
    ce_zero, ce_mean, ce_recovered_zero, ce_recovered_mean, kl_spliced, kl_zero, kl_mean, kl_recovered_zero,
    kl_recovered_mean (of an encoder cosine_spliced, cosine_zero, cosine_mean instead), n_tokens,
    heldout_alive_fraction (features that fired at all on these tokens), heldout_dense_features (those that fired on
    more than a tenth of them). A "ce_recovered" is `None` where the ablation does not raise the
    loss, as with a subject that has hardly been trained: it means nothing there.
  """
  batch_contexts = batch_contexts or contexts_per_batch(subject)
  width = subject.n_context
  context_C = tokens.choose(width + 1, n_tokens)
  n_contexts = len(context_C)
  sums_of = _make_sums(subject.model, sae.model, sae.reads, sae.writes, baseline is None, kept)
  total: dict = {}
  rows, n_counted = None, 0
  with metrics.progress(n_contexts * width, "tokens", "fidelity", scale=True) as bar:
    for first in range(0, n_contexts, batch_contexts):
      index_B = context_C[first:first + batch_contexts]
      weight_B = np.zeros(batch_contexts, np.float32)
      weight_B[:len(index_B)] = 1.0
      padded_B = np.pad(index_B, (0, batch_contexts - len(index_B)), mode="edge")
      tokens_BU = tokens.context(padded_B, width + 1)
      sums = sums_of(subject.params, sae.params, tokens_BU, weight_B, jnp.asarray(mean_O, jnp.float32))
      sums = jax.device_get(sums)
      rows = joined(rows, sums.pop("rows"))
      n_counted += round(float(sums.pop("counted")))
      for name, value in sums.items():
        total[name] = total.get(name, 0.0) + np.asarray(value, np.float64)
      bar.update(len(index_B) * width)
  for name, value in (baseline or {}).items():
    total[name] = value * (n_contexts if name in _OF_ENCODERS else n_counted)
  assert rows is not None  # there is at least one context
  return _scores(total, rows, n_counted, n_contexts)


def baseline_of(figures: collections.abc.Mapping[str, typing.Any], prefix: str = "sae/") -> dict | None:
  """Those of a dictionary's figures that depend on the subject alone; None if an older version made them."""
  for names in (BASELINE, _OF_ENCODERS):
    if all(figures.get(prefix + name) is not None for name in names):
      return {name: figures[prefix + name] for name in names}
  return None


@functools.lru_cache(maxsize=8)
def _make_sums(subject: Subject, sae: Dictionary, reads: tuple[str, ...], writes: tuple[str, ...], with_baseline: bool,
               kept: Kept):
  """The compiled sums over a batch's weighted contexts that the scores are made of.

  Dictionaries with equal models share one compiled function, as the members of a sweep do that differ in penalty.
  """
  @jax.jit
  def sums(subject_params, sae_params, tokens_BU, weight_B, mean_O):
    inputs_BT, targets_BT = tokens_BU[:, :-1], tokens_BU[:, 1:]
    output, sites = subject.apply({"params": subject_params}, inputs_BT,
                                  wanted=tuple(dict.fromkeys((*reads, *writes, *kept.sites, LAST))))
    weight_BT = jnp.broadcast_to(weight_B[:, None], inputs_BT.shape)
    counts_BT1 = None if kept.all else kept.counts(inputs_BT, sites)[..., None]
    if counts_BT1 is not None:
      weight_BT = weight_BT * counts_BT1[..., 0]
    weight_N = weight_BT.reshape(-1)

    y_NO = side_by_side(sites, writes)
    y_hat_NO, f_NF = sae.apply({"params": sae_params}, side_by_side(sites, reads))
    values = {"spliced": y_hat_NO.reshape(*inputs_BT.shape, -1)}
    if with_baseline:
      values |= {"zero": jnp.zeros((1, 1, 1)), "mean": mean_O}
    found = {name: subject.apply({"params": subject_params}, inputs_BT, replacing(value, sites, writes, counts_BT1),
                                 wanted=(LAST,)) for name, value in values.items()}
    if subject.output == "embedding":
      changes = {f"cosine_{name}": ((output * changed).sum(-1) * weight_B).sum()
                 for name, (changed, _) in found.items()}
    else:
      last = {"clean": sites[LAST]} | {name: changed[LAST] for name, (_, changed) in found.items()}
      changes = {name.replace("/", "_"): (of_BT * weight_BT).sum() for name, of_BT in
                 scores_by_position(subject, subject_params, last, targets_BT).items()
                 if with_baseline or name != "ce/clean"}
    total = lambda value_N: (value_N * weight_N).sum()
    norm_N = jnp.linalg.norm(y_NO, axis=1)
    return {
        **changes,
        "counted": weight_N.sum(),
        "l0": total((f_NF > 0).sum(1)), "l1": total(f_NF.sum(1)),
        "square_error": total(jnp.square(y_NO - y_hat_NO).sum(1)),
        "rows": spread(y_NO, weight_N),
        "norm_ratio": total(jnp.where(norm_N > 0, jnp.linalg.norm(y_hat_NO, axis=1) / norm_N, 0.0)),
        "not_zero": total(norm_N > 0), "fired_F": weight_N @ (f_NF > 0).astype(jnp.float32),
    }
  return sums


def replacing(value: jax.Array, sites: Sites, writes: tuple[str, ...], counts_BT1: jax.Array | None) -> Edit:
  """The edit that puts a value, (..., O), in the place of the sites written, at positions that count (None: all do).

  Args:
    value: what takes their place, side by side.
    sites: the activations of the subject as it is, those of the sites written among them.
    writes: the sites.
    counts_BT1: the positions that count.
  """
  widths = [sites[name].shape[-1] for name in writes]
  value_BTO = jnp.broadcast_to(value, (*sites[writes[0]].shape[:2], sum(widths)))
  parts = jnp.split(value_BTO, np.cumsum(widths)[:-1], axis=-1)

  def changed(name, part, x):
    if len(writes) == 1:
      x = sites[name]  # is the same, and nothing of the pass before the site is computed again
    part = part.astype(x.dtype)
    return part if counts_BT1 is None else jnp.where(counts_BT1, part, x)
  return {name: functools.partial(changed, name, part) for name, part in zip(writes, parts, strict=True)}


def spliced_losses(subject: LoadedSubject, sae: SAE, keep_JF: np.ndarray, tokens: Tokens, n_tokens: int,
                   batch_contexts: int | None = None, kept: Kept = EVERY) -> np.ndarray:
  """The cross-entropy of the subject with a dictionary spliced in of which only some features are kept.

  Args:
    subject, sae, tokens, n_tokens, batch_contexts, kept: as for `fidelity`.
    keep_JF: for each of J losses which features keep their activations; the others are set to 0.

  Returns:
    The mean losses of the next token in nats, (J,), float64.
  """
  batch_contexts = batch_contexts or contexts_per_batch(subject)
  losses_of = _make_losses(subject.model, sae.model, sae.reads, sae.writes, kept)
  total_J, n_counted = np.zeros(len(keep_JF)), 0.0
  context_C = tokens.choose(subject.n_context + 1, n_tokens)
  with metrics.progress(len(context_C) * subject.n_context, "tokens", "parts", scale=True) as bar:
    for first in range(0, len(context_C), batch_contexts):
      index_B = context_C[first:first + batch_contexts]
      weight_B = (np.arange(batch_contexts) < len(index_B)).astype(np.float32)
      padded_B = np.pad(index_B, (0, batch_contexts - len(index_B)), mode="edge")
      tokens_BU = tokens.context(padded_B, subject.n_context + 1)
      loss_J, counted = losses_of(subject.params, sae.params, tokens_BU, weight_B, keep_JF)
      total_J += np.asarray(loss_J, np.float64)
      n_counted += float(counted)
      bar.update(len(index_B) * subject.n_context)
  return total_J / n_counted


@functools.lru_cache(maxsize=8)
def _make_losses(subject: Subject, sae: Dictionary, reads: tuple[str, ...], writes: tuple[str, ...], kept: Kept):
  """The compiled sums of `spliced_losses` over a batch's weighted contexts, and the number of tokens in them."""
  @jax.jit
  def losses(subject_params, sae_params, tokens_BU, weight_B, keep_JF):
    inputs_BT, targets_BT = tokens_BU[:, :-1], tokens_BU[:, 1:]
    _, sites = subject.apply({"params": subject_params}, inputs_BT,
                             wanted=tuple(dict.fromkeys(reads + writes + kept.sites)))
    weight_BT = jnp.broadcast_to(weight_B[:, None], inputs_BT.shape)
    counts_BT1 = None if kept.all else kept.counts(inputs_BT, sites)[..., None]
    if counts_BT1 is not None:
      weight_BT = weight_BT * counts_BT1[..., 0]
    x_NM = side_by_side(sites, reads)
    f_NF = sae.apply({"params": sae_params}, x_NM, method="encode")

    def loss(keep_F):
      y_NO = sae.apply({"params": sae_params}, jnp.where(keep_F[None], f_NF, 0), None, x_NM, method="decode")
      edit = replacing(y_NO.reshape(*inputs_BT.shape, -1), sites, writes, counts_BT1)
      _, changed = subject.apply({"params": subject_params}, inputs_BT, edit, wanted=(LAST,))
      return (scores_by_position(subject, subject_params, {"kept": changed[LAST]}, targets_BT)["ce/kept"]
              * weight_BT).sum()
    return jax.lax.map(loss, keep_JF), weight_BT.sum()
  return losses


def _effects(total, n_tokens, n_contexts):
  """What splicing and ablating do to the subject's output, from float64 sums."""
  if "cosine_spliced" in total:
    return {f"cosine_{name}": float(total[f"cosine_{name}"] / n_contexts) for name in ("spliced", "zero", "mean")}
  ce = {name: float(total[f"ce_{name}"] / n_tokens) for name in ("clean", "spliced", "zero", "mean")}
  kl = {name: float(total[f"kl_{name}"] / n_tokens) for name in ("spliced", "zero", "mean")}
  recovered = {f"ce_recovered_{name}": (ce[name] - ce["spliced"]) / (ce[name] - ce["clean"])
               if ce[name] > ce["clean"] else None for name in ("zero", "mean")}
  return {**{f"ce_{name}": value for name, value in ce.items()}, **recovered,
          **{f"kl_{name}": value for name, value in kl.items()},
          **{f"kl_recovered_{name}": 1 - kl["spliced"] / kl[name] if kl[name] > 0 else None
             for name in ("zero", "mean")}}


def _scores(total, rows, n_tokens, n_contexts):
  """The reported figures from float64 sums over `n_tokens` tokens, and the `Spread` of their rows."""
  width = len(rows.near_O)
  normalised_mse = share_unexplained(total["square_error"], rows)
  return {
      **{name: float(total[name] / n_tokens) for name in ("l0", "l1")},
      "l2_ratio": float(total["norm_ratio"] / max(total["not_zero"], 1)),
      "mse": float(total["square_error"] / (n_tokens * width)),
      "normalised_mse": normalised_mse,
      "explained_variance": None if normalised_mse is None else 1.0 - normalised_mse,
      **_effects(total, n_tokens, n_contexts),
      "heldout_alive_fraction": float(np.mean(total["fired_F"] > 0)),
      "heldout_dense_features": int(np.sum(total["fired_F"] > 0.1 * n_tokens)),
      "n_tokens": n_tokens,
  }
