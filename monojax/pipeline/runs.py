"""One run is one folder: its configuration, its stages in order, and how to load what they made.

A finished stage is skipped, an interrupted one goes on where it stopped, and one whose settings or
inputs have changed says so and stops. A stage reads the stages before it from the folder alone.
"""

import contextlib
import dataclasses
import functools
import pathlib
import threading
import time

from monojax import config as configs
from monojax import files
from monojax.activations.config import HarvestConfig
from monojax.analysis.config import AnalysisConfig
from monojax.browser.config import BrowserConfig
from monojax.config import InputError, nested, option, require
from monojax.mesh import MeshConfig
from monojax.metrics import MetricsConfig
from monojax.sae.config import SAEConfig, SweepConfig
from monojax.subjects.config import SubjectConfig
from monojax.text.config import TextConfig


@dataclasses.dataclass(frozen=True)
class FrontierConfig:
  """Further dictionaries, like the main one but for what makes them sparse, to draw the frontier."""
  sparsities: tuple[float, ...] = option((), "values of sae.sparsity_coefficient, or of sae.k in the TopK family, "
                                             "to train besides the main one's; all on one pass over the data")
  n_steps: int = option(0, "steps of each, starting from the main dictionary's parameters; 0 trains each "
                           "from nothing for as long as the main one")

  def __post_init__(self):
    require(self.n_steps >= 0, "frontier.n_steps", self.n_steps, "must not be negative")
    for value in self.sparsities:
      require(value > 0, "frontier.sparsities", self.sparsities, "must be positive")


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """All settings of a run; each field is a stage's, but for `mesh` and `metrics`."""
  text: TextConfig = nested(TextConfig)
  subject: SubjectConfig = nested(SubjectConfig)
  activations: HarvestConfig = nested(HarvestConfig)
  sae: SAEConfig = nested(SAEConfig)
  frontier: FrontierConfig = nested(FrontierConfig)
  sweep: SweepConfig = nested(SweepConfig)
  analysis: AnalysisConfig = nested(AnalysisConfig)
  browser: BrowserConfig = nested(BrowserConfig)
  mesh: MeshConfig = nested(MeshConfig)
  metrics: MetricsConfig = nested(MetricsConfig)


# Stages in order; each depends on those before it that are named here.
INPUTS = {
    "tokens": (), "subject": ("tokens",), "activations": ("tokens", "subject"), "sae": ("activations",),
    "frontier": ("sae",), "analysis": ("sae",), "browser": ("analysis",),
}
MEANS = "means.npz"  # of the activations' sites, in their stage's folder
SWEEPS = "sweeps"  # the folder of stages that are no part of the whole, each on the stored activations
OWN_DICTIONARY = "sae/dictionary"  # the folder of the dictionary that the analysis and the browser are of


