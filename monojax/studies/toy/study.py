"""The study of toy models of superposition: the experiments of the paper (Elhage et al., 2022), each of them a stage.

Density is the probability that a feature fires, which the paper writes as 1 - S. An experiment trains a toy model at
several settings, for instance densities. Of each setting it trains several instances and keeps the one with the lowest
loss.

Letters: M hidden dimensions, B rows, Q points of a quadrature. In this module L is settings, I instances, N features, P
points along an axis of a diagram, T times at which training is recorded, K nodes of a quadrature in one dimension, and
S starts.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from monojax import files
from monojax.config import COUNT, POSITIVE, SEED, option, require_rules
from monojax.pipeline.folder import RunFolder
from monojax.studies.toy import geometry as superposition
from monojax.studies.toy.model import ToyConfig, Trained, draw, forward, inputs_of, loss_of, train_toys
from monojax.training import minimised

# The paper's sticky points: over a range of densities, features have the same number of dimensions each. A point counts
# as sticky if it holds at this many of the densities that are trained.
STICKY_LEVELS = 3
_RECOVERED = -2  # which density of the stage `basic` the SAE is trained on: two features fire on a row there
_N_RECORDS = 150  # how often the experiments on dynamics record training, so that no model is trained for fewer steps
DROPPED, SUPERPOSED, DEDICATED = 0, 1, 2  # what can become of a feature
PRESENT = 0.5  # a feature of a small model is represented if its norm is at least this

Arrays = dict[str, Any]
Figures = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ToyStudyConfig:
  """How many models the study trains, and for how long."""
  seed: int = option(0, "seed of all weights and rows", SEED)
  levels: int = option(24, "number of densities, besides three high ones, at which 400 equal features are put into 30 "
                           "dimensions", COUNT)
  phase_points: int = option(20, "number of points along each axis of the phase diagrams", COUNT)
  restarts: int = option(8, "number of instances of each small model, of which the one with the lowest loss is kept",
                         COUNT)
  effort: float = option(1.0, "factor by which all numbers of optimiser steps are multiplied", POSITIVE)

  def __post_init__(self) -> None:
    require_rules(self)

  def toy(self, n_features: int, n_hidden: int, n_steps: int, **more: Any) -> ToyConfig:
    """The settings of a toy model, with the study's seed and effort; `more` is further fields of `ToyConfig`."""
    return ToyConfig(n_features, n_hidden, n_steps=max(_N_RECORDS, round(self.effort * n_steps)), seed=self.seed,
                     **more)


def run_stage(run: RunFolder, name: str, config: ToyStudyConfig) -> dict[str, Any]:
  """One of `STAGES`: trains the models of an experiment and writes them to `models.npz`.

  Args:
    run: the study's folder.
    name: the stage.
    config: the study's settings.

  Returns:
    The stage's record; its figures are named "toy/...".
  """
  def work(directory: pathlib.Path, _: str) -> dict[str, Any]:
    arrays, figures = STAGES[name](config)
    files.write_npz(directory / "models.npz", arrays)
    return {f"toy/{key}": value for key, value in figures.items()}
  return run.execute(name, config, work)


def load(run: RunFolder, name: str) -> dict[str, np.ndarray]:
  """The arrays that a finished stage left in `models.npz`, by name."""
  return files.read_npz(run.made(name, "models.npz"))


def settings(density_L: Any, importance_LN: Any, restarts: int) -> tuple[np.ndarray, np.ndarray]:
  """The importance and the probability of each feature in each instance, as `train_toys` takes them.

  Args:
    density_L: the probability that features fire, for each setting; or (L, N) with one for each feature.
    importance_LN: the importance of features.
    restarts: how many instances each setting has; they are next to each other.

  Returns:
    (importance_IN, probability_IN).
  """
  importance_LN = np.asarray(importance_LN, float)
  density_LN = np.broadcast_to(np.reshape(density_L, (len(density_L), -1)), importance_LN.shape)
  return np.repeat(importance_LN, restarts, 0), np.repeat(density_LN, restarts, 0)


def best_of(config: ToyConfig, density_L: Any, importance_LN: Any, restarts: int, **more: Any) -> Trained:
  """The instance with the lowest loss of each setting, after training; for the arguments see `settings`."""
  trained = train_toys(config, *settings(density_L, importance_LN, restarts), **more)
  return trained.lowest(len(importance_LN))


