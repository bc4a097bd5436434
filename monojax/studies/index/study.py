"""The index-arithmetic study: a dictionary of an MLP whose task is known so well that its features can be checked.

The MLP learns to select two digits by two pointers and to subtract them (`task.py`). Every variable that this takes is
known on every row, so that the study can ask which features of the MLP's hidden layer stand for which variable.

The stage `mlp` trains the MLP, `sae` trains a dictionary of the activations of its second hidden layer, and `features`
finds the features of each variable and measures what they do (`ties.py`). The stage `single` asks which values single
features tell and carry, in dictionaries of other layers, too, if there are any (`single.py`). The stage `sweep`, which
is left out by default, trains dictionaries of other recipes and sizes on the second hidden layer. `report.py` makes the
report.

Letters: B rows of a batch, I the numbers of a row, M neurons of the layer, F features, S steps of one compiled call.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from monojax import checkpoint, files
from monojax import mesh as meshes
from monojax.activations.generated import Generated
from monojax.config import COUNT, COUNT_OR_0, SEED, option, require, require_rules
from monojax.metrics import MetricsConfig
from monojax.pipeline.folder import RunFolder
from monojax.sae.config import SAEConfig
from monojax.sae.dictionary import SAE
from monojax.sae.model import Dictionary, Wiring
from monojax.sae.recipes import OF_ROWS, recipe_of
from monojax.sae.sweep import name_of, train_sweep
from monojax.sae.train import train_sae
from monojax.studies.index import task as index_task
from monojax.studies.index.mlp import MLP, MLPConfig, train_mlp
from monojax.variance import joined, share_unexplained, spread

LAYER = 1  # the hidden layer that the dictionary of the stage `sae` is of
INPUTS: dict[str, tuple[str, ...]] = {  # the study's stages, and for each the stages whose results it reads
    "mlp": (), "sae": ("mlp",), "features": ("mlp", "sae"), "single": ("mlp", "sae"),
    "sweep": ("mlp",)}
# What rows are drawn for. Each use has rows of its own, so that nothing is judged on rows that it was made from.
_USES = ("learned", "moments", "tested", "spliced", "tied", "patched", "ablated", "coded", "told",
         "paired")
_TEST_ROWS, _COUNTED_ROWS, _SPLICED_ROWS = 100_000, 131_072, 32_768
# The penalties of the sweep, chosen for this layer. A recipe that is not here takes those of its record.
_PENALTIES = {"tm2023": (1e-4, 3e-4), "apr2024": (0.3, 1.0), "gated": (0.3, 1.0), "jumprelu": (0.3, 1.0),
              "jan2025": (0.5, 2.0)}
# Settings with which recipes converge in about a thousand steps.
_FAST: dict[str, dict[str, Any]] = {
    "gated": {"beta1": 0.9}, "jumprelu": {"beta1": 0.9, "threshold": 0.3, "bandwidth": 0.3},
    "jan2025": {"threshold": 0.3, "bandwidth": 1.0}}
_drawn = jax.jit(index_task.draw_rows, static_argnums=1)


@dataclasses.dataclass(frozen=True)
class IndexStudyConfig:
  """The study's MLP, its dictionary, how features are tied to variables, and the sweep."""
  seed: int = option(0, "seed of the rows; it is also added to mlp.seed and sae.seed", SEED)
  mlp: MLPConfig = dataclasses.field(default_factory=lambda: MLPConfig(
      n_steps=2750, batch_rows=512, activity_penalties=(2e-3, 1e-3, 0.0), noise=(0.0, 0.6, 0.0)))
  train_rows: int = option(0, "number of rows that the MLP learns from, over and over; 0 draws new rows at each step",
                           COUNT_OR_0)
  sae: SAEConfig = dataclasses.field(default_factory=lambda: SAEConfig(
      recipe="batchtopk", n_features=2048, k=19, batch_rows=1024, n_steps=532, learning_rate=5e-4, warmup_steps=50,
      decay_fraction=0.4, aux_k=16, dead_window_steps=100, scan_steps=19, checkpoint_every_steps=190))
  variable_features: int = option(96, "number of features that are tied to each variable: those that contribute most "
                                      "to the prediction's change when the variable changes", COUNT)
  readout_features: int = option(40, "number of a variable's features that a readout of one of its values adds up",
                                 COUNT)
  other_layers: tuple[int, ...] = option((), "hidden layers, numbered from 0, besides layer 1, that get a dictionary "
                                             "of their own, in which single features are looked for, too", COUNT_OR_0)
  other_k: tuple[int, ...] = option((), "sae.k of the dictionary of each of the other_layers, by default that of layer "
                                        "1", COUNT)
  sweep_recipes: tuple[str, ...] = option((), "recipes that the stage sweep trains on the same layer; by default there "
                                              "is no sweep")
  sweep_sizes: tuple[int, ...] = option((512, 1024, 2048), "numbers of features that the sweep trains each recipe with",
                                        COUNT)

  def __post_init__(self) -> None:
    require_rules(self)
    require(self.readout_features <= self.variable_features <= self.sae.n_features // 2, "variable_features",
            self.variable_features, f"must lie between readout_features={self.readout_features} and half of "
                                    f"sae.n_features={self.sae.n_features}")
    require(self.sweep_sizes, "sweep_sizes", self.sweep_sizes, "needs a size or more")
    require(all(name in OF_ROWS for name in self.sweep_recipes), "sweep_recipes", ",".join(self.sweep_recipes),
            f"choose among {', '.join(OF_ROWS)}")
    require(len(self.mlp.hidden) == 3 and self.mlp.n_inputs in (index_task.WIDTH, index_task.N_SYMBOLS)
            and self.mlp.n_outputs == 1, "mlp.hidden", self.mlp.hidden,
            "the study needs an MLP with ten inputs (numbers) or 88 (symbols), three hidden layers and one output")
    require(len(set(self.other_layers)) == len(self.other_layers) and set(self.other_layers) <= {0, 2}, "other_layers",
            ",".join(map(str, self.other_layers)), "choose among 0 and 2")
    require(not self.other_k or len(self.other_k) == len(self.other_layers), "other_k",
            ",".join(map(str, self.other_k)), f"needs a number for each of {len(self.other_layers)} other_layers")
    require(self.readout_features <= self.width, "readout_features", self.readout_features,
            f"must not exceed the layer's {self.width} neurons")
    sweep_configs(self)  # raises an error now, and not after the other stages, if the sweep cannot be trained

  @property
  def seeded_mlp(self) -> MLPConfig:
    """The settings of the MLP, with the study's seed added to its seed."""
    return dataclasses.replace(self.mlp, seed=self.mlp.seed + self.seed)

  def sae_of(self, layer: int) -> SAEConfig:
    """The resolved settings of the dictionary of a hidden layer, with the study's seed added to its seed."""
    k = dict(zip(self.other_layers, self.other_k, strict=False)).get(layer, self.sae.k)
    return dataclasses.replace(self.sae, k=k, seed=self.sae.seed + self.seed).resolved()

  @property
  def width(self) -> int:
    """M, the number of neurons of layer 1."""
    return self.mlp.hidden[LAYER]

  def key(self, use: str) -> jax.Array:
    """The random key of the rows that are drawn for a use, one of `_USES`."""
    return jax.random.fold_in(jax.random.key(self.seed), _USES.index(use))

  def rows(self, use: str, n_rows: int) -> np.ndarray:
    """Rows for a use, (n_rows, 10), on the host; always the same for the same seed, use and number."""
    return np.asarray(_drawn(self.key(use), n_rows))

  def inputs(self, rows_BI: Any) -> Any:
    """What the MLP reads of rows: their ten numbers, or 88 symbols; it can be compiled."""
    return rows_BI if self.mlp.n_inputs == index_task.WIDTH else index_task.symbols(rows_BI)


