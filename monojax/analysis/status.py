"""Which features are regular, faint, ultralow or dead, and how much of the reconstruction each of these kinds carries.

A feature that fired at all is alive, which says little: many features of a dictionary may fire so rarely, or so weakly,
that without them nothing would be missing. Towards Monosemanticity separates such a cluster by three statistics
together, density, encoder bias, and the alignment of encoder and decoder. Here a feature's status follows from what it
adds to reconstructions, and `table` puts the paper's three statistics beside it.

Letters: F features, J groups of them, P pairs of a row and a feature that fires there, O width written.
"""

import numpy as np

from monojax.activations.kept import EVERY, Kept
from monojax.analysis.codes import Codes
from monojax.analysis.columns import STATUSES
from monojax.analysis.config import AnalysisConfig
from monojax.analysis.fidelity import spliced_losses
from monojax.analysis.tables import DEAD, FAINT, REGULAR, ULTRALOW
from monojax.sae.dictionary import SAE
from monojax.subjects.subject import LoadedSubject
from monojax.text.tokens import Tokens

_PART = 1 << 20  # sizes that are summed up at a time
_STATISTICS = ("density_F", "encoder_bias_F", "encoder_decoder_cosine_F", "max_act_F")


def status_of(codes: Codes, direction_FO: np.ndarray, config: AnalysisConfig) -> np.ndarray:
  """The status of each feature, int8.

  * DEAD: it never fires.
  * ULTRALOW: it fires on a smaller fraction of the rows that count than `config.ultralow_density`.
  * FAINT: it fires more often, but only weakly. When feature f fires on a row, it adds f d to the reconstruction, which
    is of the size |f d|. Sort all firings of all features by this size. The weakest of them, which together make up
    `config.faint_share` of the sum of |f d|^2, are weak firings; a feature all of whose firings are weak is faint. So
    all faint features together carry at most that share, while one that is rare but strong is not faint.
  * REGULAR: the others.

  For instance, of firings of the sizes 1, 1, 3 and 30 the sum of squares is 911, and with a share of 0.02 the first
  three are weak: they make up 11 of 911.

  Args:
    codes: the features' activations.
    direction_FO: their directions (`SAE.direction_FO`).
    config: the two bounds.
  """
  n_fires_F = np.diff(codes.start_F)
  size_P = np.repeat(_norms(direction_FO).astype(np.float32), n_fires_F)
  size_P *= codes.value_P
  largest_F = np.zeros(len(n_fires_F), np.float32)
  alive_F = n_fires_F > 0
  if alive_F.any():
    largest_F[alive_F] = np.maximum.reduceat(size_P, codes.start_F[:-1][alive_F])
  size_P.sort()
  weakest_other = _first_beyond(size_P, config.faint_share)
  rare_F = n_fires_F / codes.n_rows < config.ultralow_density
  kinds = [~alive_F, rare_F, largest_F < weakest_other]
  return np.select(kinds, [DEAD, ULTRALOW, FAINT], REGULAR).astype(np.int8)


def _first_beyond(size_P: np.ndarray, share: float) -> float:
  """The size at which the sum of squares, from the smallest size on, first exceeds that share of the sum of all.

  For instance, with the sizes 1, 1, 3 and 30 and a share of 0.02 it is 30: 1 + 1 + 9 is below 0.02 times 911. Where the
  share is never exceeded it is infinity. Sums are taken part by part, which needs little memory beside the sizes.
  """
  parts = [size_P[first:first + _PART] for first in range(0, len(size_P), _PART)]
  sums = [np.square(part_P, dtype=np.float64).sum() for part_P in parts]
  before, most = 0.0, share * sum(sums)
  for part_P, total in zip(parts, sums, strict=True):
    if before + total > most:
      upto_P = before + np.cumsum(np.square(part_P, dtype=np.float64))
      return float(part_P[min(np.searchsorted(upto_P, most, side="right"), len(part_P) - 1)])
    before += total
  return np.inf


def _norms(direction_FO: np.ndarray) -> np.ndarray:
  return np.linalg.norm(direction_FO, axis=1)


def variance_share(codes: Codes, direction_FO: np.ndarray) -> np.ndarray:
  """The part of each feature in what all add to reconstructions: sum of f^2 |d|^2 over rows, as a share of all such."""
  carried_F = codes.sums()[1] * np.square(_norms(direction_FO), dtype=np.float64)
  return carried_F / max(carried_F.sum(), 1e-30)


def loss_share(config: AnalysisConfig, subject: LoadedSubject, sae: SAE, status_F: np.ndarray, tokens: Tokens,
               kept: Kept = EVERY) -> tuple[dict[str, float], float | None]:
  """The part of each kind of features in what all do for the subject's predictions, by the name of the status.

  The share of a kind is (CE_none - CE_kind) / (CE_none - CE_all): CE_kind is the cross-entropy of the subject with the
  dictionary spliced in of which only that kind's features are kept, CE_none with no feature, and CE_all with all of
  them. Shares need not add up to 1, since features act together.

  Args:
    config: how much text is used.
    subject, sae: the models.
    status_F: the features' statuses.
    tokens: held-out tokens.
    kept: the positions that count.

  Returns:
    ({name: share} of the kinds that are there but for dead features, CE_none - CE_all in nats a token); empty and None
    where the subject predicts no tokens, where `config.n_share_tokens` is 0, and where features do not lower the
    cross-entropy.
  """
  if subject.model.output != "logits" or not config.n_share_tokens:
    return {}, None
  there = [status for status in range(len(STATUSES)) if status != DEAD and (status_F == status).any()]
  keep_JF = np.stack([status_F < 0, status_F >= 0, *(status_F == status for status in there)])
  none, everything, *kinds = spliced_losses(subject, sae, keep_JF, tokens, config.n_share_tokens, kept=kept)
  if none <= everything:
    return {}, None
  shares = {STATUSES[status]: float((none - kind) / (none - everything))
            for status, kind in zip(there, kinds, strict=True)}
  return shares, float(none - everything)


def table(columns: dict[str, np.ndarray], status_F: np.ndarray, variance_F: np.ndarray,
          losses: dict[str, float]) -> list[dict]:
  """A row for each status that occurs: how many features have it, their medians, and what they carry.

  Args:
    columns: the feature columns.
    status_F: the features' statuses.
    variance_F: from `variance_share`.
    losses: from `loss_share`.

  Returns:
    A list of {"status", "features", "density", "encoder_bias", "encoder_decoder_cosine", "max_act" (medians; without
    those that the dictionary lacks), "variance_share", "ce_share" (None where it is not known)}.
  """
  rows: list[dict] = []
  for status, name in enumerate(STATUSES):
    is_one_F = status_F == status
    if is_one_F.any():
      medians = {column.removesuffix("_F"): float(np.median(columns[column][is_one_F]))
                 for column in _STATISTICS if column in columns}
      rows.append({"status": name, "features": int(is_one_F.sum()), **medians,
                   "variance_share": float(variance_F[is_one_F].sum()), "ce_share": losses.get(name)})
  return rows
