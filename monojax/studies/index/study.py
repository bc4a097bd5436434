"""Index arithmetic: an MLP that learns |c1[p1] - c2[p2]|, a dictionary of its hidden layer, and what features do.

Stages: `mlp` trains the subject; `sae` its dictionary; `features` ties features to the task's variables and measures
what they do; `sweep`, if asked for, trains recipes and sizes beside it.

Letters: B rows, F features, H neurons, L labels, P pairs of a row and a feature.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from monojax import checkpoint, files
from monojax import mesh as meshes
from monojax.activations.generated import Generated
from monojax.config import option, require, require_not_negative, require_positive
from monojax.metrics import MetricsConfig
from monojax.sae.config import SAEConfig
from monojax.sae.dictionary import SAE
from monojax.sae.model import Wiring
from monojax.sae.recipes import RECIPES, recipe_of
from monojax.sae.sweep import name_of, train_sweep
from monojax.sae.train import train_sae
from monojax.studies.index import task as index_task
from monojax.studies.index.mlp import MLP, MLPConfig, train_mlp

SITE = "layer.1.mlp.hidden"
INPUTS = {"mlp": (), "sae": ("mlp",), "features": ("mlp", "sae"), "sweep": ("mlp",)}
_USES = ("learned", "moments", "tested", "spliced", "tied", "patched", "ablated", "coded")  # of rows; each has its own
_TEST_ROWS, _COUNTED_ROWS, _SPLICED_ROWS = 100_000, 131_072, 32_768
# Penalties that suit this layer (of a recipe that is not here, those of its record), and what recipes need to converge
# in about a thousand steps.
_PENALTIES = {"tm2023": (1e-4, 3e-4), "apr2024": (0.3, 1.0), "gated": (0.3, 1.0), "jumprelu": (0.3, 1.0),
              "jan2025": (0.5, 2.0)}
_FAST = {"gated": {"beta1": 0.9}, "jumprelu": {"beta1": 0.9, "threshold": 0.3, "bandwidth": 0.3},
         "jan2025": {"threshold": 0.3, "bandwidth": 1.0}}
_drawn = jax.jit(index_task.draw_rows, static_argnums=1)


@dataclasses.dataclass(frozen=True)
class IndexStudyConfig:
  """The subject, the dictionary and how they are looked at."""
  seed: int = option(0, "of the rows; it is added to mlp.seed and sae.seed")
  mlp: MLPConfig = dataclasses.field(default_factory=lambda: MLPConfig(
      n_steps=2750, batch_rows=512, activity_penalties=(2e-3, 1e-3, 0.0), noise=(0.0, 0.6, 0.0)))
  train_rows: int = option(0, "rows that the MLP learns from, drawn again and again; 0 draws new ones at each step")
  sae: SAEConfig = dataclasses.field(default_factory=lambda: SAEConfig(
      recipe="batchtopk", n_features=2048, k=19, batch_rows=1024, n_steps=532, learning_rate=5e-4, warmup_steps=50,
      decay_fraction=0.4, aux_k=16, dead_window_steps=100, scan_steps=19, checkpoint_every_steps=190))
  variable_features: int = option(96, "features that stand for a variable: those with the largest effect when it "
                                      "changes")
  readout_features: int = option(40, "of those, features in a readout of one of its values")
  sweep_recipes: tuple[str, ...] = option((), "recipes to train on the layer besides; none by default")
  sweep_sizes: tuple[int, ...] = option((512, 1024, 2048), "sizes of each of them")

  def __post_init__(self):
    require_not_negative(self, "", "seed", "train_rows")
    require_positive(self, "", "readout_features")
    require(self.readout_features <= self.variable_features <= self.sae.n_features // 2, "variable_features",
            self.variable_features, f"must lie between readout_features={self.readout_features} and half of "
                                    f"sae.n_features={self.sae.n_features}")
    require(min(self.sweep_sizes, default=0) > 0, "sweep_sizes", self.sweep_sizes, "needs positive sizes")
    require(all(name in RECIPES for name in self.sweep_recipes), "sweep_recipes", ",".join(self.sweep_recipes),
            f"choose among {', '.join(RECIPES)}")
    require(len(self.mlp.hidden) == 3 and self.mlp.n_inputs == index_task.WIDTH and self.mlp.n_outputs == 1,
            "mlp.hidden", self.mlp.hidden, "the study is of ten numbers, three hidden layers and one output")
    require(self.readout_features <= self.width, "readout_features", self.readout_features,
            f"must not exceed the layer's {self.width} neurons")
    sweep_configs(self)  # refuses what cannot be trained, before anything is

  @property
  def seeded_mlp(self):
    """The subject's settings with the study's seed."""
    return dataclasses.replace(self.mlp, seed=self.mlp.seed + self.seed)

  @property
  def seeded_sae(self):
    """The dictionary's."""
    return dataclasses.replace(self.sae, seed=self.sae.seed + self.seed).resolved()

  @property
  def width(self):
    """Of the site."""
    return self.mlp.hidden[1]

  def key(self, use):
    """The key of the rows of one of `_USES`."""
    return jax.random.fold_in(jax.random.key(self.seed), _USES.index(use))

  def rows(self, use, n_rows):
    """(n_rows, 10) rows, on the host."""
    return np.asarray(_drawn(self.key(use), n_rows))


