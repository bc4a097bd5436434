"""Rows that are made of planted features: a source of activations that also gives the truth about them.

Letters: B rows of a batch, M width of a row. In this module N is planted features, R the rank of the correlation
between them, P parents and J children in trees of features, and C the children of one parent.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import ndtri

from monojax.config import require
from monojax.studies.synthetic.planted import PlantedConfig
from monojax.training import minimised

_MIN_OWN_VARIANCE = 0.01  # the least part of a correlated feature's variance that it does not share with others

Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Planted:
  """Planted features: how often and how strongly they fire, and their directions.

  Attributes:
    config: the settings.
    direction_NM: what each feature adds to a row when its strength is 1.
    bias_M: a constant vector that is added to every row.
    arrays: what `sample_features` needs. `probability_N` is the probability by which a feature is drawn. If strengths
      are normal, `mean_N` and `std_N` are their means and standard deviations. If features are correlated, their
      Gaussian variables have the parts `factor_NR` in common and the standard deviation `own_N` for themselves.
  """
  config: PlantedConfig
  direction_NM: jax.Array
  bias_M: jax.Array
  arrays: Arrays

  @classmethod
  def of(cls, config: PlantedConfig, direction_NM: Any = None) -> "Planted":
    """Draws what the settings leave to chance.

    Args:
      config: the settings.
      direction_NM: directions to take instead of random ones; as many, and as wide, as the settings say.

    Raises:
      InputError: the directions that are given have another shape.
    """
    direction_key, bias_key, std_key, factor_key = jax.random.split(jax.random.key(config.seed), 4)
    n, m = config.n_features, config.width
    if direction_NM is None:
      direction_NM = spread(_unit(jax.random.normal(direction_key, (n, m))), config.spread_steps)
    require(direction_NM.shape == (n, m), "directions", direction_NM.shape, f"must have the shape {(n, m)}")
    arrays = {"probability_N": jnp.asarray(compensated(config), jnp.float32)}
    if config.strength == "normal":
      arrays["mean_N"] = jnp.linspace(config.first_strength, config.last_strength, n)
      arrays["std_N"] = jnp.abs(config.strength_std_mean + config.strength_std_std * jax.random.normal(std_key, (n,)))
    if config.correlation_rank:
      factor_NR = config.correlation_scale * jax.random.normal(factor_key, (n, config.correlation_rank))
      shared_N = jnp.square(factor_NR).sum(1)
      kept_N = jnp.minimum(1.0, jnp.sqrt((1 - _MIN_OWN_VARIANCE) / shared_N))
      arrays |= {"factor_NR": factor_NR * kept_N[:, None], "own_N": jnp.sqrt(1 - shared_N * jnp.square(kept_N))}
    bias_M = config.bias_norm * _unit(jax.random.normal(bias_key, (1, m)))[0]
    return cls(config, jnp.asarray(direction_NM, jnp.float32), bias_M, arrays)


def compensated(config: PlantedConfig) -> np.ndarray:
  """The probabilities to draw features by, so that in trees they fire about as often as `probabilities` says, (N,).

  A child that is drawn fires only if its parent does, and is therefore drawn 1 / p(parent) times as often. It also
  loses against a sibling now and then if only one may fire. Where e of its siblings are drawn on average, given that
  their parent fires, it is drawn 1 + e times as often. No probability exceeds 1.
  """
  probability_N = config.probabilities()
  drawn_N = probability_N.copy()
  for first, size, parents in config.levels():
    parent_J = np.repeat(probability_N[parents], config.branching)
    given_J = probability_N[first:first + size] / parent_J
    drawn_N[first:first + size] = given_J
    if config.exclusive:
      others_J = np.repeat(given_J.reshape(-1, config.branching).sum(1), config.branching) - given_J
      drawn_N[first:first + size] *= 1 + others_J
  return np.minimum(drawn_N, 1.0)


def sample_features(config: PlantedConfig, arrays: Arrays, key: jax.Array, n_rows: int) -> jax.Array:
  """Draws the strengths of planted features on rows, (n_rows, N), which are 0 where a feature does not fire.

  Args:
    config: the settings of the planted features.
    arrays: those of `Planted`.
    key: the random key.
    n_rows: the number of rows.
  """
  on_key, strength_key, common_key, winner_key = jax.random.split(key, 4)
  probability_1N = arrays["probability_N"][None]
  shape = (n_rows, config.n_features)
  part_BN: Any  # for strengths that are uniform, where in their range they are
  if "factor_NR" in arrays:
    common_BR = jax.random.normal(common_key, (n_rows, arrays["factor_NR"].shape[1]))
    gaussian_BN = common_BR @ arrays["factor_NR"].T + jax.random.normal(on_key, shape) * arrays["own_N"][None]
    on_BN = gaussian_BN > ndtri(1 - probability_1N)
    part_BN = jax.random.uniform(strength_key, shape) if config.strength == "uniform" else None
  else:
    uniform_BN = jax.random.uniform(on_key, shape)
    on_BN = uniform_BN < probability_1N
    part_BN = uniform_BN / probability_1N  # where a feature fires, this is uniform between 0 and 1
  if config.strength == "uniform":
    strength_BN = config.min_strength + (1 - config.min_strength) * part_BN
  else:
    normal_BN = jax.random.normal(strength_key, shape)
    strength_BN = jax.nn.relu(arrays["mean_N"][None] + arrays["std_N"][None] * normal_BN)
  f_BN = jnp.where(on_BN, strength_BN, 0)
  for first, size, parents in config.levels():
    f_BN = f_BN.at[:, first:first + size].set(
        _gated(f_BN[:, first:first + size], f_BN[:, parents], config, arrays.get("mean_N"), parents,
               jax.random.fold_in(winner_key, first)))
  return f_BN


def _gated(child_BJ: jax.Array, parent_BP: jax.Array, config: PlantedConfig, mean_N: jax.Array | None, parents: slice,
           key: jax.Array) -> jax.Array:
  """The strengths of children, given those of their parents.

  A child's strength is multiplied by its parent's strength over the parent's mean, so that it fires only where its
  parent does. If siblings exclude each other, a random one of those that fire goes on firing.
  """
  mean_1P = 0.5 * (1 + config.min_strength) if mean_N is None else mean_N[parents][None]
  child_BJ = child_BJ * jnp.repeat(parent_BP / mean_1P, config.branching, axis=1)
  if not config.exclusive:
    return child_BJ
  child_BPC = child_BJ.reshape(len(child_BJ), -1, config.branching)
  score_BPC = jnp.where(child_BPC > 0, jax.random.uniform(key, child_BPC.shape), -1.0)
  wins_BPC = score_BPC == score_BPC.max(-1, keepdims=True)
  return jnp.where(wins_BPC, child_BPC, 0).reshape(child_BJ.shape)


class Synthetic:
  """An endless sequence of rows made of planted features: a `Source` whose batches are made on the device.

  Attributes:
    planted: the planted features.
    width: M.
    widths: (M,), since a row holds one site.
  """

  def __init__(self, planted: Planted, batch_rows: int, seed: int = 0) -> None:
    """Makes no rows yet.

    Args:
      planted: the planted features.
      batch_rows: B.
      seed: the seed of the rows.
    """
    self.planted, self.width = planted, planted.config.width
    self.widths = (self.width,)
    self._batch_rows, self._key = batch_rows, jax.random.key(seed)

  def batch(self, step: int) -> jax.Array:
    """The rows of batch number `step`, x_BM, float32."""
    return _rows(self.planted.config, self.planted.arrays, self.planted.direction_NM, self.planted.bias_M,
                 self._step_key(step), self._batch_rows)[0]

  def truth(self, step: int) -> tuple[jax.Array, jax.Array]:
    """(x_BM, f_BN): the rows of batch number `step`, and the strengths of the planted features in them."""
    return _rows(self.planted.config, self.planted.arrays, self.planted.direction_NM, self.planted.bias_M,
                 self._step_key(step), self._batch_rows)

  def sample(self, n_rows: int, seed: int) -> np.ndarray:
    """Further rows, (n_rows, M), which no batch holds, for estimates such as a geometric median."""
    key = jax.random.fold_in(jax.random.fold_in(self._key, 2**31 - 1), seed)
    return np.asarray(_rows(self.planted.config, self.planted.arrays, self.planted.direction_NM,
                            self.planted.bias_M, key, n_rows)[0])

  def _step_key(self, step: int) -> jax.Array:
    return jax.random.fold_in(self._key, step)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _rows(config: PlantedConfig, arrays: Arrays, direction_NM: jax.Array, bias_M: jax.Array, key: jax.Array,
          n_rows: int) -> tuple[jax.Array, jax.Array]:
  """(x_BM, f_BN): random rows, and the strengths of the planted features in them."""
  feature_key, noise_key = jax.random.split(key)
  f_BN = sample_features(config, arrays, feature_key, n_rows)
  x_BM = f_BN @ direction_NM + bias_M[None]
  if config.noise:
    x_BM += config.noise * jax.random.normal(noise_key, x_BM.shape)
  return x_BM, f_BN


def _unit(v_NM: jax.Array) -> jax.Array:
  """Each row scaled to unit length."""
  return v_NM / jnp.linalg.norm(v_NM, axis=1, keepdims=True)


def spread(direction_NM: jax.Array, n_steps: int, learning_rate: float = 3e-4) -> jax.Array:
  """Unit directions moved apart, so that they overlap less, as SynthSAEBench does it (arXiv 2602.14687).

  Adam minimises sum over i != j of (v_i . v_j)^2 + N sum over i of (|v_i|^2 - 1)^2. The first sum is computed as
  |V^T V|_F^2 - sum over i of |v_i|^4, for which a matrix of M by M is enough.
  """
  if not n_steps:
    return direction_NM

  def loss(v_NM: jax.Array) -> jax.Array:
    square_N = jnp.square(v_NM).sum(1)
    apart = jnp.square(v_NM.T @ v_NM).sum() - jnp.square(square_N).sum()
    return apart + len(v_NM) * jnp.square(square_N - 1).sum()
  minimise = jax.jit(lambda v_NM: minimised(loss, v_NM, optax.adam(learning_rate), n_steps))
  return _unit(minimise(direction_NM))