def _basic(config: ToyStudyConfig) -> tuple[Arrays, Figures]:
  """Which features a layer keeps, with and without a ReLU, as features of unequal importance become sparse."""
  density_L = np.geomspace(1.0, 0.01, 7)
  figures: Figures = {}
  arrays: Arrays = {"density_L": density_L}
  for n, m, decay, steps in ((20, 5, 0.7, 3000), (80, 20, 0.9, 2500)):
    for variant in ("relu", "linear"):
      importance_LN = np.tile(decay ** np.arange(n), (len(density_L), 1))
      trained = best_of(config.toy(n, m, steps, variant=variant), density_L, importance_LN, 3,
                        name=f"{n} features in {m}, {variant}")
      arrays |= {f"{variant}_{n}_W_LNM": trained.params["W_NM"], f"{variant}_{n}_b_LN": trained.params["b_N"]}
      kept_L = (superposition.norms(trained.params["W_NM"]) > PRESENT).sum(-1)
      figures |= {f"{variant}_{n}_kept_dense": int(kept_L[0]), f"{variant}_{n}_kept_sparse": int(kept_L[-1])}
  return arrays, figures


def _phase(config: ToyStudyConfig) -> tuple[Arrays, Figures]:
  """At which densities and importances an extra feature is left out, superposed, or given a dimension of its own."""
  points = config.phase_points
  density_P, importance_P = np.geomspace(1.0, 0.01, points), np.geomspace(0.1, 10, points)
  density_L, extra_L = (grid.reshape(-1) for grid in np.meshgrid(density_P, importance_P, indexing="ij"))
  arrays: Arrays = {"density_P": density_P, "importance_P": importance_P}
  figures: Figures = {}
  for n, m in ((2, 1), (3, 2)):
    importance_LN = np.ones((points * points, n))
    importance_LN[:, -1] = extra_L
    trained = best_of(config.toy(n, m, 2000, learning_rate=1e-2, batch_rows=256), density_L, importance_LN,
                      config.restarts, name=f"phase diagram of {n} features in {m}")
    W_LNM = trained.params["W_NM"]
    arrays |= {f"W_{n}_LNM": W_LNM, f"loss_{n}_L": trained.loss_I, f"phase_{n}_L": phases(W_LNM)}
  theory_L = predicted_phases(density_L, extra_L)
  antipodal_L = (1 + extra_L) * density_L**2 / 6
  dropping_L = np.minimum(1, extra_L) * (density_L / 3 - density_L**2 / 4)
  bound_L = antipodal_L < dropping_L
  figures["phase_agreement"] = float((theory_L == arrays["phase_2_L"]).mean())
  figures["phase_within_bound"] = float((arrays["phase_2_L"] == SUPERPOSED)[bound_L].mean())
  return {**arrays, "theory_2_L": theory_L, "bound_2_L": bound_L}, figures


def phases(W_LNM: np.ndarray) -> np.ndarray:
  """What became of the last feature of each model: `DROPPED`, `SUPERPOSED` with another feature, or `DEDICATED`."""
  there_L = superposition.norms(W_LNM)[:, -1] > PRESENT
  shared_L = superposition.interference(W_LNM)[:, -1] > 0.25
  return np.where(there_L, np.where(shared_L, SUPERPOSED, DEDICATED), DROPPED)


def predicted_phases(density_L: np.ndarray, extra_L: np.ndarray, n_nodes: int = 24, n_steps: int = 1500) -> np.ndarray:
  """What theory predicts for the second of two features in one dimension: the phase with the least expected loss.

  The expected loss is computed by Gauss-Legendre quadrature. It is minimised from three starts: the first feature
  alone, the second alone, and both in opposite directions. Nothing is drawn at random.

  Args:
    density_L: the probability that the features fire.
    extra_L: the importance of the second feature; that of the first is 1.
    n_nodes: the number of nodes of the quadrature for each feature.
    n_steps: the number of steps of the optimiser.

  Returns:
    `DROPPED`, `SUPERPOSED` or `DEDICATED` for each setting.
  """
  node_K, weight_K = np.polynomial.legendre.leggauss(n_nodes)
  node_K, weight_K = (node_K + 1) / 2, weight_K / 2
  value_K = np.concatenate([[0.0], node_K])
  x_2Q = jnp.asarray(np.stack(np.meshgrid(value_K, value_K, indexing="ij")).reshape(2, -1), jnp.float32)
  weight_LK = np.concatenate([(1 - density_L)[:, None], density_L[:, None] * weight_K[None]], 1)
  weight_LQ = jnp.asarray((weight_LK[:, :, None] * weight_LK[:, None, :]).reshape(len(density_L), -1), jnp.float32)
  importance_L2 = jnp.stack([jnp.ones(len(extra_L)), jnp.asarray(extra_L, jnp.float32)], 1)
  tx = optax.adam(optax.cosine_decay_schedule(1e-2, n_steps))
  losses = jax.vmap(lambda params, weight_Q, importance_2:
                    (weight_Q * loss_of("relu", params, x_2Q, importance_2)).sum())

  @jax.jit
  def lowest(params):
    params = minimised(lambda params: losses(params, weight_LQ, importance_L2).sum(), params, tx, n_steps)
    return params["W_NM"], losses(params, weight_LQ, importance_L2)
  starts = [{"W_NM": jnp.tile(jnp.array([[first], [second]]), (len(density_L), 1, 1)),
             "b_N": jnp.zeros((len(density_L), 2))} for first, second in ((1.0, 0.0), (0.0, 1.0), (1.0, -1.0))]
  W_SL21, loss_SL = (np.stack(parts) for parts in zip(*map(lowest, starts), strict=True))
  return phases(W_SL21[loss_SL.argmin(0), np.arange(len(density_L))])


