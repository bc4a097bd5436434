"""`monojax.train`: a dictionary from activations of one's own, in one call."""

import dataclasses
import os
import pathlib
import tempfile
import typing

from monojax import config as configs
from monojax.activations.config import HarvestConfig
from monojax.config import InputError, require
from monojax.pipeline import load
from monojax.pipeline.config import RunConfig
from monojax.pipeline.folder import OWN_DICTIONARY, RunFolder
from monojax.pipeline.stages import harvest, train_sae
from monojax.sae.config import SAEConfig
from monojax.sae.recipes import RECIPES, recipe_of

if typing.TYPE_CHECKING:
  from monojax.sae.dictionary import SAE

_RECIPE = "batchtopk"
_FEATURES_A_COLUMN = 8  # features for each number of an activation vector, unless the caller says how many
_SMALLEST_BATCH, _BATCH_ROWS = 256, 2048
# A dictionary sees each row so often, but not more rows than that in all, and is trained for so many steps at least,
# unless the caller says for how many steps it is trained.
_EPOCHS, _MOST_ROWS, _MIN_STEPS = 20, 4_000_000, 1000


def train(x: typing.Any, recipe: str | None = None, n_features: int | None = None, k: int | None = None,
          workdir: str | pathlib.Path | None = None, *, key: str | None = None, extend: bool = False,
          **settings: typing.Any) -> "SAE":
  """Trains a sparse autoencoder on activations, and returns it ready for use.

  The same call on the same `workdir` resumes where it was interrupted, and returns at once what it has finished. A call
  with other settings or other activations on that folder is refused.

  Args:
    x: the activations: an array of rows (NumPy, JAX, PyTorch or anything else with `__array__` or DLPack; further
      leading axes are flattened); the path of a `.npy`, `.npz` or `.safetensors` file, of a folder of such files, or of
      a store that `monojax.StoreWriter` or a run has written; or a `Source`. Files are read piece by piece, never
      whole.
    recipe: the published method, for instance "batchtopk", "topk", "jumprelu" or "tm2023"; see `monojax.RECIPES`.
      By default "batchtopk".
    n_features: features of the dictionary; by default eight for each number of an activation vector.
    k: for the TopK family, how many features fire on a row (on average); by default the recipe's.
    workdir: the folder that keeps checkpoints, metrics and the result. Without one, a temporary folder is used and
      nothing is kept but what is returned.
    key: the array's name, in a file that holds several.
    extend: whether the finished dictionary in `workdir` is to be trained further, to a larger `n_steps`; its other
      settings stay.
    **settings: any other setting of `SAEConfig` by name, for instance `n_steps`, `learning_rate`,
      `sparsity_coefficient`, `batch_rows` or `seed`.

  Returns:
    The `SAE`; `sae.encode(x)`, `sae.decode(f)` and `sae.metrics(x)` work on activations as they are.

  Raises:
    InputError: the activations or the settings cannot be used, or `workdir` holds something else.
  """
  from monojax.activations.given import site_of
  from monojax.activations.rows import open_rows
  from monojax.activations.source import Source
  rows = x if isinstance(x, Source) else open_rows(x, key)
  if k is not None:
    require(recipe is None or recipe_of(recipe).knob == "k", "k", k,
            f"is no setting of {recipe}, which has sparsity_coefficient")
    settings["k"] = k
  run = RunFolder(workdir) if workdir is not None else None
  record = run.begun(OWN_DICTIONARY) if run and extend else None
  if record:  # what the call does not name stays as the dictionary was begun
    named = {"recipe": recipe, "n_features": n_features}  # others than it was begun with are refused further on
    settings |= {name: value for name, value in named.items() if value is not None}
    sae = dataclasses.replace(configs.from_dict(SAEConfig, record["config"]), **settings)
  else:
    sae = _settings(rows, recipe or _RECIPE, n_features, settings)
  url = str(x) if isinstance(x, str | os.PathLike) else ""
  config = RunConfig(activations=HarvestConfig(source="given", site=site_of(rows), url=url), sae=sae)
  with tempfile.TemporaryDirectory() as temporary:
    run = run or RunFolder(temporary)
    harvest(run, config, rows)
    train_sae(run, config, OWN_DICTIONARY, extend, rows)
    return load.load_sae(run)


def _settings(rows, recipe, n_features, given) -> SAEConfig:
  """The dictionary's settings: those that were given, and for the others what suits the rows."""
  from monojax.activations.source import Source
  known = {field.name for field in dataclasses.fields(SAEConfig)}
  if unknown := sorted(set(given) - known):
    raise InputError(f"monojax.train: there is no setting {', '.join(unknown)}; the settings are "
                     f"{', '.join(sorted(known))}")
  require(recipe in RECIPES, "recipe", recipe, f"choose one of {', '.join(RECIPES)}")
  width = rows.widths[0] if RECIPES[recipe].pairs else sum(rows.widths)
  # What the others follow from is checked first; whether all fit each other is checked when they are put together.
  sizes = {name: given[name] for name in ("batch_rows", "n_steps") if name in given}
  SAEConfig(recipe, **sizes, **({} if n_features is None else {"n_features": n_features}), k=1)
  if not isinstance(rows, Source):
    n_seen = min(_MOST_ROWS, _EPOCHS * rows.n_rows)
    batch_rows = given.get("batch_rows") or min(
        _BATCH_ROWS, max(_SMALLEST_BATCH, rows.n_rows // 50 // 64 * 64))  # a multiple of 64, for several devices
  else:
    n_seen, batch_rows = _MOST_ROWS, len(rows.batch(0))
  n_steps = given.get("n_steps") or max(_MIN_STEPS, n_seen // batch_rows)
  suited = {"n_features": n_features or _FEATURES_A_COLUMN * width, "batch_rows": batch_rows, "n_steps": n_steps,
            "warmup_steps": min(100, n_steps // 10), "decay_fraction": 0.8, "dead_window_steps": max(50, n_steps // 20),
            "scan_steps": 16}
  quick = dict(RECIPES[recipe].quick)
  quick["k"] = min(quick.get("k", 32), suited["n_features"])
  return SAEConfig(**{"recipe": recipe, **suited, **quick, **given})
