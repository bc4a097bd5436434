"""The stages that train dictionaries: the run's own, others beside it, grids of them, and the frontier."""

import dataclasses
import functools
import pathlib
import typing

from monojax import config as configs
from monojax import files, metrics
from monojax.activations.config import EARLIER, SOURCES
from monojax.config import require
from monojax.pipeline import load
from monojax.pipeline.checks import require_sites, require_subject
from monojax.pipeline.config import RunConfig
from monojax.pipeline.folder import OTHERS, OWN_DICTIONARY, SWEEPS, RunFolder
from monojax.sae.config import SAEConfig
from monojax.sae.recipes import recipe_of

if typing.TYPE_CHECKING:
  import jax

  from monojax.activations.contexts import Contexts
  from monojax.activations.kept import Kept
  from monojax.activations.source import RowStore, Source
  from monojax.sae.dictionary import SAE
  from monojax.sae.model import Wiring
  from monojax.subjects.subject import LoadedSubject
  from monojax.text.tokens import Tokens

_MEASURED_ROWS = 65_536  # rows that a dictionary without a subject is measured on
# What the table of several dictionaries says of each.
_COLUMNS = ("recipe", "sparsity", "n_features", "l0", "explained_variance", "ce_recovered_zero", "ce_recovered_mean",
            "heldout_alive_fraction", "heldout_dense_features", "rows_seen")


def train_sae(run: RunFolder, config: RunConfig, stage: str = OWN_DICTIONARY, extend: bool = False,
              rows: "RowStore | Source | None" = None) -> dict:
  """Trains a dictionary and measures how faithful it is on held-out text, or, without a subject, on rows.

  Args:
    run: the run's folder.
    config: its settings.
    stage: the stage that it is: "sae" for the run's own dictionary, "dictionaries/NAME" for another one.
    extend: whether a finished dictionary is to go on to a larger number of steps.
    rows: activations in memory, where the run was given such.

  Returns:
    The stage's record.
  """
  settings = config.sae.resolved()
  settings = dataclasses.replace(settings, reads=load.named_sites(run, settings.reads, "sae.reads"),
                                 writes=load.named_sites(run, settings.writes, "sae.writes"))

  def work(directory, identity):
    from monojax.analysis.pictures import draw_curves
    from monojax.mesh import make_mesh
    from monojax.sae.dictionary import SAE
    from monojax.sae.train import train_sae as fit
    mesh = make_mesh(config.mesh)
    source, wiring, sites, downstream = source_of(run, settings, mesh, rows)
    about = {"identity": identity, "sites": list(sites)}
    model, params = fit(settings, source, wiring, directory, about, mesh, config.metrics, extend=extend,
                        downstream=downstream)
    draw_curves(directory / "metrics.jsonl", directory / "curves.png")
    sae = SAE(settings, model, params, sites[:len(model.wiring.widths)])
    return _measure(_HeldOut(run, config, source), sae, stage)
  if extend:
    _require_extends(run, stage, settings)
  return run.execute(stage, settings, work, ("activations",), extends=extend)


def adopt_sae(run: RunFolder, config: RunConfig, name: str, sae: "SAE", origin: str) -> dict:
  """Takes a finished dictionary into a run, beside those that it trains: it is measured, and can then be analysed.

  Args:
    run: the run's folder, which has activations of the dictionary's sites.
    config: its settings.
    name: what it is called there; it becomes `dictionaries/NAME`.
    sae: the dictionary, for instance one of another tool.
    origin: where it is from, which its record says.

  Returns:
    The stage's record.

  Raises:
    InputError: the dictionary does not name its sites, or the run's are of other widths.
  """
  require(sae.sites, "--sites", "", f"{origin} does not say which sites it reads and writes: name them, such as "
          "layer.3.resid")
  settings = dataclasses.replace(sae.config, reads=sae.reads, writes=sae.writes, val_tokens=config.sae.val_tokens)

  def work(directory, identity):
    from monojax.mesh import make_mesh
    source, wiring, sites, _ = source_of(run, settings, make_mesh(config.mesh), trains=False)
    for what, own, theirs in (("reads", wiring.n_inputs, sae.model.wiring.n_inputs),
                              ("writes", wiring.n_outputs, sae.model.wiring.n_outputs)):
      require(own == theirs, "--source", origin, f"{what} {theirs} numbers of {' and '.join(getattr(sae, what))}, "
              f"which in this run has {own}")
    about = {**sae.about, "identity": identity}
    there = dataclasses.replace(sae, config=settings, model=sae.model.clone(wiring=wiring), sites=sites, about=about)
    there.save(directory / "dictionary")
    figures = _measure(_HeldOut(run, config, source), there, f"{OTHERS}/{name}")
    # What it was trained with is not known, but for k.
    return figures | {"sae/rows_seen": None} | ({} if settings.knob == "k" else {"sae/sparsity": None})
  return run.execute(f"{OTHERS}/{name}", settings, work, ("activations",),
                     given={"weights": configs.fingerprint({key: files.digest(value)
                                                            for key, value in sae.params.items()})})