def _geometry(config: ToyStudyConfig) -> tuple[Arrays, Figures]:
  """How many of 400 equal features 30 dimensions represent, and which polytopes the features form."""
  n, m = 400, 30
  density_L = np.concatenate([[1.0, 0.85, 0.7], np.geomspace(0.55, 0.2, config.levels)])
  trained = best_of(config.toy(n, m, 5000, batch_rows=256, learning_rate=5e-3), density_L,
                    np.ones((len(density_L), n)), 1, name=f"{n} features in {m}")
  W_LNM = trained.params["W_NM"]
  D_L = superposition.dimensions_per_feature(W_LNM)
  D_LN = superposition.dimensionality(W_LNM)
  nearest = lambda value: float(np.sort(np.abs(D_L - value))[STICKY_LEVELS - 1])
  # Dimensionalities are predicted below the sticky point 1, where any 30 orthogonal directions will do, and above those
  # of the polytope with the most corners for each dimension.
  predicted_L = (D_L < 0.97) & (D_L > min(superposition.PREDICTED.values()) - 0.02)
  figures: Figures = {
      "fraction_on_predicted_dimensionality": superposition.fraction_predicted(D_LN[predicted_L].reshape(-1)),
      "levels_with_predictions": int(predicted_L.sum()), "sticky_error": max(nearest(1.0), nearest(0.5)),
      "sticky_error_1": nearest(1.0), "sticky_error_half": nearest(0.5)}
  found = {superposition.name_of(*shape[:2]) for W_NM in W_LNM for shape in superposition.polytopes(W_NM)}
  figures["polytopes_found"] = ", ".join(name for name in superposition.POLYTOPES if name in found)
  vulnerability_L = np.array([_vulnerability(config, W_NM, b_N, density) for W_NM, b_N, density in
                              zip(W_LNM, trained.params["b_N"], density_L, strict=True)])
  figures["vulnerability_ratio"] = float(vulnerability_L.max() / vulnerability_L[0])
  return {"density_L": density_L, "W_LNM": W_LNM, "b_LN": trained.params["b_N"], "loss_L": trained.loss_I,
          "vulnerability_L": vulnerability_L}, figures


def _vulnerability(config: ToyStudyConfig, W_NM: np.ndarray, b_N: np.ndarray, density: float, n_rows: int = 128,
                   size: float = 0.1) -> float:
  """How much the worst adversarial change of the inputs adds to the loss, over the square of the change's length.

  The changes that are tried point along (W W^T)_i for each feature i. Their length is `size` times the mean length of
  an input.
  """
  n_features, n_hidden = W_NM.shape
  toy = config.toy(n_features, n_hidden, 10, batch_rows=n_rows)
  x_NB = inputs_of(toy, draw(toy, jax.random.key(config.seed + 1)), jnp.full((W_NM.shape[0],), density, jnp.float32))
  length = size * jnp.linalg.norm(x_NB, axis=0).mean()
  direction_NN = W_NM @ W_NM.T
  direction_NN = direction_NN / np.maximum(np.linalg.norm(direction_NN, axis=1, keepdims=True), 1e-6)
  params = {"W_NM": jnp.asarray(W_NM), "b_N": jnp.asarray(b_N)}
  loss = lambda given_NB: jnp.square(forward("relu", params, given_NB)[0] - x_NB).sum(0).mean()
  attacked_N = jax.lax.map(lambda d_N: loss(x_NB + length * d_N[:, None]), jnp.asarray(direction_NN))
  return float((attacked_N.max() - loss(x_NB)) / length**2)


