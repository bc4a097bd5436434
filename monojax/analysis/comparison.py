"""Two dictionaries on the same text, of one subject or of two: which features they share, and how alike those are.

Whatever is found for features is found for two controls by the same procedure: for the subjects' neurons, and for
features with random directions that fire as often as the dictionaries' own.

Letters: F features, of A or of B; N rows, one for each token; B contexts of a batch, T positions, U = T + 1 tokens of a
context and the last one's next token; C contexts; M width read, O width written; V vocabulary; J features at a time; P
pairs of a feature of A and one of B.
"""

import collections.abc
import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from monojax.activations.kept import EVERY, Kept
from monojax.analysis import matching
from monojax.analysis.codes import Codes, collect, tokens_that_fit
from monojax.analysis.config import CompareConfig
from monojax.analysis.fidelity import side_by_side
from monojax.analysis.matched_effects import effects_alike
from monojax.config import require
from monojax.host_memory import total_bytes
from monojax.linear import product
from monojax.sae.dictionary import SAE
from monojax.subjects.subject import LoadedSubject, Subject
from monojax.text.tokens import Tokens

_LARGEST_TABLE = 1 << 28  # numbers in a table of neurons by neurons: 1 GiB in float32
_ROWS_AT_ONCE = 2048


@dataclasses.dataclass(frozen=True)
class Side:
  """One of two dictionaries that are compared, and where its activations are from.

  Attributes:
    sae: the dictionary.
    subject: its subject. Two dictionaries are of the same subject if this is the same object.
    kept: the positions that count.
  """
  sae: SAE
  subject: LoadedSubject
  kept: Kept = EVERY


class Batch(typing.NamedTuple):
  """What two dictionaries read on the same tokens, a_NM and b_NM, and which of these rows count."""
  a_NM: jax.Array
  b_NM: jax.Array
  counts_N: jax.Array


Batches = collections.abc.Callable[[], collections.abc.Iterator[tuple[Batch, int]]]


@dataclasses.dataclass(frozen=True)
class Comparison:
  """What two dictionaries, A and B, have in common.

  Attributes:
    matches: {similarity: `Matches`}. "cosine" is that of directions, there only if both write the same sites of one
      subject, and "cosine_random" is A's with as many random directions; "correlation" is that of activations,
      "correlation_neurons" and "correlation_random" the same of the controls; "masked_cosine" has the edges of
      features that split. Neurons are left out where both read the same ones.
    pairs: a row for each feature of A that fires often enough: "feature"; "fires", on how many tokens; "match", the
      feature of B whose activation correlates best; "correlation" with it; "cosine" and "cosine_match", the largest one
      and whose; "partner" and "partner_similarity", of the pairs one to one; "logit_similarity" and
      "attribution_similarity" with "match". What is not known is None.
    figures: numbers about all of it, by flat names.
  """
  matches: dict[str, matching.Matches]
  pairs: list[dict[str, typing.Any]]
  figures: dict[str, float | int | str | None]