def preset(name: str) -> IndexStudyConfig:
  """The settings of a preset: "better", which has the published study's architecture, "published" or "specific".

  * "published" trains that study's MLP as it did: on 8,000 rows, 500 times over, in batches of 64.
  * "specific" has another MLP, whose features are specific: inputs are symbols, which a first layer without a ReLU
    embeds, and later layers are narrow and sparse. Each hidden layer has a dictionary.
  """
  config = IndexStudyConfig()
  if name == "published":
    return dataclasses.replace(config, train_rows=8000, mlp=MLPConfig(
        n_steps=62_500, batch_rows=64, scan_steps=500, checkpoint_every_steps=12_500))
  if name == "specific":
    mlp = dataclasses.replace(config.mlp, n_inputs=index_task.N_SYMBOLS, hidden=(64, 128, 64), n_linear=1, n_steps=3500,
                              activity_penalties=(0.0, 2e-3, 2e-2), noise=(0.0, 0.1, 0.4), relaxed_fraction=0.5)
    sae = dataclasses.replace(config.sae, n_features=32, k=12, n_steps=1007, learning_rate=1e-2,
                              orthogonality_coefficient=1e-3)
    return dataclasses.replace(config, mlp=mlp, sae=sae, variable_features=16, readout_features=8, other_layers=(0, 2),
                               other_k=(9, 1))
  return config