def published_mlp() -> MLPConfig:
  """The MLP's training as the published study did it: 8,000 rows, 500 times over, in batches of 64."""
  return MLPConfig(n_steps=62_500, batch_rows=64, scan_steps=500, checkpoint_every_steps=12_500)


def train_subject(run, config):
  """The MLP; its accuracy on rows that were not learned from."""
  mlp = config.seeded_mlp

  def work(directory, identity):
    moment_rows_BI = _fixed_rows(config) if config.train_rows else config.rows("moments", _TEST_ROWS)
    model, params = train_mlp(mlp, _batches(config), moment_rows_BI, directory,
                              {"identity": identity}, meshes.make_mesh(), MetricsConfig())
    checkpoint.save_params(directory / "subject", params, {"identity": identity})
    rows_BI = config.rows("tested", _TEST_ROWS)
    found_B = np.asarray(jax.jit(model.apply)({"params": params}, rows_BI)[0])[:, 0]
    error_B = found_B - index_task.answers(rows_BI)
    return {"index_arithmetic/test_accuracy": float((np.round(error_B) == 0).mean()),
            "index_arithmetic/test_mse": float(np.square(error_B).mean())}
  return run.execute("mlp", {"mlp": mlp, "seed": config.seed, "train_rows": config.train_rows}, work)


def _batches(config):
  """(first step, last step) -> (x_SBI, y_SBO) of the rows that the MLP learns from."""
  n_batch, key = config.mlp.batch_rows, config.key("learned")
  fixed_NI = _fixed_rows(config) if config.train_rows else None

  @jax.jit
  def make(steps_S):
    def one(step):
      step_key = jax.random.fold_in(key, step)
      rows_BI = (index_task.draw_rows(step_key, n_batch) if fixed_NI is None
                 else fixed_NI[jax.random.randint(step_key, (n_batch,), 0, config.train_rows)])
      return rows_BI, index_task.answers(rows_BI)[:, None]
    return jax.vmap(one)(steps_S)
  return lambda first, last: make(jnp.arange(first, last))


def _fixed_rows(config):
  return _drawn(config.key("learned"), config.train_rows)


class Subject:
  """The trained MLP, cut at the site of the dictionary."""

  def __init__(self, run, config):
    """Reads the stage `mlp`."""
    run.require_stage("mlp")
    params = checkpoint.load_params(run.directory / "mlp" / "subject")[0]
    model = MLP(config.seeded_mlp)
    nothing_1I = jnp.zeros((1, index_task.WIDTH))
    self.sites_of = lambda rows_BI: model.apply({"params": params}, rows_BI)[1]
    self.tail = lambda x_BM: model.apply({"params": params}, nothing_1I, {SITE: lambda _: x_BM})[0]
    self._activations = jax.jit(lambda rows_BI: self.sites_of(rows_BI)[SITE])
    self._tail = jax.jit(self.tail)

  def activations(self, rows_BI):
    """x_BM: the site's activations, on the host."""
    return np.asarray(self._activations(rows_BI))

  def output(self, x_BM):
    """(B,) predictions from the site's activations."""
    return np.asarray(self._tail(x_BM))[:, 0]


class Features:
  """A trained dictionary of the site."""

  def __init__(self, model, params):
    """Takes the dictionary."""
    self.n_features, self.W_dec_FO = model.n_features, params["W_dec_FO"]
    self._encode = jax.jit(lambda x_BM: model.apply({"params": params}, x_BM, method="encode"))
    self._reconstruct = jax.jit(lambda x_BM: model.apply({"params": params}, x_BM)[0])
    self._fired = jax.jit(lambda x_BM: (self._encode(x_BM) > 0).sum(0))

  @classmethod
  def of_run(cls, run, config):
    """What the stage `sae` has left."""
    sae = SAE.load(run.directory / "sae" / "dictionary")
    return cls(sae.model, sae.params)

  def encode(self, x_BM):
    """f_BF, on the host."""
    return np.asarray(self._encode(x_BM))

  def fired(self, x_BM):
    """(F,) on how many of the rows each feature fires."""
    return np.asarray(self._fired(x_BM))

  def reconstruct(self, x_BM):
    """The reconstruction, on the host."""
    return np.asarray(self._reconstruct(x_BM))


