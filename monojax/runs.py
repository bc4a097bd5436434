"""One run is one folder: its configuration, its stages in order, and how to load what they made.

A finished stage is skipped, an interrupted one goes on where it stopped, and one whose settings or
inputs have changed says so and stops. A stage reads the stages before it from the folder alone.
"""

import dataclasses
import functools
import pathlib
import time

from monojax import config as configs
from monojax import files
from monojax.activations.config import HarvestConfig
from monojax.analysis.config import AnalysisConfig
from monojax.browser.config import BrowserConfig
from monojax.config import InputError, nested, option, require
from monojax.mesh import MeshConfig
from monojax.metrics import MetricsConfig
from monojax.sae.config import SAEConfig
from monojax.subjects.config import SubjectConfig
from monojax.text.config import TextConfig


@dataclasses.dataclass(frozen=True)
class FrontierConfig:
  """Further dictionaries, like the main one but for their penalty, to draw the frontier."""
  l1_coefficients: tuple[float, ...] = option((), "penalties to train besides the main one's")
  n_steps: int = option(0, "steps of each, starting from the main dictionary's parameters; 0 trains each "
                           "from nothing for as long as the main one")

  def __post_init__(self):
    require(self.n_steps >= 0, "frontier.n_steps", self.n_steps, "must not be negative")
    for value in self.l1_coefficients:
      require(value > 0, "frontier.l1_coefficients", self.l1_coefficients, "must be positive")


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """All settings of a run; each field is a stage's, but for `mesh` and `metrics`."""
  text: TextConfig = nested(TextConfig)
  subject: SubjectConfig = nested(SubjectConfig)
  activations: HarvestConfig = nested(HarvestConfig)
  sae: SAEConfig = nested(SAEConfig)
  frontier: FrontierConfig = nested(FrontierConfig)
  analysis: AnalysisConfig = nested(AnalysisConfig)
  browser: BrowserConfig = nested(BrowserConfig)
  mesh: MeshConfig = nested(MeshConfig)
  metrics: MetricsConfig = nested(MetricsConfig)


# Stages in order; each depends on those before it that are named here.
INPUTS = {
    "tokens": (), "subject": ("tokens",), "activations": ("tokens", "subject"), "sae": ("activations",),
    "frontier": ("sae",), "analysis": ("sae",), "browser": ("analysis",),
}


class Run:
  """A run's folder: which stages are done, and what later stages read from them."""

  def __init__(self, directory):
    """`directory` need not exist yet."""
    self.directory = pathlib.Path(directory)

  def stage(self, name):
    """The record of a finished stage, or `None`: config, inputs, figures, seconds, identity."""
    record = files.read_json(self.directory / name / "stage.json")
    return record if record and record["complete"] else None

  def require_stage(self, name):
    """The record of a finished stage.

    Raises:
      InputError: it has not been finished.
    """
    record = self.stage(name)
    if record is None:
      raise InputError(f"{self.directory / name} is not finished: run that stage first, or all of them "
                       "with experiments/monosemanticity.py")
    return record

  def execute(self, name, config, work):
    """Does a stage unless it is done.

    Args:
      name: a key of `INPUTS`.
      config: its configuration dataclass.
      work: (stage directory, identity) -> dict of headline figures. The identity names the settings
        and inputs of what is made.

    Returns:
      The stage's record.

    Raises:
      InputError: an earlier stage is missing, or this one was begun with other settings or inputs.
    """
    path = self.directory / name / "stage.json"
    inputs = {stage: self.require_stage(stage)["identity"] for stage in INPUTS[name]}
    wanted = {"config": configs.to_dict(config), "inputs": inputs}
    identity = configs.fingerprint(wanted)
    found = files.read_json(path)
    if found and found["identity"] != identity:
      changes = configs.differences({k: found[k] for k in wanted}, wanted)
      raise InputError(f"{self.directory / name} was begun with other settings ({'; '.join(changes)}): use "
                       f"another --workdir, give the old settings, or delete that folder and those after it")
    if found and found["complete"]:
      print(f"{name}: already done ({found['seconds']:.0f} s)", flush=True)
      return found
    record = {**wanted, "identity": identity, "complete": False}
    files.write_json(path, record)
    start = time.time()
    figures = work(path.parent, identity)
    record |= {"complete": True, "seconds": round(time.time() - start, 2), "figures": figures}
    files.write_json(path, record)
    self.write_summary()
    print(f"{name}: done in {record['seconds']:.0f} s", flush=True)
    return record

  def write_summary(self):
    """Writes `summary.json`: every finished stage's figures under `STAGE/name`, and its seconds."""
    summary = {}
    for name in INPUTS:
      if record := self.stage(name):
        summary |= {f"{name}/seconds": record["seconds"], **record["figures"]}
    files.write_json(self.directory / "summary.json", summary)
    return summary