def _require_extends(run, stage, settings):
  """Raises `InputError` unless the settings are those of a dictionary that was begun, but for a larger n_steps."""
  record = run.begun(stage)
  require(record, "--extend", stage, f"there is no such dictionary in {run.directory} that could be trained further")
  before = configs.from_dict(SAEConfig, record["config"])
  changes = configs.differences(configs.to_dict(dataclasses.replace(before, n_steps=settings.n_steps)),
                                configs.to_dict(settings))
  require(not changes, "--extend", "; ".join(changes), "a dictionary can only be trained for more steps; to change "
          "other settings start another one from it, with --name and --sae.start_from")
  require(settings.n_steps >= before.n_steps, "sae.n_steps", settings.n_steps,
          f"the dictionary has been trained for {before.n_steps} steps already")


def train_frontier(run: RunFolder, config: RunConfig) -> dict:
  """Trains the main dictionary's recipe at other sparsities: points of the frontier of L0 and recovered loss."""
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
      point["rows_seen"] += points[0]["rows_seen"]  # those of the dictionary that it started from
    points += further
    _write_points(directory / "frontier", points)
    return {f"frontier/{point['sparsity']:g}/{name}": point[name]
            for point in points for name in ("l0", "ce_recovered_zero", "explained_variance")}
  return run.execute("frontier", config.frontier, work)


def sweep(run: RunFolder, config: RunConfig) -> dict:
  """Trains a grid of dictionaries in one pass over a run's activations, in `sweeps/NAME`: the stage's record."""
  members = config.sweep.configs(config.sae)

  def work(directory, identity):
    points = _sweep(run, config, config.sae, members, directory, identity)
    _write_points(directory / "points", points)
    return {f"{point['name']}/{name}": point[name] for point in points
            for name in ("l0", "explained_variance", "ce_recovered_zero", "heldout_alive_fraction")}
  return run.execute(f"{SWEEPS}/{config.sweep.name}", {"sweep": config.sweep, "sae": config.sae.resolved()}, work,
                     ("activations",))


def write_comparison(run: RunFolder) -> list[dict]:
  """Writes the table of all dictionaries besides the run's own, `sweeps/all.csv` and `.json`, and their frontier.

  Returns:
    The rows of the table.
  """
  from monojax.analysis.pictures import draw_frontier
  sweeps = [path.parent.name for path in sorted((run.directory / SWEEPS).glob("*/points.json"))]
  everything = [{"sweep": name, **point} for name in sweeps if run.stage(f"{SWEEPS}/{name}")
                for point in files.read_json(run.made(f"{SWEEPS}/{name}", "points.json"))]
  for path in sorted((run.directory / OTHERS).glob("*/stage.json")):
    if record := run.stage(f"{OTHERS}/{path.parent.name}"):
      trained = (path.parent / "metrics.jsonl").exists()  # and not taken in from elsewhere
      seconds = _seconds(path.parent, configs.from_dict(SAEConfig, record["config"])) if trained else None
      everything.append({"sweep": "", **_point(path.parent.name, record["figures"], seconds)})
  picture = run.directory / SWEEPS / "frontier.png"
  changed = _write_points(run.directory / SWEEPS / "all", everything)
  if (changed or not picture.exists()) and not draw_frontier(everything, picture):
    print("sweeps/frontier.png and curves.png are not drawn: they need matplotlib, pip install 'monojax[report]'")
  return everything


def source_of(
    run: RunFolder, settings: SAEConfig, mesh: "jax.sharding.Mesh", rows: "RowStore | Source | None" = None,
    trains: bool = True) -> "tuple[Source, Wiring, tuple[str, ...], Contexts | None]":
  """The shuffled rows that a dictionary trains on, how they are wired to it, and the names of the sites in them.

  For end-to-end training they are those of whole contexts, which are given besides, with the subject above the sites.
  With `trains=False`, for measuring a finished dictionary, activations of earlier tokens are left out.
  """
  from monojax.activations.origin import Order
  from monojax.sae.model import Wiring
  record, harvested = run.require_stage("activations"), load.activations_config(run)
  origin = load.origin_of(run, harvested, record["identity"], rows)
  reads, writes = settings.wired(harvested.site)
  earlier: tuple[str, ...] = ()
  if trains:
    require_sites(settings, harvested)
    earlier = tuple(site + EARLIER for site in reads) if recipe_of(settings.recipe).pairs else ()
  sites = tuple(dict.fromkeys(reads + writes + earlier))
  order = Order(settings.batch_rows, settings.buffer_rows, settings.seed)
  contexts = None
  if settings.kl_coefficient:
    from monojax.activations.contexts import Contexts
    require_subject(settings, harvested)
    contexts = Contexts(origin, sites, writes, order, settings.accumulate, mesh)
  source = contexts or SOURCES[harvested.source].module().open_source(origin, sites, order, mesh)
  require(not earlier or len(source.widths) == len(sites), "sae.recipe", settings.recipe, "needs pairs of rows: a "
          f"store that has the sites {' and '.join(sites)}, or a Source with {len(sites)} widths; these rows have "
          f"{len(source.widths)}")
  wiring = Wiring(source.widths, tuple(map(sites.index, reads)), tuple(map(sites.index, writes)),
                  tuple(map(sites.index, earlier)))
  return source, wiring, sites, contexts


