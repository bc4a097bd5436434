"""The stage `analysis`: tables of a dictionary's features."""

import dataclasses

from monojax import distributed, files
from monojax.config import InputError
from monojax.pipeline import load
from monojax.pipeline.config import RunConfig
from monojax.pipeline.folder import OWN_DICTIONARY, RunFolder

PARTIAL = "partial"  # in the stage's folder: what an analysis has collected so far


def analyze(run: RunFolder, config: RunConfig, dictionary: str = OWN_DICTIONARY) -> dict:
  """Makes the tables of a dictionary's features.

  Args:
    run: the run's folder.
    config: its settings.
    dictionary: the name of the dictionary, by default the run's own. The tables are in its folder.

  Returns:
    The stage's record.
  """
  if dictionary == OWN_DICTIONARY:
    run.require_stage(OWN_DICTIONARY)
  place = run.dictionary(dictionary)

  def work(directory, identity):
    from monojax.analysis import proxy_rows
    tables = _measured(run, config, place.name, directory, identity)
    if distributed.is_first():
      files.remove(directory / PARTIAL)  # also where it was begun by one process and ended by several
    stages = [stage for stage in ("tokens", "subject", "activations", place.stage) if run.stage(stage)]
    tables.summary["config"] = {stage: run.require_stage(stage)["config"] for stage in stages}
    tables.save(directory)
    print("\n".join(proxy_rows.lines(tables.summary["proxies"], tables.summary["proxies_left_out"])), flush=True)
    return {f"sae/{name}": value for name, value in tables.summary["figures"].items()} | {
        f"detectors/{row['class']}/{kind}_f1": row[f"{kind}_f1"]
        for row in tables.summary["detectors"] for kind in ("feature", "neuron")}
  return run.execute(f"{place.home}analysis", config.analysis, work, (place.stage,))


def _mesh(config):
  """The devices that the run's settings ask for; None, which stands for one, where there are not so many here."""
  from monojax.mesh import make_mesh
  try:
    return make_mesh(config.mesh)
  except InputError:  # it was trained on a larger machine
    return None


def _measured(run, config, dictionary, directory, identity):
  """The dictionary's `FeatureTables`, from the run's text; of given activations, from the rows and their tokens."""
  from monojax.analysis import analyze as analysis
  sae, harvested = load.load_sae(run, dictionary), load.activations_config(run)
  if harvested.source != "given":
    tokenizer = load.load_tokenizer(run)
    tables = analysis.analyze(config.analysis, load.whole_subject(run, config), sae, load.open_tokens(run, "train"),
                              load.open_tokens(run, "val"), tokenizer.token_strings(), load.kept_of(run),
                              _mesh(config), None if distributed.in_job() else directory / PARTIAL, identity)
    return dataclasses.replace(tables, token_bytes=tokenizer.partial_tokens())
  from monojax.activations.given import open_given
  from monojax.activations.store import ActivationStore
  record = run.require_stage("activations")
  rows = open_given(load.origin_of(run, harvested, record["identity"]), sae.sites)
  if isinstance(rows, ActivationStore):
    return analysis.analyze_rows(config.analysis, sae, rows)
  raise InputError(f"activations.url={harvested.url!r}: has no tokens beside its rows, which examples, densities and "
                   "domains are made from: write the activations with monojax.StoreWriter, which keeps them "
                   "(`SAE.metrics` gives densities without)")