def prepare_text(run, config):
  """Documents to tokens."""
  def work(directory, _):
    from monojax.text import tokens
    meta = tokens.prepare(config.text, directory)
    return {"tokens/train_tokens": meta["n_tokens"]["train"], "tokens/val_tokens": meta["n_tokens"]["val"],
            "tokens/vocab_size": meta["vocab_size"], "tokens/documents": sum(meta["n_documents"].values())}
  return run.execute("tokens", config.text, work)


def train_subject(run, config):
  """Tokens to a trained subject, its held-out loss, and what n-gram models reach on the same tokens."""
  tokens_meta = _tokens_meta(run)
  model_config = config.subject.model
  vocab_size = model_config.vocab_size or tokens_meta["vocab_size"]
  require(vocab_size >= tokens_meta["vocab_size"], "subject.model.vocab_size", vocab_size,
          f"the tokenizer has {tokens_meta['vocab_size']} tokens")
  subject_config = dataclasses.replace(
      config.subject, model=dataclasses.replace(model_config, vocab_size=vocab_size))

  def work(directory, identity):
    import jax

    from monojax.mesh import make_mesh
    from monojax.subjects import train
    from monojax.text import ngram
    train_tokens, val_tokens = _tokens(run, "train"), _tokens(run, "val")
    saved = {"subject": configs.to_dict(subject_config), "identity": identity}
    model, params = train.train_subject(subject_config, train_tokens, directory, saved,
                                        make_mesh(config.mesh), config.metrics)
    loss, n_scored = train.validation_loss(model, params, val_tokens, subject_config.val_tokens)
    scored = val_tokens.tokens_N[:n_scored + n_scored // model.config.n_context]
    unigram, bigram = ngram.unigram_bigram_loss(train_tokens.tokens_N, scored, vocab_size)
    _write_samples(run, directory, model, params, subject_config, jax.random.key(subject_config.seed))
    bits = loss / 0.6931471805599453 * val_tokens.n_tokens / val_tokens.text_bytes
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
  tokenizer = _tokenizer(run)
  texts = []
  for i in range(4):
    ids = sample(model, params, [tokenizer.eot_id], config.sample_tokens, jax.random.fold_in(key, i))
    texts.append(tokenizer.decode(ids[1:]))
  with files.replacing(directory / "samples.txt") as file:
    file.write("\n\n-----\n\n".join(texts).encode())


def harvest(run, config):
  """A trained subject and tokens to a store of activations."""
  def work(directory, identity):
    import jax

    from monojax.activations.harvest import harvest as fill
    from monojax.mesh import make_mesh
    model, params = _subject(run)
    mesh = make_mesh(config.mesh)
    params = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.P()))
    meta = fill(config.activations, model, params, _tokens(run, "train"), directory,
                {"site": config.activations.site, "stage": identity}, mesh)
    return {"activations/rows": meta["n_rows"], "activations/width": meta["width"],
            "activations/mean_norm": meta["mean_norm"]}
  return run.execute("activations", config.activations, work)


