"""The whole analysis of one dictionary's features: densities, examples, neighbours, logit weights, detectors.

`analyze` measures features on a run's text by running its subject. `analyze_rows` measures them on rows of activations
that came with their tokens, where there is no subject; what needs one is then left out.

Letters: N rows, F features, M width read, O width written, J columns, V vocabulary.
"""

import dataclasses
import pathlib
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from monojax import files
from monojax import mesh as meshes
from monojax.activations.kept import EVERY, Kept
from monojax.activations.store import ActivationStore
from monojax.analysis import detectors, labels, proxy_rows, scripts, tables
from monojax.analysis import status as statuses
from monojax.analysis import text as texts
from monojax.analysis.codes import Codes, Watch, collect, tokens_that_fit
from monojax.analysis.config import AnalysisConfig
from monojax.analysis.effects import Seen, direct_path, effect_columns, last_rows, loss_rises
from monojax.analysis.examples import example_tables
from monojax.analysis.explanations import summary as label_summary
from monojax.analysis.fidelity import make_encode
from monojax.analysis.logits import logit_weights, path_of, typical_scale, used_tokens
from monojax.analysis.neighbours import NeuronSums, neighbour_columns
from monojax.analysis.progress import Progress
from monojax.analysis.removal import sizes
from monojax.analysis.removal_direct import LastRows
from monojax.analysis.shown_texts import shown_texts
from monojax.analysis.sources import source_columns
from monojax.sae.dictionary import SAE
from monojax.sae.recipes import leading_groups
from monojax.subjects.subject import LoadedSubject
from monojax.text.tokens import Tokens

_LISTED_NEURONS = 3
_MOST_CODES = 1 << 24  # activations of features that are computed at a time: 64 MB, of which XLA needs several
_ROWS_AT_ONCE = 8192


@dataclasses.dataclass(frozen=True)
class _Detecting:
  """How features and neurons are collected for detectors, and how many tokens fit into memory.

  Attributes:
    both: (batch) -> the activations of features and those of neurons, side by side.
    n_neurons: None where neurons are never negative; otherwise their number, and `both` has `both_signs` of them.
    per_token: non-zero activations on a token, of features and of neurons.
  """
  both: typing.Callable
  n_neurons: int | None
  per_token: tuple[float, float]