def train_subject(run: RunFolder, config: IndexStudyConfig) -> dict[str, Any]:
  """The stage `mlp`: trains the MLP, and measures how accurate it is on new rows.

  Args:
    run: the study's folder.
    config: its settings.

  Returns:
    The stage's record.
  """
  mlp = config.seeded_mlp

  def work(directory: pathlib.Path, identity: str) -> dict[str, Any]:
    moment_rows_BI = _fixed_rows(config) if config.train_rows else config.rows("moments", _TEST_ROWS)
    model, params = train_mlp(mlp, _batches(config), config.inputs(moment_rows_BI), directory,
                              {"identity": identity}, meshes.make_mesh(), MetricsConfig())
    checkpoint.save_params(directory / "subject", params, {"identity": identity})
    rows_BI = config.rows("tested", _TEST_ROWS)
    found_B = np.asarray(jax.jit(model.apply)({"params": params}, config.inputs(rows_BI))[0])[:, 0]
    error_B = found_B - index_task.answers(rows_BI)
    return {"index_arithmetic/test_accuracy": float((np.round(error_B) == 0).mean()),
            "index_arithmetic/test_mse": float(np.square(error_B).mean())}
  return run.execute("mlp", {"mlp": mlp, "seed": config.seed, "train_rows": config.train_rows}, work)


def _batches(config: IndexStudyConfig) -> Callable[[int, int], tuple[jax.Array, jax.Array]]:
  """The function (first step, last step) -> (x_SBI, y_SBO): the rows that the MLP learns from, and their answers."""
  n_batch, key = config.mlp.batch_rows, config.key("learned")
  fixed_NI = _fixed_rows(config) if config.train_rows else None

  @jax.jit
  def make(steps_S):
    def one(step):
      step_key = jax.random.fold_in(key, step)
      rows_BI = (index_task.draw_rows(step_key, n_batch) if fixed_NI is None
                 else fixed_NI[jax.random.randint(step_key, (n_batch,), 0, config.train_rows)])
      return config.inputs(rows_BI), index_task.answers(rows_BI)[:, None]
    return jax.vmap(one)(steps_S)
  return lambda first, last: make(jnp.arange(first, last))


def _fixed_rows(config: IndexStudyConfig) -> jax.Array:
  """The rows that the MLP learns from if there are only so many."""
  return _drawn(config.key("learned"), config.train_rows)


class Subject:
  """The trained MLP in two parts: up to the layer that a dictionary is of, and from there on.

  Attributes:
    layer: the layer's number.
    site: the name of its site.
    sites_of: rows_BI -> {site: activations}; it can be compiled.
    tail: x_BM -> predictions of shape (B, 1), the second part; it can be compiled.
  """

  def __init__(self, run: RunFolder, config: IndexStudyConfig, layer: int = LAYER) -> None:
    """Reads what the stage `mlp` left in the study's folder."""
    run.require_stage("mlp")
    params = checkpoint.load_params(run.directory / "mlp" / "subject")[0]
    model = MLP(config.seeded_mlp)
    nothing_1I = jnp.zeros((1, config.mlp.n_inputs))
    self.layer, self.site = layer, f"layer.{layer}.mlp.hidden"
    self.sites_of = lambda rows_BI: model.apply({"params": params}, config.inputs(rows_BI))[1]
    self.tail = lambda x_BM: model.apply({"params": params}, nothing_1I, {self.site: lambda _: x_BM})[0]
    self._activations = jax.jit(lambda rows_BI: self.sites_of(rows_BI)[self.site])
    self._tail = jax.jit(self.tail)

  def activations(self, rows_BI: Any) -> np.ndarray:
    """The layer's activations on rows, x_BM, on the host."""
    return np.asarray(self._activations(rows_BI))

  def output(self, x_BM: Any) -> np.ndarray:
    """The predictions from activations of the layer, (B,), on the host."""
    return np.asarray(self._tail(x_BM))[:, 0]