@dataclasses.dataclass(frozen=True)
class _HeldOut:
  """What dictionaries of a run are measured on, each part loaded once for all of them.

  Attributes:
    run: the run's folder.
    config: its settings.
    source: the rows that they are trained on.
  """
  run: RunFolder
  config: RunConfig
  source: "Source"

  @functools.cached_property
  def subject(self) -> "LoadedSubject | None":
    """The subject; None where the run was given its activations."""
    if load.activations_config(self.run).source == "given":
      return None
    return load.whole_subject(self.run, self.config)

  @functools.cached_property
  def tokens(self) -> "Tokens":
    """The held-out text."""
    return load.open_tokens(self.run, "val")

  @functools.cached_property
  def kept(self) -> "Kept":
    """The positions that count."""
    return load.kept_of(self.run)


def _measure(held_out: _HeldOut, sae: "SAE", name: str, baseline: dict | None = None) -> dict:
  """A dictionary's figures on held-out text; where there is no subject, those of a sample of the rows.

  Another dictionary's figures on the same text, if given, spare computing what they share.
  """
  settings = sae.config
  figures = {"sae/recipe": settings.recipe, "sae/n_features": settings.n_features, "sae/sparsity": settings.sparsity,
             "sae/rows_seen": settings.n_steps * settings.batch_rows}
  if held_out.subject is None:
    wiring, x_NW = sae.model.wiring, held_out.source.sample(_MEASURED_ROWS, settings.seed + 1)
    x_NW = x_NW[:, :sum(wiring.widths)]  # without those of earlier tokens
    scores = sae.metrics(wiring.inputs(x_NW), wiring.targets(x_NW))
    print(f"{name}: measured on {scores['n_rows']:,} rows; cross-entropy recovered needs the subject they are from")
    return figures | {f"sae/{key}": value for key, value in scores.items() if key != "density_F"}
  from monojax.analysis.fidelity import baseline_of, fidelity
  mean_O = load.mean_activation(held_out.run, sae.writes)
  scores = fidelity(held_out.subject, sae, mean_O, held_out.tokens, settings.val_tokens,
                    baseline=baseline_of(baseline or {}), kept=held_out.kept)
  if "ce_clean" in scores and scores["ce_recovered_zero"] is None:
    print(f"{name}: zero-ablating {' and '.join(sae.writes)} does not raise the loss ({scores['ce_zero']:.4f} against "
          f"{scores['ce_clean']:.4f}), so cross-entropy recovered is undefined: train the subject longer")
  return figures | {f"sae/{key}": value for key, value in scores.items()}


def _sweep(run, config, base, members, directory, identity, start=None) -> list[dict]:
  """Trains dictionaries in one pass over a run's activations, in `base`'s order, and measures each: their points."""
  from monojax.analysis.pictures import draw_curves
  from monojax.mesh import make_mesh
  from monojax.sae.dictionary import SAE
  from monojax.sae.sweep import name_of, train_sweep
  if not members:
    return []
  mesh = make_mesh(config.mesh)
  source, wiring, sites, downstream = source_of(run, base, mesh)
  about = {name_of(member): {"identity": identity, "sites": list(sites)} for member in members}
  found = train_sweep(members, source, wiring, directory, about, mesh, config.metrics, start, base.seed, downstream)
  draw_curves(directory / "metrics.jsonl", directory / "curves.png")
  held_out, points, figures = _HeldOut(run, config, source), [], None
  for name, (member, model, params) in found.items():
    place = directory / "dictionaries" / name / "figures.json"
    sae = SAE(member, model, params, sites[:len(model.wiring.widths)])
    figures = files.read_json(place) or _measure(held_out, sae, name, figures)
    files.write_json(place, figures)
    # Members of one size take turns, so that each one's share of the time is the same.
    alike = len({member.n_features for member in members}) == 1
    points.append(_point(name, figures, _seconds(directory, member) / len(members) if alike else None))
  return points


def _seconds(directory: pathlib.Path, settings: SAEConfig) -> float:
  """How long training there took. It is no figure of a stage: what a stage makes must not depend on the hour."""
  return metrics.seconds_trained(directory / "metrics.jsonl", "rows", settings.batch_rows)


def _point(name, figures, seconds) -> dict:
  """A dictionary's row in a table of several."""
  return {"name": name, **{column: figures.get(f"sae/{column}") for column in _COLUMNS}, "train_seconds": seconds}


def _write_points(path, points) -> bool:
  """Writes a table of dictionaries as `path`.json and `path`.csv, sparser ones first: whether they have changed."""
  return files.write_table(path, sorted(points, key=lambda point: (point["recipe"], point["l0"])))