def analyze(config: AnalysisConfig, subject: LoadedSubject, sae: SAE, train_tokens: Tokens, val_tokens: Tokens,
            token_strings: list[str], kept: Kept = EVERY, mesh: Mesh | None = None,
            partial: pathlib.Path | None = None, identity: str = "") -> tables.FeatureTables:
  """Everything there is to say about a dictionary of a subject.

  Args:
    config: how much text features are measured on, and which classes of text are looked for.
    subject: the subject.
    sae: the dictionary.
    train_tokens, val_tokens: the run's tokens of either split.
    token_strings: a string for each token id.
    kept: the positions that count: no feature fires on others, and densities are shares of those that count.
    mesh: the devices, of all processes, over whose axis "data" the contexts of a batch are split; by default one.
    partial: a folder where what has been collected of the features is kept now and again, so that an analysis that was
      interrupted goes on from there; it is removed in the end. By default nothing is kept.
    identity: of all else that the analysis is made of; what was kept of another one is not used.

  Returns:
    `FeatureTables`, whose `summary` holds `figures` (flat numbers), `density_histogram` (`log10_edges`, `counts`),
    `statuses` (rows of `status.table`), `detectors` (rows of `detectors.compare`), `proxies` (rows of
    `proxy_rows.rows_of`), `proxies_left_out` (those that the text has nothing of), `texts` (see `shown_texts`),
    `labels` (`explanations.summary` of all labels) and `n_tokens`.
  """
  direct = direct_path(subject, sae) if config.effects != "none" else None
  encode = _make_encoding(subject, sae, kept, direct[0].scale_site if direct else "", mesh)
  batch_contexts = contexts_at_once(config, sae.n_features, subject.n_context, mesh.shape["data"] if mesh else 1)
  detecting = _detecting(config, subject, encode, train_tokens, batch_contexts)
  n_neurons = sae.model.wiring.n_inputs
  neuron_sums = NeuronSums(sae.n_features, n_neurons, kept.all)
  values, domains = scripts.bytes_of(token_strings, train_tokens), list(train_tokens.domains)
  meter_of = lambda text: proxy_rows.Meter(text, values, domains, sae.n_features, n_neurons, every=kept.all)

  def measured(function, tokens, n_tokens, description, meter_of=None, last=None):
    chosen_C = tokens.choose(subject.n_context, n_tokens, config.seed)
    batches = texts.batches(tokens, chosen_C, subject.n_context, batch_contexts)
    text = texts.of_contexts(tokens, chosen_C, subject.n_context, kept)
    meter = meter_of(text) if meter_of else None
    progress = None
    if meter and partial:
      summed = {"neurons": neuron_sums, "meter": meter, "proxies": meter.sums}
      progress = Progress(partial, f"{identity} {batch_contexts} {files.digest(chosen_C)}", summed)
      if progress.n_batches:
        last = None  # what it would hold of the first batches is computed anew where it is needed
    watch = _watching(sae, neuron_sums, meter, last) if meter else None
    codes = collect(function, batches, text.n_rows, description, watch=watch, progress=progress)
    return dataclasses.replace(codes, n_rows=len(text.counted_N)), text, meter

  available = train_tokens.n_tokens
  n_tokens = tokens_that_fit(min(config.n_tokens or available, available), detecting.per_token[0])
  n_rows = train_tokens.contexts(subject.n_context, n_tokens) * subject.n_context
  last = last_rows(subject, sae, n_rows) if direct else None
  codes, text, meter = measured(encode, train_tokens, n_tokens, "features", meter_of, last)
  last = last if last and last.is_whole else None
  columns = example_tables(codes, text, len(domains), config.seed)
  columns |= neighbour_columns(sae.direction_FO, codes, text.counted_N, neuron_sums)
  used_V = used_tokens(train_tokens, subject.model.n_vocab, config.min_token_count)
  used_V[len(token_strings):] = False  # a subject may have room for more tokens than there are
  seen = Seen(subject, sae, codes, text, used_V, config.batch_contexts, kept, last)
  effects, figures = effect_columns(config, seen, columns["example_position_FE"])
  effects |= source_columns(config, seen, columns["example_position_FE"][:, 0])
  del seen, last  # up to an eighth of the memory
  detector_rows: list[dict] = []
  if classes := detectors.classes_of(config.detectors, domains):
    n_tokens = tokens_that_fit(min(config.n_detector_tokens or available, available), sum(detecting.per_token))
    choosing, testing = (measured(detecting.both, tokens, n_tokens, f"detectors, {tokens.split}")
                         for tokens in (train_tokens, val_tokens))
    features, neurons = ([both.part(start, stop or len(both.start_F) - 1) for both, _, _ in (choosing, testing)]
                         for start, stop in ((0, sae.n_features), (sae.n_features, None)))
    detector_rows = detectors.compare(features, neurons, choosing[1].domain_N, testing[1].domain_N, classes,
                                      detecting.n_neurons)
  columns |= effects | weight_columns(sae) | logit_columns(config, subject, sae, used_V, val_tokens, kept)
  losses_of = lambda status_F: statuses.loss_share(config, subject, sae, status_F, val_tokens, kept)
  found = _tables(config, sae, columns, codes, detector_rows, token_strings, domains, losses_of, figures)
  found = _with_words(config, found, codes, text, values, meter)
  if partial:
    files.remove(partial)
  return found