def train_sae(run, config):
  """A store of activations to a dictionary, and how faithful it is on held-out text."""
  def work(directory, identity):
    return _train_and_measure(run, config, config.sae, directory, identity, "sae")
  return run.execute("sae", config.sae, work)


def _train_and_measure(run, config, sae_config, directory, identity, name, start=None):
  """Trains one dictionary on the run's store, from parameters `start` if given; measures it on held-out text."""
  from monojax.activations.reader import ShuffledRows
  from monojax.activations.store import ActivationStore
  from monojax.analysis.fidelity import fidelity
  from monojax.mesh import make_mesh
  from monojax.sae.train import train_sae as fit
  record = run.require_stage("activations")
  store = ActivationStore.open(run.directory / "activations",
                               {"site": record["config"]["site"], "stage": record["identity"]})
  source = ShuffledRows(store, sae_config.batch_rows, record["config"]["buffer_rows"], sae_config.seed)
  saved = {"sae": configs.to_dict(sae_config), "n_inputs": store.width, "identity": identity}
  model, params = fit(sae_config, source, store.width, directory, saved, make_mesh(config.mesh),
                      config.metrics, name, start)
  subject, subject_params = _subject(run)
  scores = fidelity(subject, subject_params, model, params, record["config"]["site"], store.mean(),
                    _tokens(run, "val"), sae_config.val_tokens, record["config"]["batch_contexts"])
  return {"sae/n_features": sae_config.n_features, "sae/l1_coefficient": sae_config.l1_coefficient,
          "sae/rows_seen": sae_config.n_steps * sae_config.batch_rows,
          **{f"sae/{name}": value for name, value in scores.items()}}


def train_frontier(run, config):
  """The main dictionary's recipe at other penalties: points of the (L0, recovered) frontier."""
  base = configs.from_dict(SAEConfig, run.require_stage("sae")["config"])
  if config.frontier.n_steps:
    base = dataclasses.replace(base, n_steps=config.frontier.n_steps, resample_every_steps=0)

  def work(directory, identity):
    from monojax import checkpoint
    start = (checkpoint.load_params(run.directory / "sae" / "checkpoints")[0] if config.frontier.n_steps
             else None)
    points = [_frontier_point(run.require_stage("sae")["figures"])]
    for l1_coefficient in config.frontier.l1_coefficients:
      sae_config = dataclasses.replace(base, l1_coefficient=l1_coefficient)
      place = directory / f"l1_{l1_coefficient:g}"
      figures = files.read_json(place / "figures.json")
      if figures is None:
        figures = _train_and_measure(run, config, sae_config, place, identity, f"λ={l1_coefficient:g}",
                                     start)
        files.write_json(place / "figures.json", figures)
      points.append(_frontier_point(figures))
    points.sort(key=lambda point: point["l1_coefficient"])
    header = list(points[0])
    lines = [",".join(header)] + [",".join(f"{point[name]:.6g}" for name in header) for point in points]
    with files.replacing(directory / "frontier.csv") as file:
      file.write(("\n".join(lines) + "\n").encode())
    files.write_json(directory / "frontier.json", points)
    return {f"frontier/l1_{point['l1_coefficient']:g}/{name}": point[name]
            for point in points for name in ("l0", "ce_recovered_zero", "explained_variance")}
  return run.execute("frontier", config.frontier, work)


def _frontier_point(figures):
  names = ("l1_coefficient", "l0", "ce_recovered_zero", "ce_recovered_mean", "explained_variance",
           "n_features", "rows_seen")
  return {name: figures[f"sae/{name}"] for name in names}


def analyze(run, config):
  """A dictionary to tables of its features."""
  def work(directory, _):
    from monojax.analysis.analyze import analyze as measure
    loaded = load(run.directory)
    tables = measure(config.analysis, loaded, _tokens(run, "train"), _tokens(run, "val"))
    tables.summary["config"] = {name: run.require_stage(name)["config"] for name in INPUTS
                                if run.stage(name)}
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
  return run.execute("browser", config.browser, work)