def _perturbation(config: ToyStudyConfig) -> tuple[Arrays, Figures]:
  """What happens to five features in two dimensions when one of them is more or less frequent than the others."""
  density, factor_L = 0.05, np.geomspace(0.1, 8, 21)
  density_LN = np.full((len(factor_L), 5), density)
  density_LN[:, 0] *= factor_L
  best = best_of(config.toy(5, 2, 2500, batch_rows=1024, learning_rate=5e-3), density_LN,
                 np.ones((len(factor_L), 5)), 2 * config.restarts, name="perturbation")
  even = int(np.abs(factor_L - 1).argmin())
  (shape, *others) = superposition.polytopes(best.params["W_NM"][even])
  return {"factor_L": factor_L, "W_LNM": best.params["W_NM"], "b_LN": best.params["b_N"], "loss_L": best.loss_I}, {
      "even_geometry": superposition.name_of(*shape[:2]) if not others else "several",
      "perturbed_loss_ratio": float(best.loss_I[0] / best.loss_I[even])}


def _sets(config: ToyStudyConfig) -> tuple[Arrays, Figures]:
  """How features are arranged that fire together (merged or at right angles) or never together (opposite)."""
  arrays: Arrays = {}
  figures: Figures = {}
  for name, n, m, inputs in (("correlated", 4, 2, "correlated"), ("anticorrelated", 4, 2, "anticorrelated"),
                             ("pairs", 6, 2, "correlated")):
    density_L = np.geomspace(0.6, 0.03, 6)
    toy = config.toy(n, m, 2500, inputs=inputs, batch_rows=1024, learning_rate=5e-3)
    best = best_of(toy, density_L, np.ones((len(density_L), n)), 2 * config.restarts, name=f"{name} features")
    W_LNM = best.params["W_NM"]
    unit_LNM = W_LNM / np.maximum(superposition.norms(W_LNM), 1e-6)[..., None]
    within_L = (unit_LNM[:, ::2] * unit_LNM[:, 1::2]).sum(-1).mean(-1)
    arrays |= {f"{name}_W_LNM": W_LNM, f"{name}_within_L": within_L, f"{name}_loss_L": best.loss_I}
    figures |= {f"{name}_cosine_dense": float(within_L[0]), f"{name}_cosine_sparse": float(within_L[-1])}
  return {**arrays, "density_L": density_L}, figures


def _dynamics(config: ToyStudyConfig) -> tuple[Arrays, Figures]:
  """How dimensionalities change during training: they jump, and the loss falls when they do."""
  sets = train_toys(config.toy(6, 3, 3000, inputs="correlated", set_size=3, batch_rows=1024), np.ones((8, 6)),
                    np.full((8, 6), 0.05), _N_RECORDS, "dynamics of two sets").lowest(1)
  even = train_toys(config.toy(100, 10, 4000, batch_rows=512), np.ones((1, 100)), np.full((1, 100), 0.3), _N_RECORDS,
                    "dynamics of 100 features")
  arrays: Arrays = {}
  for name, trained in (("sets", sets), ("even", even)):
    W_TNM = trained.history["W_NM"][:, 0]
    arrays |= {f"{name}_step_T": np.asarray(trained.history["step"]), f"{name}_W_TNM": W_TNM,
               f"{name}_loss_T": trained.history["loss_TI"][:, 0], f"{name}_D_TN": superposition.dimensionality(W_TNM)}
  return arrays, {"dynamics_final_predicted": superposition.fraction_predicted(arrays["even_D_TN"][-1])}


def _privileged(config: ToyStudyConfig) -> tuple[Arrays, Figures]:
  """How many features each neuron of a hidden layer with a ReLU serves: one while features are dense, later several."""
  density_L = np.geomspace(1.0, 0.03, 6)
  best = best_of(config.toy(10, 5, 3000, variant="privileged", batch_rows=256, learning_rate=5e-3), density_L,
                 np.tile(0.75 ** np.arange(10), (len(density_L), 1)), 50, name="privileged basis")
  shared_LM = (np.abs(best.params["W_NM"]) > PRESENT).sum(1)
  return {"density_L": density_L, "W_LNM": best.params["W_NM"], "shared_LM": shared_LM, "loss_L": best.loss_I}, {
      "privileged_features_a_neuron_dense": float(shared_LM[1].mean()),
      "privileged_features_a_neuron_sparse": float(shared_LM[-1].mean())}