class Run:
  """A run's folder: which stages are done, and what later stages read from them."""

  def __init__(self, directory, inputs=None):
    """Looks at nothing yet.

    Args:
      directory: need not exist.
      inputs: {stage: the stages it depends on}, in order; by default those of the main job, `INPUTS`.
    """
    self.directory = pathlib.Path(directory)
    self.inputs = INPUTS if inputs is None else inputs

  def stage(self, name):
    """The record of a finished stage, or `None`: config, inputs, figures, seconds, identity, output."""
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

  def execute(self, name, config, work, alone=False):
    """Does a stage unless it is done; several processes of a job do it together.

    Args:
      name: a key of `inputs`, or a folder in `SWEEPS`.
      config: its configuration dataclass, or a dict of several.
      work: (stage directory, identity) -> dict of headline figures. The identity names the settings
        and inputs of what is made.
      alone: whether a job's first process does it while the others wait.

    Returns:
      The stage's record.

    Raises:
      InputError: an earlier stage is missing, or this one was begun with other settings or inputs.
    """
    from monojax import distributed
    distributed.wait(f"{name} begins")
    path = self.directory / name / "stage.json"
    before = ("activations",) if name.startswith(f"{SWEEPS}/") else self.inputs[name]
    inputs = {stage: self.require_stage(stage)["output"] for stage in before}
    wanted = {"config": configs.to_dict(config), "inputs": inputs}
    identity = configs.fingerprint(wanted)
    found = files.read_json(path)
    if found and found["identity"] != identity:
      changes = configs.differences({k: found[k] for k in wanted}, wanted)
      remedy = ("use another name for it, give the old settings, or delete that folder"
                if name.startswith(f"{SWEEPS}/") else
                "use another --workdir, give the old settings, or delete that folder and those after it")
      raise InputError(f"{self.directory / name} was begun with other settings ({'; '.join(changes)}): {remedy}")
    if found and found["complete"]:
      print(f"{name}: already done ({found['seconds']:.0f} s)", flush=True)
      return found
    record = {**wanted, "identity": identity, "complete": False}
    distributed.wait(f"{name} is looked up")
    if alone and files.written_elsewhere:
      distributed.wait(f"{name} is done")
      return self.require_stage(name)
    try:
      with _clock(path, record, found["seconds"] if found else 0.0) as elapsed:
        figures = work(path.parent, identity)
    except InputError:
      # Refused before anything was made, it is free to be corrected.
      if not files.written_elsewhere and list(path.parent.iterdir()) == [path]:
        path.unlink()
      raise
    # Later stages depend on what was made, too: the same settings can find other text.
    output = configs.fingerprint({"identity": identity, "figures": figures})
    record |= {"complete": True, "seconds": elapsed(), "figures": figures, "output": output}
    files.write_json(path, record)
    self.write_summary()
    distributed.wait(f"{name} is done")
    print(f"{name}: done in {record['seconds']:.0f} s", flush=True)
    return record

  def reopen(self, name):
    """Has a finished stage done again where something of it is missing; what depends on it stays as it is."""
    record = self.require_stage(name)
    files.write_json(self.directory / name / "stage.json", {**record, "complete": False})

  def write_summary(self, study=None):
    """Writes `summary.json`: every finished stage's figures under `STAGE/name`, and its seconds.

    With the name of a study, the seconds of all its stages are there under `STUDY/seconds`, too.
    """
    summary = {}
    for name in self.inputs:
      if record := self.stage(name):
        summary |= {f"{name}/seconds": record["seconds"], **record["figures"]}
    if study:
      summary[f"{study}/seconds"] = sum(value for name, value in summary.items() if name.endswith("/seconds"))
    files.write_json(self.directory / "summary.json", summary)
    return summary


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A finished run, for analysis. Parameters are nested dicts of numpy arrays.

  Attributes:
    tokenizer: `Tokenizer`.
    subject, subject_params: `subject.apply({"params": subject_params}, tokens_BT) -> (logits, sites)`.
    sae, sae_params: `sae.apply({"params": sae_params}, x_BM, method="encode") -> f_BF`; "decode" back.
    reads, writes: the subject's sites that the dictionary reads, and those that it reconstructs.
    mean_O: the mean activation of the latter, side by side.
    directory: the run's folder.
    dictionary: the folder in it that the dictionary is from.
  """
  tokenizer: object
  subject: object
  subject_params: dict
  sae: object
  sae_params: dict
  reads: tuple
  writes: tuple
  mean_O: object
  directory: pathlib.Path
  dictionary: str = OWN_DICTIONARY

  @property
  def site(self):
    """The site that the dictionary decomposes; of several, the first it reads."""
    return self.reads[0]

  @functools.cached_property
  def features(self):
    """`FeatureTables` of the run's analysis, which is of the run's own dictionary.

    Raises:
      InputError: this is another dictionary.
    """
    from monojax.analysis.tables import FeatureTables
    require(self.dictionary == OWN_DICTIONARY, "dictionary", self.dictionary,
            "has no analysis: the run's is of sae/dictionary")
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
    f_TF, _ = make_encode(self.subject, self.sae, self.reads)(
        self.subject_params, self.sae_params, np.asarray([ids], np.int32))
    strings = self.tokenizer.token_strings()
    return [strings[i] for i in ids], np.asarray(f_TF)


@contextlib.contextmanager
def _clock(path, record, seconds_before, every_seconds=10.0):
  """Writes `record` with the `seconds` spent so far, now and again: a killed stage's time is not lost.

  Yields a function that returns those seconds.
  """
  start, stop = time.time(), threading.Event()
  elapsed = lambda: round(seconds_before + time.time() - start, 2)

  def tick():
    while not stop.wait(every_seconds):
      files.write_json(path, {**record, "seconds": elapsed()})

  files.write_json(path, {**record, "seconds": elapsed()})
  thread = threading.Thread(target=tick, daemon=True)
  thread.start()
  try:
    yield elapsed
  finally:
    stop.set()
    thread.join()


def load(directory, dictionary=OWN_DICTIONARY):
  """Everything needed to study a run, rebuilt from its folder alone.

  Args:
    directory: the run's folder (`--workdir`).
    dictionary: the folder in it of the dictionary to study, for instance
      "sweeps/NAME/dictionaries/MEMBER" for one of a sweep.

  Returns:
    `Loaded`.

  Raises:
    InputError: a stage it needs is not finished, or there is no such dictionary.
  """
  run = Run(directory)
  record = run.require_stage("activations")
  if dictionary == OWN_DICTIONARY:
    run.require_stage("sae")
  require((run.directory / dictionary).is_dir(), "dictionary", dictionary, f"is no folder in {run.directory}")
  from monojax import checkpoint
  from monojax.sae.model import Wiring
  from monojax.sae.recipes import make_recipe
  from monojax.training import compute_dtype
  sae_params, saved, _ = checkpoint.load_params(run.directory / dictionary)
  sae_config = configs.from_dict(SAEConfig, saved["sae"])
  wiring = configs.from_dict(Wiring, saved["wiring"])
  recipe = make_recipe(sae_config, wiring, compute_dtype(sae_config.compute_dtype))
  subject, subject_params = load_subject(run)
  reads, writes = sae_config.wired(record["config"]["site"])
  return Loaded(load_tokenizer(run), subject, subject_params, recipe.model, sae_params, reads, writes,
                mean_activation(run, writes), run.directory, dictionary)


def mean_activation(run, sites):
  """(M,) float64 means of sites, side by side."""
  import numpy as np
  run.require_stage("activations")
  means = files.read_npz(run.directory / "activations" / MEANS)
  for site in sites:
    require(site in means, "site", site, f"this run's activations are of {', '.join(means)}")
  return np.concatenate([means[site] for site in sites])


def load_subject(run):
  """(model, parameters) of the run's trained subject."""
  run.require_stage("subject")
  from monojax import checkpoint
  from monojax.subjects.transformer import Transformer
  from monojax.training import compute_dtype
  params, saved, _ = checkpoint.load_params(run.directory / "subject" / "checkpoints")
  config = configs.from_dict(SubjectConfig, saved["subject"])
  return Transformer(config.model, compute_dtype(config.compute_dtype)), params


def open_tokens(run, split):
  from monojax.text.tokens import Tokens
  run.require_stage("tokens")
  return Tokens.open(run.directory / "tokens", split)


def tokens_meta(run):
  run.require_stage("tokens")
  return files.read_json(run.directory / "tokens" / "meta.json")


def load_tokenizer(run):
  from monojax.text import tokenizer
  return tokenizer.load(run.directory / "tokens" / "tokenizer.json")