class Features:
  """A trained dictionary of the layer, its functions compiled.

  Attributes:
    n_features: F.
    W_dec_FO: the directions of its features.
  """

  def __init__(self, model: Dictionary, params: Any) -> None:
    """Takes a dictionary's model and its parameters, for use on raw activations."""
    self.n_features, self.W_dec_FO = model.n_features, params["W_dec_FO"]
    self._encode = jax.jit(lambda x_BM: model.apply({"params": params}, x_BM, method="encode"))
    self._reconstruct = jax.jit(lambda x_BM: model.apply({"params": params}, x_BM)[0])
    self._fired = jax.jit(lambda x_BM: (self._encode(x_BM) > 0).sum(0))

  @classmethod
  def of_run(cls, run: RunFolder) -> "Features":
    """The dictionary that the stage `sae` left in the study's folder."""
    return cls.load(run.directory / "sae")

  @classmethod
  def load(cls, directory: pathlib.Path) -> "Features":
    """The dictionary that `train_one` left in a folder."""
    sae = SAE.load(directory / "dictionary")
    return cls(sae.model, sae.params)

  def encode(self, x_BM: Any) -> np.ndarray:
    """The features of activations, f_BF, on the host."""
    return np.asarray(self._encode(x_BM))

  def fired(self, x_BM: Any) -> np.ndarray:
    """On how many of the rows each feature fires, (F,), on the host."""
    return np.asarray(self._fired(x_BM))

  def reconstruct(self, x_BM: Any) -> np.ndarray:
    """The reconstructions of activations, (B, M), on the host."""
    return np.asarray(self._reconstruct(x_BM))


def _source(config: IndexStudyConfig, subject: Subject) -> Generated:
  """The source that dictionaries are trained on: the layer's activations on random rows."""
  return Generated(index_task.draw_rows, subject.sites_of, (subject.site,), config.sae.batch_rows, config.seed + 1000)


def train_dictionary(run: RunFolder, config: IndexStudyConfig) -> dict[str, Any]:
  """The stage `sae`: trains the dictionary, and measures how well it stands in for the layer.

  Args:
    run: the study's folder.
    config: its settings.

  Returns:
    The stage's record, with the figures of `spliced_scores`.
  """
  def work(directory: pathlib.Path, identity: str) -> dict[str, Any]:
    subject = Subject(run, config)
    scores = spliced_scores(config, subject, train_one(config, subject, directory, identity))
    return {f"index_arithmetic/{name}": value for name, value in scores.items()}
  return run.execute("sae", {"sae": config.sae_of(LAYER), "seed": config.seed}, work)


def train_one(config: IndexStudyConfig, subject: Subject, directory: pathlib.Path, identity: str) -> Features:
  """Trains the dictionary of a hidden layer in a folder, or goes on with it, and returns it.

  Args:
    config: the study's settings.
    subject: the MLP, made for that layer.
    directory: the folder, which receives `dictionary/`.
    identity: kept with the dictionary.
  """
  train_sae(config.sae_of(subject.layer), _source(config, subject), Wiring((config.mlp.hidden[subject.layer],)),
            directory, {"identity": identity, "sites": [subject.site]}, meshes.make_mesh(), MetricsConfig())
  return Features.load(directory)