def compare(config: CompareConfig, a: Side, b: Side, tokens: Tokens) -> Comparison:
  """Compares two dictionaries on a text that their subjects read alike.

  Args:
    config: how much text, and what counts as alike.
    a, b: the dictionaries. Their subjects may differ, but must have the same tokenizer.
    tokens: the text, of which random contexts are read. Positions that do not count for one of them are left out.
  """
  same = a.subject is b.subject
  n_context = min(a.subject.n_context, b.subject.n_context)
  rng = np.random.default_rng(config.seed)  # controls are fitted to the first batch, which must be like the others
  chosen_C = rng.permutation(tokens.choose(n_context + 1, config.n_tokens, config.seed))

  def batches():  # of the contexts that are chosen when it is called
    for first in range(0, len(chosen_C), config.batch_contexts):
      index_B = chosen_C[first:first + config.batch_contexts]
      padded_B = np.pad(index_B, (0, config.batch_contexts - len(index_B)), mode="edge")
      n_used = len(index_B) * n_context
      yield _read(a, b, tokens.context(padded_B, n_context + 1)[:, :-1], n_used), n_used
  n_tokens = tokens_that_fit(len(chosen_C) * n_context, _fires_per_row(batches, a.sae, b.sae), total_bytes() // 2)
  if n_tokens < len(chosen_C) * n_context:
    chosen_C = rng.permutation(tokens.choose(n_context + 1, n_tokens, config.seed))
  codes = _codes(batches, a.sae.encode, b.sae.encode, (a.sae.n_features, b.sae.n_features), "features",
                 len(chosen_C) * n_context)
  found = _compared(config, batches, codes, a.sae, b.sae, same)
  next_N = tokens.context(chosen_C, n_context + 1)[:, 1:].reshape(-1)
  match_F = found.matches["correlation"].best_a_F
  alike = effects_alike((a.subject, a.sae), (b.subject, b.sae), codes, match_F, tokens, next_N, config.min_token_count)
  return _with_effects(found, alike)


def compare_rows(config: CompareConfig, a: SAE, b: SAE, x_a_NM: np.ndarray, x_b_NM: np.ndarray,
                 same: bool = True) -> Comparison:
  """Compares two dictionaries on rows of activations, where there is no subject: what needs one is left out.

  Args:
    config: what counts as alike; all rows are used, whatever `n_tokens` says.
    a, b: the dictionaries.
    x_a_NM, x_b_NM: what either reads, the same number of rows, which are of the same tokens.
    same: whether the rows are of one network, in which sites of one name are the same.
  """
  require(len(x_a_NM) == len(x_b_NM) > 0, "rows", (len(x_a_NM), len(x_b_NM)),
          "both dictionaries need activations on the same tokens")

  n_batches = -(-len(x_a_NM) // _ROWS_AT_ONCE)

  def batches():  # each with rows from everywhere
    for first in range(n_batches):
      parts = [np.asarray(x_NM[first::n_batches], np.float32) for x_NM in (x_a_NM, x_b_NM)]
      n_used = len(parts[0])
      a_NM, b_NM = (jnp.asarray(np.pad(part_NM, ((0, _ROWS_AT_ONCE - n_used), (0, 0)))) for part_NM in parts)
      yield Batch(a_NM, b_NM, jnp.arange(_ROWS_AT_ONCE) < n_used), n_used
  codes = _codes(batches, a.encode, b.encode, (a.n_features, b.n_features), "features", len(x_a_NM))
  return _compared(config, batches, codes, a, b, same)


def _read(a: Side, b: Side, tokens_BT: np.ndarray, n_used: int) -> Batch:
  """What both dictionaries read on some contexts; one pass through a subject that they share."""
  rows = jnp.arange(tokens_BT.size) < n_used
  if a.subject is b.subject:
    run = _make_read(a.subject.model, (a.sae.reads, b.sae.reads), tuple(dict.fromkeys((a.kept, b.kept))))
    (a_NM, b_NM), counts_N = run(a.subject.params, tokens_BT)
    return Batch(a_NM, b_NM, counts_N & rows)
  found = [_make_read(side.subject.model, (side.sae.reads,), (side.kept,))(side.subject.params, tokens_BT)
           for side in (a, b)]
  ((a_NM,), counts_a_N), ((b_NM,), counts_b_N) = found
  return Batch(a_NM, b_NM, counts_a_N & counts_b_N & rows)


@functools.lru_cache(maxsize=8)
def _make_read(subject: Subject, reads: tuple[tuple[str, ...], ...], kept: tuple[Kept, ...]) -> typing.Callable:
  """The compiled function (params, tokens_BT) -> ([x_NM of each of `reads`], counts_N by all rules of `kept`)."""
  wanted = tuple(dict.fromkeys(site for names in reads for site in names))

  @jax.jit
  def run(params, tokens_BT):
    _, sites = subject.apply({"params": params}, tokens_BT, wanted=wanted)
    counts_BT = functools.reduce(jnp.logical_and, [rule.counts(tokens_BT, sites) for rule in kept])
    return [side_by_side(sites, names) for names in reads], counts_BT.reshape(-1)
  return run


def _codes(batches: Batches, encode_a: typing.Callable, encode_b: typing.Callable, sizes: tuple[int, int],
           description: str, n_rows: int) -> tuple[Codes, Codes]:
  """The non-zero activations of two dictionaries on the rows of all batches that count."""
  counts: list[jax.Array] = []

  def counted():
    for batch, n_used in batches():
      counts.append(batch.counts_N.sum())
      yield batch, n_used

  def encode(batch):
    f_NF = jnp.concatenate([encode_a(batch.a_NM), encode_b(batch.b_NM)], axis=1)
    return jnp.where(batch.counts_N[:, None], f_NF, 0)
  both = collect(encode, counted(), n_rows, description)
  n_a, n_counted = sizes[0], sum(map(int, counts))
  cut = int(both.start_F[n_a])
  return (Codes(n_counted, both.start_F[:n_a + 1], both.row_P[:cut], both.value_P[:cut]),
          Codes(n_counted, both.start_F[n_a:] - cut, both.row_P[cut:], both.value_P[cut:]))


def _fires_per_row(batches: Batches, a: SAE, b: SAE) -> float:
  """How many features of both dictionaries together fire on a row, by the first batch."""
  batch, _ = next(iter(batches()))
  fires_N = (a.encode(batch.a_NM) != 0).sum(1) + (b.encode(batch.b_NM) != 0).sum(1)
  return float(fires_N.mean(where=batch.counts_N))


def _often(codes: tuple[Codes, Codes], min_fires: int) -> tuple[np.ndarray, np.ndarray]:
  """For either dictionary, bool: the features that fire on at least `min_fires` rows."""
  a_F, b_F = (np.diff(part.start_F) >= min_fires for part in codes)
  return a_F, b_F


def _compared(config: CompareConfig, batches: Batches, codes: tuple[Codes, Codes], a: SAE, b: SAE,
              same: bool) -> Comparison:
  """All of a comparison that needs no more of subjects than what the dictionaries read; see `compare_rows`."""
  use = _often(codes, config.min_fires)
  matches = {"correlation": matching.matched(matching.correlation_blocks(*codes), *use),
             "masked_cosine": matching.matched(matching.masked_cosine_blocks(*codes), *use, config.edge)}
  table = lambda: matching.correlation_blocks(*codes)
  main = "correlation"
  if same and a.writes == b.writes and a.model.wiring.n_outputs == b.model.wiring.n_outputs:
    a_FO, b_FO = a.direction_FO, b.direction_FO
    table, main = lambda: matching.cosine_blocks(a_FO, b_FO), "cosine"
    random_FO = np.random.default_rng(config.seed).standard_normal(b_FO.shape, np.float32)
    matches |= {"cosine": matching.matched(table(), *use),
                "cosine_random": matching.matched(matching.cosine_blocks(a_FO, random_FO), *use)}
  random_a, random_b = (_random_encoder(batches, i, part, config.seed) for i, part in enumerate(codes))
  random = _codes(batches, random_a, random_b, (len(use[0]), len(use[1])), "random directions", codes[0].n_rows)
  matches["correlation_random"] = matching.matched(matching.correlation_blocks(*random),
                                                   *_often(random, config.min_fires))
  if not (same and a.reads == b.reads) and (neurons := _neurons(batches)):
    matches["correlation_neurons"] = neurons
  if max(part.sum() for part in use) <= matching.ONE_TO_ONE_LIMIT:
    pairing, (partner_P2, value_P) = "hungarian", matching.one_to_one(table(), *use)
  else:
    pairing, partner_P2 = "mutual", matches[main].mutual()
    value_P = matches[main].value_a_F[partner_P2[:, 0]]
  figures: dict[str, typing.Any] = {
      "tokens": codes[0].n_rows, "features_a": len(use[0]), "features_b": len(use[1]),
      "matched_a": int(use[0].sum()), "matched_b": int(use[1].sum()),
      "l0_a": len(codes[0].row_P) / codes[0].n_rows, "l0_b": len(codes[1].row_P) / codes[1].n_rows}
  for name, found in matches.items():
    figures |= {f"{name}/{key}": value for key, value in found.figures(config.shared).items()}
  figures |= {"masked_cosine/edges": len(matches["masked_cosine"].edges_P2), "one_to_one/how": pairing,
              "one_to_one/by": main, "one_to_one/pairs": len(value_P),
              "one_to_one/mean": float(value_P.mean()) if len(value_P) else None,
              "one_to_one/shared": int((value_P >= config.shared).sum())}
  return Comparison(matches, _pair_rows(codes[0], use[0], matches, partner_P2, value_P), figures)


def _random_encoder(batches: Batches, side: int, codes: Codes, seed: int) -> typing.Callable[[jax.Array], jax.Array]:
  """A control: features max(0, x . d - t) with random directions d that fire as often as those of a dictionary.

  The thresholds t are chosen on the first batch, where each feature fires on as large a share of the rows as the
  dictionary's feature of its number does on all.
  """
  batch, _ = next(iter(batches()))
  x_NM = np.asarray(batch[side], np.float32)[np.asarray(batch.counts_N)]
  d_MF = np.random.default_rng((seed, side)).standard_normal((x_NM.shape[1], len(codes.start_F) - 1), np.float32)
  h_NF = np.sort(x_NM @ d_MF, axis=0)
  fires_F = np.round(np.diff(codes.start_F) / codes.n_rows * len(h_NF)).astype(np.int64)
  t_F = np.take_along_axis(h_NF, np.clip(len(h_NF) - 1 - fires_F, 0, len(h_NF) - 1)[None], axis=0)[0]
  return functools.partial(_random_features, d_MF=jnp.asarray(d_MF), t_F=jnp.asarray(t_F))


@jax.jit
def _random_features(x_NM: jax.Array, d_MF: jax.Array, t_F: jax.Array) -> jax.Array:
  """max(0, x . d - t), see `_random_encoder`."""
  return jax.nn.relu(product(x_NM, d_MF, jnp.float32) - t_F[None])


def _neurons(batches: Batches) -> matching.Matches | None:
  """The best matches of the numbers that either dictionary reads, by correlation; None if the table is too large."""
  batch, _ = next(iter(batches()))
  n_a, n_b = batch.a_NM.shape[1], batch.b_NM.shape[1]
  if n_a * n_b > _LARGEST_TABLE:
    print(f"neurons are not compared: a table of {n_a:,} by {n_b:,} would take over 1 GiB", flush=True)
    return None
  table_MM = matching.dense_correlation(batch for batch, _ in batches())
  return matching.matched(matching.table_blocks(table_MM), np.ones(n_a, bool), np.ones(n_b, bool))


def _pair_rows(codes: Codes, use_F: np.ndarray, matches: dict, partner_P2: np.ndarray,
               value_P: np.ndarray) -> list[dict[str, typing.Any]]:
  """The rows of `Comparison.pairs`, without what needs the logits."""
  partner = {int(i): (int(j), float(value)) for (i, j), value in zip(partner_P2, value_P, strict=True)}
  number = lambda value: float(value) if np.isfinite(value) else None
  rows, fires_F, cosine = [], np.diff(codes.start_F), matches.get("cosine")
  for i in np.flatnonzero(use_F).tolist():
    other, similarity = partner.get(i, (None, None))
    rows.append({
        "feature": i, "fires": int(fires_F[i]), "match": int(matches["correlation"].best_a_F[i]),
        "correlation": number(matches["correlation"].value_a_F[i]),
        "cosine_match": int(cosine.best_a_F[i]) if cosine else None,
        "cosine": number(cosine.value_a_F[i]) if cosine else None,
        "partner": other, "partner_similarity": similarity, "logit_similarity": None, "attribution_similarity": None})
  return rows


def _with_effects(found: Comparison, alike: dict[str, np.ndarray]) -> Comparison:
  """A comparison with the similarities of logit weights and attributions, {name: value_F}, in its pairs and figures."""
  pairs = [{**row, **{name: float(value_F[row["feature"]]) if np.isfinite(value_F[row["feature"]]) else None
                      for name, value_F in alike.items()}} for row in found.pairs]
  figures = dict(found.figures)
  for name, value_F in alike.items():
    figures[f"{name}/median"] = float(np.nanmedian(value_F)) if np.isfinite(value_F).any() else None
    activation_F = found.matches["correlation"].value_a_F
    both_F = np.isfinite(value_F) & np.isfinite(activation_F)
    varies = both_F.sum() > 2 and min(np.std(value_F[both_F]), np.std(activation_F[both_F])) > 0
    figures[f"{name}/correlation_with_activation"] = (
        float(np.corrcoef(value_F[both_F], activation_F[both_F])[0, 1]) if varies else None)
  return dataclasses.replace(found, pairs=pairs, figures=figures)