def contexts_at_once(config: AnalysisConfig, n_features: int, n_context: int, n_devices: int = 1) -> int:
  """How many contexts are encoded in one pass: as many as `config` says, or fewer if there are many features; in any
  case a multiple of the devices that they are split over."""
  most = min(config.batch_contexts, _MOST_CODES // (n_features * n_context))
  return max(1, most // n_devices) * n_devices


def _make_encoding(subject: LoadedSubject, sae: SAE, kept: Kept, beside: str,
                   mesh: Mesh | None) -> typing.Callable[[np.ndarray], tuple]:
  """The function tokens_BT -> what `make_encode` gives, whose contexts are split over the devices of a mesh."""
  encode = make_encode(subject.model, sae.model, sae.reads, kept, beside)
  if mesh is None or mesh.size == 1:
    return lambda tokens_BT: encode(subject.params, sae.params, tokens_BT)
  params = subject.placed(mesh).params
  sae_params = jax.tree.map(lambda leaf: meshes.on_mesh(np.asarray(leaf), mesh, PartitionSpec()), sae.params)
  return lambda tokens_BT: encode(params, sae_params, meshes.on_mesh(tokens_BT, mesh, PartitionSpec("data")))


def _watching(sae: SAE, neuron_sums: NeuronSums, meter: proxy_rows.Meter, last: LastRows | None = None) -> Watch:
  """What is done with each batch that is encoded, besides keeping its features."""
  def watch(row_P, feature_P, value_P, x_RM, last_RD=None):
    neuron_sums.add(row_P, feature_P, value_P, x_RM)
    meter.add(row_P, feature_P, value_P, x_RM)
    if last:
      last.add(last_RD, sizes(sae, x_RM))
  return watch


def _detecting(config, subject, encode, tokens, batch_contexts) -> _Detecting:
  """Looks at one batch of random contexts: how many activations there are on a token, and whether some are negative."""
  chosen_C = tokens.choose(subject.n_context, batch_contexts * subject.n_context, config.seed)
  tokens_BT = tokens.context(np.resize(chosen_C, batch_contexts), subject.n_context)
  f_NF, x_NM = meshes.to_host(encode(tokens_BT)[:2])
  count = lambda x_NJ: float((x_NJ != 0).sum() / len(x_NJ))
  per_token = count(f_NF), count(x_NM)
  signed = bool((x_NM < 0).any())

  def both(tokens_BT):
    f_NF, x_NM = encode(tokens_BT)[:2]
    return jnp.concatenate([f_NF, detectors.both_signs(x_NM) if signed else x_NM], axis=1)
  return _Detecting(both, x_NM.shape[1] if signed else None, per_token)


def analyze_rows(config: AnalysisConfig, sae: SAE, store: ActivationStore) -> tables.FeatureTables:
  """What can be said about a dictionary from stored rows and their places alone: no subject is run.

  Logit weights need a subject and are left out. Detectors are chosen on one half of the documents and tested on the
  other. Rows are taken in whole shards, within which neighbours in the text are together.

  Args:
    config: how much text features are measured on, and which classes of text are looked for.
    sae: the dictionary; it reads the store's sites.
    store: rows with places (tokens, documents, positions), open on the sites that the dictionary was trained on.
  """
  wanted = min(config.n_tokens or store.n_rows, store.n_rows)
  n_rows = min(store.n_rows, -(-wanted // store.layout.shard_rows) * store.layout.shard_rows)
  starts = range(0, n_rows, _ROWS_AT_ONCE)
  text, rank_N = texts.of_places(store.places(0, n_rows))
  wiring = sae.model.wiring

  def batches():
    for start in starts:
      stop = min(start + _ROWS_AT_ONCE, n_rows)
      yield np.asarray(wiring.inputs(store.rows(start, stop)), np.float32), stop - start
  neuron_sums = NeuronSums(sae.n_features, wiring.n_inputs, every=True)
  domains, strings = list(store.meta.get("domains", ())), store.token_strings()
  token_strings = strings or [f"#{token}" for token in range(int(text.token_N.max(initial=-1)) + 1)]
  values = scripts.bytes_of_tokens(strings) if strings else [b""] * len(token_strings)
  meter = proxy_rows.Meter(text, values, domains, sae.n_features, wiring.n_inputs, rank_N, every=True)
  watch = _watching(sae, neuron_sums, meter)
  codes = collect(lambda x_NM: (sae.encode(x_NM), x_NM), batches(), n_rows, "features", rank_N, watch)
  columns = example_tables(codes, text, len(domains), config.seed) | weight_columns(sae)
  columns |= neighbour_columns(sae.direction_FO, codes, text.counted_N, neuron_sums)
  detector_rows: list[dict] = []
  if classes := detectors.classes_of(config.detectors, domains):
    neurons = collect(lambda x_NM: detectors.both_signs(x_NM), batches(), n_rows, "neurons", rank_N)
    is_test_N = text.document_N % 2 == 1
    halves = lambda codes: (codes.on_rows(~is_test_N), codes.on_rows(is_test_N))
    detector_rows = detectors.compare(halves(codes), halves(neurons), text.domain_N[~is_test_N],
                                      text.domain_N[is_test_N], classes, wiring.n_inputs)
  found = _tables(config, sae, columns, codes, detector_rows, token_strings, domains)
  return _with_words(config, found, codes, text, values, meter)


def _tables(config, sae, columns, codes, detector_rows, token_strings, domains,
            losses_of=lambda status_F: ({}, None), more=None) -> tables.FeatureTables:
  """The tables of an analysis, with its status column and its summary.

  `losses_of` is `loss_share` of the subject; `more` are figures besides those that are found here.
  """
  density_F, direction_FO = columns["density_F"], sae.direction_FO
  status_F, variance_F = statuses.status_of(codes, direction_FO, config), statuses.variance_share(codes, direction_FO)
  shares, recovered = losses_of(status_F)
  status_rows = statuses.table(columns, status_F, variance_F, shares)
  if recovered and "example_effects_FEW" in columns:
    columns = {**columns, "ce_share_F": loss_rises(columns, codes.n_rows) / np.float32(recovered)}
  figures = {**density_figures(status_F, density_F), "analysed_tokens": codes.n_rows, **(more or {})}
  figures |= {f"{row['status']}_{share}": row[share] for row in status_rows if row["status"] != "dead"
              for share in ("variance_share", "ce_share") if row[share] is not None}
  if detector_rows:
    figures["detectors_won"] = sum(row["feature_f1"] > row["neuron_f1"] for row in detector_rows)
    figures["detectors_tried"] = len(detector_rows)
  summary = {"figures": figures, "density_histogram": density_histogram(density_F), "statuses": status_rows,
             "detectors": detector_rows, "n_tokens": codes.n_rows}
  columns = {"status_F": status_F, "variance_share_F": variance_F.astype(np.float32), **columns}
  return tables.FeatureTables(columns, token_strings, domains, summary)


def _with_words(config: AnalysisConfig, found: tables.FeatureTables, codes: Codes, text: texts.AnalysedText,
                values: list[bytes], meter: proxy_rows.Meter) -> tables.FeatureTables:
  """The tables with what needs the tokens' text: proxies and pieces of text in the summary, labels and their scores."""
  summary = {**found.summary, "proxies": meter.rows(codes), "proxies_left_out": list(meter.proxies.left_out),
             "texts": shown_texts(codes, text, found.domains)}
  if not config.n_label_tokens or not (text.token_N >= 0).any():  # labels are about tokens, which may not be known
    return dataclasses.replace(found, summary=summary)
  alive = np.flatnonzero(np.diff(codes.start_F)).tolist()
  labelled = labels.label_all(codes, text, found.token_strings, values, found.domains, alive, config.seed,
                              config.n_label_tokens)
  label_F, score_F = [""] * found.n_features, np.full(found.n_features, np.nan, np.float32)
  others_F: list[list] = [[] for _ in label_F]
  for one in labelled:
    label_F[one.feature], score_F[one.feature] = one.text, one.score
    others_F[one.feature] = [list(other) for other in one.others]
  told = label_summary(labelled, config.seed)
  medians = {f"label_{name}_median": told[name][0] for name in ("score", "score_others") if told[name]}
  summary |= {"labels": told, "figures": {**summary["figures"], "labels_scored": told["scored"], **medians}}
  return dataclasses.replace(found, columns={**found.columns, "label_score_F": score_F}, summary=summary,
                             labels=label_F, other_labels=others_F)


def density_figures(status_F: np.ndarray, density_F: np.ndarray) -> dict[str, float | int]:
  """Fractions of features of each kind; how many fire on over 1 % of tokens; the median density.

  Faint and ultralow features are alive, too. The median is that of the alive features.
  """
  return {
      "alive_fraction": float(np.mean(status_F != tables.DEAD)),
      "faint_fraction": float(np.mean(status_F == tables.FAINT)),
      "ultralow_fraction": float(np.mean(status_F == tables.ULTRALOW)),
      "dead_fraction": float(np.mean(status_F == tables.DEAD)),
      "n_features": len(status_F),
      "features_above_1_percent": int(np.sum(density_F > 0.01)),
      "median_density": float(np.median(density_F[density_F > 0])) if density_F.any() else 0.0,
  }


def density_histogram(density_F: np.ndarray) -> dict[str, list]:
  """Histogram of log10 density in quarters of a power of ten; dead features are left out."""
  edges = np.arange(-8.0, 0.01, 0.25)
  return {"log10_edges": edges.tolist(),
          "counts": np.histogram(np.log10(density_F[density_F > 0]), edges)[0].tolist()}


def weight_columns(sae: SAE) -> dict[str, np.ndarray]:
  """The feature columns that are computed from the dictionary's weights alone: biases and largest neurons,
  and the group of features that must reconstruct alone."""
  W_dec_FO, W_enc_MF = sae.direction_FO, np.asarray(sae.params["W_enc_MF"])
  top_FN = np.argsort(-np.abs(W_dec_FO), axis=1, kind="stable")[:, :_LISTED_NEURONS]
  weights_FN = np.take_along_axis(W_dec_FO, top_FN, axis=1)
  columns = {
      "encoder_bias_F": np.asarray(sae.params["b_enc_F"]),
      "top_neuron_ids_FN": top_FN.astype(np.int32), "top_neuron_weights_FN": weights_FN,
      "top_neuron_l1_share_FN": np.abs(weights_FN) / np.abs(W_dec_FO).sum(1, keepdims=True),
  }
  if sae.form is None and (sizes_G := leading_groups(sae.config)):  # nothing is known of other tools' groups
    columns["group_F"] = 1 + np.searchsorted(sizes_G, np.arange(sae.n_features), side="right").astype(np.int32)
  if sae.model.wiring.autoencodes:
    norm_F = np.linalg.norm(W_enc_MF, axis=0) * np.linalg.norm(W_dec_FO, axis=1)
    columns["encoder_decoder_cosine_F"] = (W_enc_MF * W_dec_FO.T).sum(0) / np.maximum(norm_F, 1e-12)
  return columns


def logit_columns(config: AnalysisConfig, subject: LoadedSubject, sae: SAE, used_V: np.ndarray,
                  val_tokens: Tokens, kept: Kept = EVERY) -> dict[str, np.ndarray]:
  """The feature columns of direct effects on the logits; none where the site reaches them only through later layers.

  A dictionary that writes several sites is judged by the last of them that has a path to the logits.
  """
  found = path_of(subject, sae)
  if found is None:
    why = "reaches the logits only through later computation" if subject.model.output == "logits" else (
        "reaches no logits: the subject is an encoder")
    print(f"no logit weights: what features add to {' and '.join(sae.writes)} {why}", flush=True)
    return {}
  path, columns = found
  scale = typical_scale(subject, path, val_tokens, config.batch_contexts, config.seed, config.n_scale_tokens, kept)
  return logit_weights(sae.direction_FO[:, columns], path, scale, used_V)