def _computation(config: ToyStudyConfig) -> tuple[Arrays, Figures]:
  """Whether neurons that compute |x| serve one feature each, which they do while features are dense, or several."""
  density_L = np.geomspace(1.0, 0.02, 7)
  figures: Figures = {}
  arrays: Arrays = {"density_L": density_L}
  for n, m, steps, restarts in ((3, 6, 4000, 2 * config.restarts), (100, 40, 3000, 1)):
    best = best_of(config.toy(n, m, steps, variant="absolute"), density_L,
                   np.tile(0.8 ** np.arange(n) if n > 3 else np.ones(n), (len(density_L), 1)), restarts,
                   name=f"|x| of {n} features by {m} neurons")
    W_LNM, out_LMN = best.params["W_NM"], best.params["W_out_MN"]
    # What a neuron does for a feature is the weight from the feature to it times the weight from it to the feature.
    effect_LNM = np.abs(W_LNM * np.swapaxes(out_LMN, 1, 2))
    part_LM = effect_LNM.max(1) / np.maximum(effect_LNM.sum(1), 1e-9)
    used_LM = effect_LNM.max(1) > 0.1
    monosemantic_L = np.array([(part > 0.9)[used].mean() if used.any() else np.nan
                               for part, used in zip(part_LM, used_LM, strict=True)])
    arrays |= {f"W_{n}_LNM": W_LNM, f"out_{n}_LMN": out_LMN, f"monosemantic_{n}_L": monosemantic_L,
               f"loss_{n}_L": best.loss_I}
    figures |= {f"computation_{n}_monosemantic_dense": float(monosemantic_L[0]),
                f"computation_{n}_monosemantic_sparse": float(monosemantic_L[-1])}
  return arrays, figures


def recover(run: RunFolder, config: ToyStudyConfig) -> dict[str, Any]:
  """The stage `recovery`: an SAE is to find the features in the hidden layer of 80 sparse features in 20 dimensions.

  Args:
    run: the study's folder, in which the stage `basic` is finished.
    config: the study's settings.

  Returns:
    The stage's record.
  """
  def work(directory: pathlib.Path, identity: str) -> dict[str, Any]:
    from monojax import mesh as meshes
    from monojax.analysis.recovery import direction_scores
    from monojax.metrics import MetricsConfig
    from monojax.sae.config import SAEConfig
    from monojax.sae.model import Wiring
    from monojax.sae.train import train_sae
    from monojax.studies.synthetic.planted import PlantedConfig
    from monojax.studies.synthetic.source import Planted, Synthetic
    models = load(run, "basic")
    W_NM, density = models["relu_80_W_LNM"][_RECOVERED], float(models["density_L"][_RECOVERED])
    represented_N = superposition.norms(W_NM) > PRESENT
    n_represented = int(represented_N.sum())
    sae = SAEConfig(recipe="batchtopk", n_features=n_represented, k=max(1, round(density * n_represented)),
                    batch_rows=1024, n_steps=max(10, round(4000 * config.effort)), learning_rate=3e-3, warmup_steps=100,
                    decay_fraction=0.3, dead_window_steps=200, scan_steps=50, checkpoint_every_steps=2000,
                    seed=config.seed)
    n_features, width = W_NM.shape
    planted = PlantedConfig(n_features, width, frequency="equal", mean_active=density * len(W_NM), seed=config.seed)
    source = Synthetic(Planted.of(planted, W_NM), sae.batch_rows, config.seed)
    mesh = meshes.make_mesh(meshes.MeshConfig(data=1))
    _, params = train_sae(sae, source, Wiring((W_NM.shape[1],)), directory, {"identity": identity}, mesh,
                          MetricsConfig(), "sae")
    scores = direction_scores(params["W_dec_FO"], W_NM[represented_N])
    files.write_npz(directory / "models.npz", {"W_dec_FO": params["W_dec_FO"], "W_NM": W_NM[represented_N]})
    return {"toy/recovery_features": n_represented, "toy/recovery_mcc": scores["mcc"],
            "toy/recovery_mmcs_truth": scores["mmcs_truth"]}
  return run.execute("recovery", config, work)


STAGES: dict[str, Callable[[ToyStudyConfig], tuple[Arrays, Figures]]] = {
    "basic": _basic, "phase": _phase, "geometry": _geometry, "perturbation": _perturbation, "sets": _sets,
    "dynamics": _dynamics, "privileged": _privileged, "computation": _computation}
# The study's stages, and for each the stages whose results it reads, as `monojax.pipeline.folder.RunFolder` takes them.
INPUTS: dict[str, tuple[str, ...]] = {**{name: () for name in STAGES}, "recovery": ("basic",)}
