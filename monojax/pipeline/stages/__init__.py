"""The stages of a run: what each reads from the run's folder, does, and reports.

Each is a function (run, config) -> record. Heavy libraries are imported when a stage begins, so that a script's
`--help` and a finished stage cost nothing.
"""

import dataclasses

from monojax.pipeline import load
from monojax.pipeline.config import RunConfig
from monojax.pipeline.folder import OTHERS, RunFolder
from monojax.pipeline.stages.activations import check_store, harvest
from monojax.pipeline.stages.analysis import analyze
from monojax.pipeline.stages.automata import automata
from monojax.pipeline.stages.claims import claims
from monojax.pipeline.stages.comparison import compare, universality
from monojax.pipeline.stages.dictionaries import adopt_sae, sweep, train_frontier, train_sae, write_comparison
from monojax.pipeline.stages.explanations import explain
from monojax.pipeline.stages.fidelity import fidelity
from monojax.pipeline.stages.maps import map_features
from monojax.pipeline.stages.pages import build_all, build_browser
from monojax.pipeline.stages.probes import probe
from monojax.pipeline.stages.steerability import steerability
from monojax.pipeline.stages.steering import steer
from monojax.pipeline.stages.subject import train_subject
from monojax.pipeline.stages.tokens import prepare_text


def each_site(run: RunFolder, config: RunConfig) -> list[str]:
  """Trains, analyses and shows a dictionary of each further site of a run's activations, with the run's settings.

  Returns:
    The homes of these dictionaries in the run's folder, such as "dictionaries/layer.3.resid/".
  """
  homes = []
  for site in load.activations_config(run).computed[1:]:
    own = dataclasses.replace(config, sae=dataclasses.replace(config.sae, reads=(site,), writes=(site,)))
    train_sae(run, own, f"{OTHERS}/{site}")
    analyze(run, own, site)
    build_browser(run, own, site)
    homes.append(f"{OTHERS}/{site}/")
  return homes


# The stages of a run in order, as `monojax.pipeline.folder.STAGES` names them.
IN_ORDER = {"tokens": prepare_text, "subject": train_subject, "activations": harvest, "sae": train_sae,
            "frontier": train_frontier, "analysis": analyze, "browser": build_browser}

__all__ = ["IN_ORDER", "adopt_sae", "analyze", "automata", "build_all", "build_browser", "check_store", "claims",
           "compare", "each_site", "explain", "fidelity", "harvest", "map_features", "prepare_text", "probe", "steer",
           "steerability", "sweep", "train_frontier", "train_sae", "train_subject", "universality", "write_comparison"]
