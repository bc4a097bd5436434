"""The stages of a run, in order: what each reads from the run's folder, does, and reports.

Each is a function (run, config) -> record. Heavy libraries are imported when a stage begins, so that a
script's `--help` and a finished stage cost nothing.
"""

import dataclasses
import math

from monojax import config as configs
from monojax import files, metrics
from monojax.activations.config import HarvestConfig
from monojax.config import require
from monojax.pipeline.runs import (
  MEANS,
  SWEEPS,
  load,
  load_subject,
  load_tokenizer,
  mean_activation,
  open_tokens,
  tokens_meta,
)
from monojax.sae.config import SAEConfig

_MEASURED_ROWS = 65_536  # of a stream, for the mean activation


def prepare_text(run, config):
  """Documents to tokens."""
  def work(directory, _):
    from monojax.text import prepare
    meta = prepare.prepare(config.text, directory)
    return {"tokens/train_tokens": meta["n_tokens"]["train"], "tokens/val_tokens": meta["n_tokens"]["val"],
            "tokens/vocab_size": meta["vocab_size"], "tokens/documents": sum(meta["n_documents"].values())}
  return run.execute("tokens", config.text, work, alone=True)


def train_subject(run, config):
  """Tokens to a trained subject, its held-out loss, and what n-gram models reach on the same tokens."""
  model_config = config.subject.model
  n_known = tokens_meta(run)["vocab_size"]
  vocab_size = model_config.vocab_size or n_known
  require(vocab_size >= n_known, "subject.model.vocab_size", vocab_size,
          f"the tokenizer has {n_known} tokens")
  subject_config = dataclasses.replace(
      config.subject, model=dataclasses.replace(model_config, vocab_size=vocab_size))

  def work(directory, identity):
    import jax

    from monojax.mesh import make_mesh
    from monojax.subjects import train
    from monojax.text import ngram
    train_tokens, val_tokens = open_tokens(run, "train"), open_tokens(run, "val")
    context_C = val_tokens.choose(model_config.n_context + 1, subject_config.val_tokens)
    saved = {"subject": configs.to_dict(subject_config), "identity": identity}
    model, params = train.train_subject(subject_config, train_tokens, directory, saved,
                                        make_mesh(config.mesh), config.metrics)
    loss = train.validation_loss(model, params, val_tokens, context_C)
    scored_CU = val_tokens.context(context_C, model.config.n_context + 1)
    unigram, bigram = ngram.unigram_bigram_loss(train_tokens.tokens_N, scored_CU, vocab_size)
    _write_samples(run, directory, model, params, subject_config, jax.random.key(subject_config.seed))
    bits = loss / math.log(2) * val_tokens.n_tokens / val_tokens.text_bytes
    return {"subject/val_loss": loss, "subject/unigram_loss": unigram, "subject/bigram_loss": bigram,
            "subject/bits_per_byte": bits,
            "subject/tokens_seen": subject_config.n_steps * subject_config.batch_contexts
                                   * subject_config.model.n_context}
  return run.execute("subject", subject_config, work)


def _write_samples(run, directory, model, params, config, key):
  """Writes `samples.txt`: text that the subject makes up from an empty document."""
  if not config.sample_tokens:
    return
  import jax

  from monojax.subjects.train import sample
  tokenizer = load_tokenizer(run)
  texts = []
  for i in range(4):
    ids = sample(model, params, [tokenizer.eot_id], config.sample_tokens, jax.random.fold_in(key, i))
    texts.append(tokenizer.decode(ids[1:]))
  with files.replacing(directory / "samples.txt") as file:
    file.write("\n\n-----\n\n".join(texts).encode())