def _source(config, subject):
  return Generated(index_task.draw_rows, subject.sites_of, (SITE,), config.sae.batch_rows, config.seed + 1000)


def train_dictionary(run, config):
  """The dictionary, and the MLP's accuracy with its reconstruction in place of the layer."""
  sae = config.seeded_sae

  def work(directory, identity):
    subject = Subject(run, config)
    about = {"identity": identity, "sites": [SITE]}
    train_sae(sae, _source(config, subject), Wiring((config.width,)), directory, about, meshes.make_mesh(),
              MetricsConfig())
    scores = spliced_scores(config, subject, Features.of_run(run, config))
    return {f"index_arithmetic/{name}": value for name, value in scores.items()}
  return run.execute("sae", {"sae": sae, "seed": config.seed}, work)


def spliced_scores(config, subject, features):
  """Figures of a dictionary in the place of the layer.

  Returns:
    Of 131,072 rows "l0"; "dead_fraction", features that fire on none of them; "rare_fraction", on less than one in
    10,000, dead ones among them. Of 32,768 of them "spliced_accuracy", of rounded predictions; "spliced_mse";
    "explained_variance" of the layer; "neurons_l0", neurons that are not 0; "ablated_accuracy" with the layer's mean
    in its place.
  """
  rows_BI = config.rows("spliced", _COUNTED_ROWS)
  chunks = np.split(rows_BI, _COUNTED_ROWS // 8192)
  counts_F = sum(features.fired(subject.activations(part_BI)) for part_BI in chunks)
  judged_BI = rows_BI[:_SPLICED_ROWS]
  x_BM, answer_B = subject.activations(judged_BI), index_task.answers(judged_BI)
  y_BM, mean_1M = features.reconstruct(x_BM), x_BM.mean(0, keepdims=True)
  found_B, mean_found_1 = subject.output(y_BM), subject.output(mean_1M)
  return {"spliced_accuracy": float((np.round(found_B) == answer_B).mean()),
          "spliced_mse": float(np.square(found_B - answer_B).mean()),
          "explained_variance": float(1 - np.square(x_BM - y_BM).sum() / np.square(x_BM - mean_1M).sum()),
          "l0": float(counts_F.sum() / _COUNTED_ROWS), "neurons_l0": float((x_BM > 0).sum(1).mean()),
          "dead_fraction": float((counts_F == 0).mean()),
          "rare_fraction": float((counts_F < 1e-4 * _COUNTED_ROWS).mean()),
          "ablated_accuracy": float((np.round(mean_found_1) == answer_B).mean())}


def train_others(run, config):
  """Recipes and sizes on the same layer: the points of the sweep, in `points.json`."""
  saes = sweep_configs(config)

  def work(directory, identity):
    subject = Subject(run, config)
    identities = {name_of(sae): {"identity": identity, "sites": [SITE]} for sae in saes}
    trained = train_sweep(saes, _source(config, subject), Wiring((config.width,)), directory, identities,
                          meshes.make_mesh(), MetricsConfig(), sample_seed=config.seed)
    points = []
    for sae, model, params in trained.values():
      scores = spliced_scores(config, subject, Features(model, params))
      points.append({"recipe": sae.recipe, "n_features": sae.n_features, "sparsity": sae.sparsity, **scores})
    files.write_json(directory / "points.json", points)
    return {}
  return run.execute("sweep", {"saes": {name_of(sae): sae for sae in saes}, "seed": config.seed}, work)


def sweep_configs(config):
  """The dictionaries of the sweep: each recipe at each size, at the penalties that suit this layer."""
  found = []
  for recipe in config.sweep_recipes:
    for n_features in config.sweep_sizes:
      given = {} if recipe == config.sae.recipe else {"sparsity_coefficient": None}  # another recipe's, otherwise
      base = dataclasses.replace(config.sae, seed=config.seeded_sae.seed, recipe=recipe, n_features=n_features,
                                 **given, **_FAST.get(recipe, {}))
      record = recipe_of(recipe)
      found += [base] if record.knob == "k" else base.at_sparsities(_PENALTIES.get(recipe, record.grid))
  return [sae.resolved() for sae in found]
