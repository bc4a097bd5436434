"""What a dictionary in training has become, by its newest checkpoint: how often features fire, and on which tokens.

Letters: N rows, M width read, F features.
"""

import pathlib
import typing

import numpy as np

from monojax.activations.config import same_token
from monojax.pipeline import load
from monojax.pipeline.folder import RunFolder

if typing.TYPE_CHECKING:
  from monojax.activations.store import ActivationStore

_N_ROWS, _BLOCK = 8192, 1024  # rows that are looked at, and at a time
_N_FEATURES, _N_TOKENS = 8, 6  # features with examples, and tokens of each
_N_LARGEST = 4                 # activations of each feature that are kept of a block
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
    the largest activations first}. None where there is no checkpoint yet or no store; `before` where the newest
    checkpoint cannot be read, for instance because it is just being replaced.
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
    sites = [site for site in kept["sites"] if site == same_token(site)]
    store = ActivationStore.open(load.store_place(run, load.activations_config(run)), sites=sites)
    return _looked_at(run, _read_as_in_training(params, kept, str(place)), store, step)
  except Exception as error:  # a watcher goes on, whatever is just being written
    print(f"the features of {name} cannot be looked at now: {error}", flush=True)
    return before


def _looked_at(run: RunFolder, encode: typing.Callable[[np.ndarray], np.ndarray], store: "ActivationStore",
               step: int) -> dict[str, typing.Any]:
  """What `newest_features` gives. Features are encoded block by block, of which the largest activations are kept."""
  n_rows = min(_N_ROWS, store.n_rows)
  fires_F, top_BKF, row_BKF = None, [], []
  for start in range(0, n_rows, _BLOCK):
    f_BF = encode(np.asarray(store.rows(start, min(start + _BLOCK, n_rows)), np.float32))
    fires_F = (f_BF > 0).sum(0) + (0 if fires_F is None else fires_F)
    row_KF = np.argsort(-f_BF, axis=0, kind="stable")[:_N_LARGEST]
    top_BKF.append(np.take_along_axis(f_BF, row_KF, axis=0))
    row_BKF.append(row_KF + start)
  assert fires_F is not None  # a store has rows
  top_KF, row_KF = np.concatenate(top_BKF), np.concatenate(row_BKF)
  density_F, largest_F, alive = fires_F / n_rows, top_KF.max(0), np.flatnonzero(fires_F)
  first = alive[np.lexsort((-largest_F[alive], density_F[alive] > _COMMON))][:_N_FEATURES]
  strings, token_N = load.load_tokenizer(run).token_strings(), store.places(0, n_rows)[:, 0]

  def tokens_of(feature: int) -> list[str]:
    order_K = np.argsort(-top_KF[:, feature], kind="stable")
    rows = row_KF[order_K, feature][top_KF[order_K, feature] > 0]
    return [strings[token] for token in dict.fromkeys(token_N[rows].tolist())][:_N_TOKENS]
  counts = np.histogram(np.log10(density_F[alive]), _EDGES)[0]
  return {"step": step, "rows": n_rows, "silent": int((fires_F == 0).sum()),
          "densities": {"log10_edges": _EDGES.tolist(), "counts": counts.tolist()},
          "examples": [[int(feature), tokens_of(feature)] for feature in first]}


def _newest_step(place: pathlib.Path) -> int:
  return max((int(path.name) for path in place.iterdir() if path.name.isdecimal()), default=-1)


def _read_as_in_training(params: dict, kept: dict, place: str) -> typing.Callable[[np.ndarray], np.ndarray]:
  """The function x_NW -> f_NF by the parameters of a checkpoint, which read rows that are scaled as in training."""
  from monojax.sae.dictionary import SAE
  from monojax.sae.recipes import make_recipe
  from monojax.training import compute_dtype
  sae = SAE.of(params, kept, place)
  wiring = sae.model.wiring
  normalised = make_recipe(sae.config, wiring, compute_dtype(sae.config.compute_dtype)).normalised

  def encode(x_NW: np.ndarray) -> np.ndarray:
    if normalised:  # each site to a mean length of the root of its width
      parts = np.split(x_NW, np.cumsum(wiring.widths)[:-1], axis=1)
      x_NW = np.concatenate([part * np.sqrt(part.shape[1]) / max(np.linalg.norm(part, axis=1).mean(), 1e-30)
                             for part in parts], axis=1)
    return np.asarray(sae.encode(wiring.inputs(x_NW)))
  return encode