def harvest(run, config):
  """A trained subject and tokens to a store of activations, or just to their statistics, for a stream."""
  site = config.activations.site
  require(not site.endswith(".in"), "activations.site", site,
          "is read through a LayerNorm and not written to the residual stream, so that its features have no "
          "effect on the logits of their own: choose for instance layer.0.mlp.hidden or layer.0.resid")

  def store(directory, identity):
    import jax

    from monojax.activations.harvest import harvest as fill
    from monojax.activations.store import ActivationStore
    from monojax.mesh import make_mesh
    model, params = load_subject(run)
    mesh = make_mesh(devices=jax.local_devices())  # each process makes shards of its own
    params = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.P()))
    place = store_place(run, config.activations)
    fill(config.activations, model, params, open_tokens(run, "train"), place,
         _store_identity(config.activations, identity), mesh)
    store = ActivationStore.open(place)
    statistics = store.statistics()
    files.write_npz(directory / MEANS, {name: statistics[f"{name}/mean_M"] for name in config.activations.sites})
    return {"activations/rows": store.n_rows, "activations/shards": store.layout.n_shards,
            "activations/width": store.width,
            **{f"activations/{name}": value for name, value in store.meta["scale"][site].items()}}

  def measure(directory, _):
    """What a store would say of its rows, from a sample of those that a stream will make."""
    import numpy as np

    from monojax.mesh import make_mesh
    source = _stream(run, config.activations, config.activations.sites, config.sae, make_mesh(config.mesh))
    x_NM = source.sample(_MEASURED_ROWS, config.activations.seed).astype(np.float64)
    of_sites = np.split(x_NM, np.cumsum(source.widths)[:-1], axis=1)
    files.write_npz(directory / MEANS, {name: rows_NM.mean(0) for name, rows_NM
                                        in zip(config.activations.sites, of_sites, strict=True)})
    return {"activations/rows": source.n_rows, "activations/width": source.widths[0],
            "activations/mean_norm": float(np.linalg.norm(of_sites[0], axis=1).mean())}
  work = {"store": store, "stream": measure}[config.activations.source]
  return run.execute("activations", config.activations, work)


def store_place(run, harvest_config):
  """The folder or URL of a run's store."""
  return harvest_config.url or run.directory / "activations"


def _store_identity(harvest_config, stage_identity):
  return {"sites": list(harvest_config.sites), "stage": stage_identity}


def check_store(run, config, repair):
  """Reads a run's whole store: [(shard, what is wrong with it)]. With `repair`, those are harvested again."""
  from monojax.activations.store import faults, forget
  record = run.require_stage("activations")
  harvest_config = configs.from_dict(HarvestConfig, record["config"])
  require(harvest_config.source == "store", "activations.source", "stream", "keeps no store that could be checked")
  place, damaged = store_place(run, harvest_config), []
  bar = metrics.progress(record["figures"]["activations/shards"], "shards", "check")
  for shard, fault in faults(place):
    if fault:
      damaged.append((shard, fault))
      bar.write(f"shard {shard}: {fault}")
    bar.update()
  bar.close()
  if repair and damaged:
    run.reopen("activations")
    for shard, _ in damaged:
      forget(place, shard)
    harvest(run, dataclasses.replace(config, activations=harvest_config))
  return damaged


def train_sae(run, config):
  """A store of activations to a dictionary, and how faithful it is on held-out text."""
  sae_config = config.sae.resolved()

  def work(directory, identity):
    from monojax.analysis.pictures import draw_curves
    from monojax.mesh import make_mesh
    from monojax.sae.train import train_sae as fit
    mesh = make_mesh(config.mesh)
    source, wiring = _source(run, sae_config, mesh)
    model, params = fit(sae_config, source, wiring, directory, _saved(sae_config, wiring, identity), mesh,
                        config.metrics)
    draw_curves(directory / "metrics.jsonl", directory / "curves.png")
    return _measure(run, sae_config, model, params, "sae")
  return run.execute("sae", sae_config, work)


def train_frontier(run, config):
  """The main dictionary's recipe at other sparsities: points of the (L0, recovered) frontier."""
  base = configs.from_dict(SAEConfig, run.require_stage("sae")["config"])
  if config.frontier.n_steps:
    base = dataclasses.replace(base, n_steps=config.frontier.n_steps, resample_every_steps=0, penalty_warmup_steps=0)

  def work(directory, identity):
    from monojax import checkpoint
    start = (checkpoint.load_params(run.directory / "sae" / "checkpoints")[0] if config.frontier.n_steps
             else None)
    points = [_point("sae", run.require_stage("sae")["figures"], _seconds(run.directory / "sae", base))]
    further = _sweep(run, config, base, base.at_sparsities(config.frontier.sparsities), directory, identity, start)
    for point in further if config.frontier.n_steps else ():
      point["rows_seen"] += points[0]["rows_seen"]  # those of the dictionary that it went on from
    points += further
    _write_points(directory / "frontier", points)
    return {f"frontier/{point['sparsity']:g}/{name}": point[name]
            for point in points for name in ("l0", "ce_recovered_zero", "explained_variance")}
  return run.execute("frontier", config.frontier, work)


