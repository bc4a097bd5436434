"""What a dictionary in training has become, by its newest checkpoint: how often features fire, and on which tokens.

Letters: N rows, M width read, F features.
"""

import pathlib
import typing

import numpy as np

from monojax.config import InputError
from monojax.pipeline import load
from monojax.pipeline.folder import RunFolder

_N_ROWS = 8192
_N_FEATURES, _N_TOKENS = 8, 6  # features with examples, and tokens of each
_COMMON = 0.01                 # features that fire on a larger share of the rows are listed last
_EDGES = np.arange(-4.0, 0.01, 0.25)


def newest_features(run: RunFolder, name: str, before: dict[str, typing.Any] | None = None) -> dict | None:
  """What the features of a dictionary in training are on some rows of the run's store.

  Args:
    run: the run's folder.
    name: the stage that trains the dictionary.
    before: what was found last, which is given back if there is no newer checkpoint.

  Returns:
    {"step"; "rows", how many were looked at; "silent", how many features fire on none of them; "densities":
    {"log10_edges", "counts"} of the others; "examples": [[feature, [the tokens on which it fires most]]], those with
    the largest activations first}. None where there is no checkpoint yet or no store, or where the one is just being
    replaced.
  """
  from monojax import checkpoint
  from monojax.activations.store import ActivationStore
  place = run.directory / name / "checkpoints"
  if not run.stage("activations") or load.activations_config(run).source != "store" or not place.is_dir():
    return None
  if before and before["step"] == _newest_step(place):
    return before
  try:
    params, kept, step = checkpoint.load_params(place)
    sites = kept["sites"]
    store = ActivationStore.open(load.store_place(run, load.activations_config(run)), sites=sites)
  except (InputError, OSError, KeyError):
    return None
  n_rows = min(_N_ROWS, store.n_rows)
  f_NF = _encoded(params, kept, str(place), np.asarray(store.rows(0, n_rows), np.float32))
  density_F, largest_F = (f_NF > 0).mean(0), f_NF.max(0)
  alive = np.flatnonzero(density_F)
  first = alive[np.lexsort((-largest_F[alive], density_F[alive] > _COMMON))][:_N_FEATURES]
  strings, token_N = load.load_tokenizer(run).token_strings(), store.places(0, n_rows)[:, 0]
  tokens_of = lambda feature: [strings[token] for token in dict.fromkeys(
      token_N[np.argsort(-f_NF[:, feature], kind="stable")[:int((f_NF[:, feature] > 0).sum())]].tolist())][:_N_TOKENS]
  counts = np.histogram(np.log10(density_F[alive]), _EDGES)[0]
  return {"step": step, "rows": n_rows, "silent": int((density_F == 0).sum()),
          "densities": {"log10_edges": _EDGES.tolist(), "counts": counts.tolist()},
          "examples": [[int(feature), tokens_of(feature)] for feature in first]}


def _newest_step(place: pathlib.Path) -> int:
  return max((int(path.name) for path in place.iterdir() if path.name.isdecimal()), default=-1)


def _encoded(params: dict, kept: dict, place: str, x_NW: np.ndarray) -> np.ndarray:
  """Features f_NF by the parameters of a checkpoint, which read rows that are scaled as in training."""
  from monojax.sae.dictionary import SAE
  from monojax.sae.recipes import make_recipe
  from monojax.training import compute_dtype
  sae = SAE.of(params, kept, place)
  wiring = sae.model.wiring
  if make_recipe(sae.config, wiring, compute_dtype(sae.config.compute_dtype)).normalised:
    ends = np.cumsum(wiring.widths)[:-1]
    parts = np.split(x_NW, ends, axis=1)  # each site to a mean length of the root of its width
    x_NW = np.concatenate([part * np.sqrt(part.shape[1]) / np.linalg.norm(part, axis=1).mean() for part in parts], 1)
  return np.asarray(sae.encode(wiring.inputs(x_NW)))