STAGES = {"tokens": prepare_text, "subject": train_subject, "activations": harvest, "sae": train_sae,
          "frontier": train_frontier, "analysis": analyze, "browser": build_browser}


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A finished run, for analysis. Parameters are nested dicts of numpy arrays.

  Attributes:
    tokenizer: `Tokenizer`.
    subject, subject_params: `subject.apply({"params": subject_params}, tokens_BT) -> (logits, sites)`.
    sae, sae_params: `sae.apply({"params": sae_params}, x_BM, method="encode") -> f_BF`; "decode" back.
    site: the subject's site that the dictionary decomposes.
    mean_M: the site's mean activation.
    directory: the run's folder.
  """
  tokenizer: object
  subject: object
  subject_params: dict
  sae: object
  sae_params: dict
  site: str
  mean_M: object
  directory: pathlib.Path

  @functools.cached_property
  def features(self):
    """`FeatureTables` of the run's analysis."""
    from monojax.analysis.tables import FeatureTables
    Run(self.directory).require_stage("analysis")
    return FeatureTables.load(self.directory / "analysis")

  def activations(self, text):
    """Feature activations on a text: (list of token strings, f_TF).

    Args:
      text: a string; its first `subject.config.n_context - 1` tokens are used, behind an end-of-text one.
    """
    import numpy as np

    from monojax.analysis.fidelity import make_encode
    ids = [self.tokenizer.eot_id] + list(self.tokenizer.encode_batch([text])[0])
    ids = ids[:self.subject.config.n_context]
    f_TF, _ = make_encode(self.subject, self.sae, self.site)(
        self.subject_params, self.sae_params, np.asarray([ids], np.int32))
    strings = self.tokenizer.token_strings()
    return [strings[i] for i in ids], np.asarray(f_TF)


def load(directory):
  """Everything needed to study a run, rebuilt from its folder alone.

  Args:
    directory: the run's folder (`--workdir`).

  Returns:
    `Loaded`.

  Raises:
    InputError: a stage it needs is not finished.
  """
  run = Run(directory)
  record = run.require_stage("activations")
  run.require_stage("sae")
  import numpy as np

  from monojax import checkpoint
  from monojax.sae.recipes import make_recipe
  from monojax.training import compute_dtype
  sae_params, saved, _ = checkpoint.load_params(run.directory / "sae" / "checkpoints")
  sae_config = configs.from_dict(SAEConfig, saved["sae"])
  recipe = make_recipe(sae_config, saved["n_inputs"], compute_dtype(sae_config.compute_dtype))
  subject, subject_params = _subject(run)
  mean_M = np.load(run.directory / "activations" / "stats.npz")["mean_M"]
  return Loaded(_tokenizer(run), subject, subject_params, recipe.model, sae_params,
                record["config"]["site"], mean_M, run.directory)


def _subject(run):
  """(model, parameters) of the run's trained subject."""
  run.require_stage("subject")
  from monojax import checkpoint
  from monojax.subjects.transformer import Transformer
  from monojax.training import compute_dtype
  params, saved, _ = checkpoint.load_params(run.directory / "subject" / "checkpoints")
  config = configs.from_dict(SubjectConfig, saved["subject"])
  return Transformer(config.model, compute_dtype(config.compute_dtype)), params


def _tokens(run, split):
  from monojax.text.tokens import Tokens
  run.require_stage("tokens")
  return Tokens.open(run.directory / "tokens", split)


def _tokens_meta(run):
  run.require_stage("tokens")
  return files.read_json(run.directory / "tokens" / "meta.json")


def _tokenizer(run):
  from monojax.text import tokenizer
  return tokenizer.load(run.directory / "tokens" / "tokenizer.json")