def sweep(run, config):
  """A grid of dictionaries on one pass over a run's store, in `sweeps/NAME`, and a table of all such sweeps."""
  def work(directory, identity):
    points = _sweep(run, config, config.sae, config.sweep.configs(config.sae), directory, identity)
    _write_points(directory / "points", points)
    return {f"{point['name']}/{name}": point[name] for point in points
            for name in ("l0", "explained_variance", "ce_recovered_zero", "heldout_alive_fraction")}
  record = run.execute(f"{SWEEPS}/{config.sweep.name}",
                       {"sweep": config.sweep, "sae": config.sae.resolved()}, work)
  everything = [{"sweep": path.parent.name, **point}
                for path in sorted((run.directory / SWEEPS).glob("*/points.json")) for point in files.read_json(path)]
  _write_points(run.directory / SWEEPS / "all", everything)
  from monojax.analysis.pictures import draw_frontier
  if not draw_frontier(everything, run.directory / SWEEPS / "frontier.png"):
    print("sweeps/frontier.png and curves.png are not drawn: they need matplotlib, pip install 'monojax[report]'")
  return record


def _source(run, sae_config, mesh):
  """The shuffled rows that a dictionary trains on, and how they are wired to it."""
  from monojax import mesh as meshes
  from monojax.activations.reader import ShuffledRows
  from monojax.activations.store import ActivationStore
  from monojax.sae.model import Wiring
  record = run.require_stage("activations")
  config = configs.from_dict(HarvestConfig, record["config"])
  reads, writes = sae_config.wired(config.site)
  sites = tuple(dict.fromkeys(reads + writes))
  if config.source == "stream":
    source = _stream(run, config, sites, sae_config, mesh)
    widths = source.widths
  else:
    store = ActivationStore.open(store_place(run, config), _store_identity(config, record["identity"]), sites)
    meshes.require_divides(mesh, "data", sae_config.batch_rows)
    source = ShuffledRows(store, sae_config.batch_rows, sae_config.buffer_rows, sae_config.seed,
                          meshes.local_rows(mesh, sae_config.batch_rows))
    widths = store.widths
  return source, Wiring(widths, tuple(map(sites.index, reads)), tuple(map(sites.index, writes)))


def _stream(run, harvest_config, sites, sae_config, mesh):
  from monojax.activations.stream import Stream
  model, params = load_subject(run)
  config = dataclasses.replace(harvest_config, site=sites[0], more_sites=sites[1:])
  return Stream(config, model, params, open_tokens(run, "train"), sae_config.batch_rows,
                sae_config.buffer_rows, sae_config.seed, mesh)


def _saved(sae_config, wiring, identity):
  """What is kept beside a dictionary's parameters: enough to rebuild its model."""
  return {"sae": configs.to_dict(sae_config), "wiring": configs.to_dict(wiring), "identity": identity}


def _measure(run, sae_config, model, params, name, baseline=None):
  """A dictionary's figures on held-out text; another's, if given, spare computing what they share."""
  from monojax.analysis.fidelity import BASELINE, fidelity
  subject, subject_params = load_subject(run)
  reads, writes = sae_config.wired(run.require_stage("activations")["config"]["site"])
  scores = fidelity(subject, subject_params, model, params, reads, writes, mean_activation(run, writes),
                    open_tokens(run, "val"), sae_config.val_tokens,
                    baseline=baseline and {key: baseline[f"sae/{key}"] for key in BASELINE})
  if scores["ce_recovered_zero"] is None:
    print(f"{name}: zero-ablating {' and '.join(writes)} does not raise the loss ({scores['ce_zero']:.4f} against "
          f"{scores['ce_clean']:.4f}), so cross-entropy recovered is undefined: train the subject longer")
  return {"sae/recipe": sae_config.recipe, "sae/n_features": sae_config.n_features,
          "sae/sparsity": sae_config.sparsity, "sae/rows_seen": sae_config.n_steps * sae_config.batch_rows,
          **{f"sae/{name}": value for name, value in scores.items()}}