def spliced_scores(config: IndexStudyConfig, subject: Subject, features: Features) -> dict[str, float | None]:
  """How well a dictionary stands in for the layer: the MLP predicts from its reconstruction of the activations.

  A prediction counts as right if it rounds to the answer.

  Args:
    config: the study's settings.
    subject: the MLP.
    features: the dictionary.

  Returns:
    Measured on 131,072 rows,

    * "l0": how many features fire on a row on average;
    * "dead_fraction": the fraction of features that fire on no row;
    * "rare_fraction": the fraction that fire on fewer than one row in 10,000, dead features included.

    Measured on the first 32,768 of these rows,

    * "spliced_accuracy" and "spliced_mse": the accuracy and the mean squared error of predictions from reconstructions;
    * "explained_variance": that of the reconstructions; None where all activations are equal;
    * "neurons_l0": how many neurons are not 0 on a row on average;
    * "ablated_accuracy": the accuracy of predictions from the layer's mean activation.
  """
  rows_BI = config.rows("spliced", _COUNTED_ROWS)
  chunks = np.split(rows_BI, _COUNTED_ROWS // 8192)
  counts_F = np.sum([features.fired(subject.activations(part_BI)) for part_BI in chunks], axis=0)
  judged_BI = rows_BI[:_SPLICED_ROWS]
  x_BM, answer_B = subject.activations(judged_BI), index_task.answers(judged_BI)
  y_BM, mean_1M = features.reconstruct(x_BM), x_BM.mean(0, keepdims=True)
  unexplained = share_unexplained(np.square(x_BM - y_BM).sum(), joined(None, spread(x_BM)))
  found_B, mean_found_1 = subject.output(y_BM), subject.output(mean_1M)
  return {"spliced_accuracy": float((np.round(found_B) == answer_B).mean()),
          "spliced_mse": float(np.square(found_B - answer_B).mean()),
          "explained_variance": None if unexplained is None else 1 - unexplained,
          "l0": float(counts_F.sum() / _COUNTED_ROWS), "neurons_l0": float((x_BM > 0).sum(1).mean()),
          "dead_fraction": float((counts_F == 0).mean()),
          "rare_fraction": float((counts_F < 1e-4 * _COUNTED_ROWS).mean()),
          "ablated_accuracy": float((np.round(mean_found_1) == answer_B).mean())}


def train_others(run: RunFolder, config: IndexStudyConfig) -> dict[str, Any]:
  """The stage `sweep`: trains dictionaries of other recipes and sizes on the same layer.

  It writes `points.json`: the recipe, size, sparsity and `spliced_scores` of each dictionary.

  Args:
    run: the study's folder.
    config: its settings.

  Returns:
    The stage's record.
  """
  saes = sweep_configs(config)

  def work(directory: pathlib.Path, identity: str) -> dict[str, Any]:
    subject = Subject(run, config)
    identities = {name_of(sae): {"identity": identity, "sites": [subject.site]} for sae in saes}
    trained = train_sweep(saes, _source(config, subject), Wiring((config.width,)), directory, identities,
                          meshes.make_mesh(), MetricsConfig(), sample_seed=config.seed)
    points = []
    for sae, model, params in trained.values():
      scores = spliced_scores(config, subject, Features(model, params))
      points.append({"recipe": sae.recipe, "n_features": sae.n_features, "sparsity": sae.sparsity, **scores})
    files.write_json(directory / "points.json", points)
    return {}
  return run.execute("sweep", {"saes": {name_of(sae): sae for sae in saes}, "seed": config.seed}, work)


def sweep_configs(config: IndexStudyConfig) -> list[SAEConfig]:
  """The resolved settings of the sweep's dictionaries: each recipe with each size, at several sparsities."""
  found: list[SAEConfig] = []
  for recipe in config.sweep_recipes:
    for n_features in config.sweep_sizes:
      changes = dict(_FAST.get(recipe, {}))
      if recipe != config.sae.recipe:
        changes["sparsity_coefficient"] = None  # what the settings say of it is meant for their own recipe
      base = dataclasses.replace(config.sae, seed=config.sae_of(LAYER).seed, recipe=recipe, n_features=n_features,
                                 **changes)
      record = recipe_of(recipe)
      found += [base] if record.knob == "k" else base.at_sparsities(_PENALTIES.get(recipe, record.grid))
  return [sae.resolved() for sae in found]