def _sweep(run, config, base, members, directory, identity, start=None):
  """Trains dictionaries on one pass over a run's store, in `base`'s order, and measures each; returns their points."""
  from monojax.analysis.pictures import draw_curves
  from monojax.mesh import make_mesh
  from monojax.sae.sweep import name_of, train_sweep
  if not members:
    return []
  mesh = make_mesh(config.mesh)
  source, wiring = _source(run, base, mesh)
  saved = {name_of(member): _saved(member, wiring, identity) for member in members}
  found = train_sweep(members, source, wiring, directory, saved, mesh, config.metrics, start, base.seed)
  draw_curves(directory / "metrics.jsonl", directory / "curves.png")
  points, figures = [], None
  for name, (member, model, params) in found.items():
    place = directory / "dictionaries" / name / "figures.json"
    figures = files.read_json(place) or _measure(run, member, model, params, name, figures)
    files.write_json(place, figures)
    # Members of one size take turns, so that their time is shared alike.
    alike = len({member.n_features for member in members}) == 1
    points.append(_point(name, figures, _seconds(directory, member) / len(members) if alike else None))
  return points


def _seconds(directory, sae_config):
  """The time that training there took. It is no figure of a stage: what is made must not depend on the hour."""
  return metrics.seconds_trained(directory / "metrics.jsonl", "rows", sae_config.batch_rows)


def _point(name, figures, seconds):
  """A dictionary's row in a table of several."""
  columns = ("recipe", "sparsity", "n_features", "l0", "explained_variance", "ce_recovered_zero", "ce_recovered_mean",
             "heldout_alive_fraction", "heldout_dense_features", "rows_seen")
  return {"name": name, **{column: figures.get(f"sae/{column}") for column in columns}, "train_seconds": seconds}


def _write_points(path, points):
  """Writes a table of dictionaries as `path`.json and `path`.csv, sparser ones first."""
  points = sorted(points, key=lambda point: (point["recipe"], point["l0"]))
  shown = lambda value: "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
  lines = [",".join(points[0])] + [",".join(shown(value) for value in point.values()) for point in points]
  with files.replacing(path.with_suffix(".csv")) as file:
    file.write(("\n".join(lines) + "\n").encode())
  files.write_json(path.with_suffix(".json"), points)


def analyze(run, config):
  """A dictionary to tables of its features."""
  def work(directory, _):
    from monojax.analysis.analyze import analyze as measure
    loaded = load(run.directory)
    require(loaded.reads == loaded.writes == (loaded.site,), "sae.reads", loaded.reads,
            "is not what the analysis is of: the run's own dictionary has to be an autoencoder of one site; train "
            "others beside it, with --name")
    tables = measure(config.analysis, loaded, open_tokens(run, "train"), open_tokens(run, "val"))
    tables.summary["config"] = {name: run.require_stage(name)["config"]
                                for name in ("tokens", "subject", "activations", "sae")}
    tables.save(directory)
    return {f"sae/{name}": value for name, value in tables.summary["figures"].items()} | {
        f"detectors/{row['class']}/{kind}_f1": row[f"{kind}_f1"]
        for row in tables.summary["detectors"] for kind in ("feature", "neuron")}
  return run.execute("analysis", config.analysis, work)


def build_browser(run, config):
  """Tables of features to a static site."""
  def work(directory, _):
    from monojax.analysis.tables import FeatureTables
    from monojax.browser.build import build_browser as build
    tables = FeatureTables.load(run.directory / "analysis")
    tables.summary["figures"] = run.write_summary()
    if run.stage("frontier"):
      tables.summary["frontier"] = files.read_json(run.directory / "frontier" / "frontier.json")
    build(tables, directory / "site", config.browser.title or run.directory.resolve().name,
          config.browser.features_per_file)
    return {}
  return run.execute("browser", config.browser, work, alone=True)


STAGES = {"tokens": prepare_text, "subject": train_subject, "activations": harvest, "sae": train_sae,
          "frontier": train_frontier, "analysis": analyze, "browser": build_browser}
