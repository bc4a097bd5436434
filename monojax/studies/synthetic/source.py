"""Activations that are made of planted features: a source that knows the truth.

Letters: B rows of a batch, N planted features, M width, R rank of the correlation.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import ndtri

from monojax.config import require
from monojax.training import minimised

_MIN_OWN_VARIANCE = 0.01  # of a correlated feature's Gaussian, besides what it shares


@dataclasses.dataclass(frozen=True)
class Planted:
  """Planted features: a law of firing, and directions.

  Attributes:
    config: `PlantedConfig`.
    direction_NM: what a feature of strength 1 adds to a row.
    bias_M: added to every row.
    arrays: what `sample_features` draws by: probability_N, and by the settings mean_N, std_N, factor_NR, own_N.
  """
  config: object
  direction_NM: jax.Array
  bias_M: jax.Array
  arrays: dict

  @classmethod
  def of(cls, config, direction_NM=None):
    """Draws what `config` leaves to chance; other directions than its own may be given, with its width."""
    direction_key, bias_key, std_key, factor_key = jax.random.split(jax.random.key(config.seed), 4)
    n, m = config.n_features, config.width
    if direction_NM is None:
      direction_NM = spread(_unit(jax.random.normal(direction_key, (n, m))), config.spread_steps)
    require(direction_NM.shape == (n, m), "directions", direction_NM.shape, f"needed {(n, m)}")
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


def compensated(config):
  """(N,) probabilities to draw by, so that features in trees fire about as often as `probabilities` says.

  A child is drawn 1 / p(parent) times as often. Exclusive siblings that would fire e of the others' on average, given
  their parent, are drawn 1 + e times as often. At most 1.
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


def sample_features(config, arrays, key, n_rows):
  """(n_rows, N) strengths of planted features, 0 where one does not fire; to be traced."""
  on_key, strength_key, common_key, winner_key = jax.random.split(key, 4)
  probability_1N = arrays["probability_N"][None]
  shape = (n_rows, config.n_features)
  if "factor_NR" in arrays:
    common_BR = jax.random.normal(common_key, (n_rows, arrays["factor_NR"].shape[1]))
    gaussian_BN = common_BR @ arrays["factor_NR"].T + jax.random.normal(on_key, shape) * arrays["own_N"][None]
    on_BN = gaussian_BN > ndtri(1 - probability_1N)
    part_BN = jax.random.uniform(strength_key, shape) if config.strength == "uniform" else None
  else:
    uniform_BN = jax.random.uniform(on_key, shape)
    on_BN = uniform_BN < probability_1N
    part_BN = uniform_BN / probability_1N  # uniform again, given that it fires
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


def _gated(child_BJ, parent_BP, config, mean_N, parents, key):
  """Children that fire with their parent only, scaled by its strength over its mean, and exclude each other."""
  mean_1P = 0.5 * (1 + config.min_strength) if mean_N is None else mean_N[parents][None]
  child_BJ = child_BJ * jnp.repeat(parent_BP / mean_1P, config.branching, axis=1)
  if not config.exclusive:
    return child_BJ
  child_BPC = child_BJ.reshape(len(child_BJ), -1, config.branching)
  score_BPC = jnp.where(child_BPC > 0, jax.random.uniform(key, child_BPC.shape), -1.0)
  wins_BPC = score_BPC == score_BPC.max(-1, keepdims=True)
  return jnp.where(wins_BPC, child_BPC, 0).reshape(child_BJ.shape)


class Synthetic:
  """An endless sequence of rows made of planted features; a source whose batches are born on the device.

  Attributes:
    planted: `Planted`.
    widths, width: (M,), as of one site, and M.
  """

  def __init__(self, planted, batch_rows, seed=0):
    """Makes nothing yet.

    Args:
      planted: `Planted`.
      batch_rows: B.
      seed: of the rows.
    """
    self.planted, self.width = planted, planted.config.width
    self.widths = (self.width,)
    self._batch_rows, self._key = batch_rows, jax.random.key(seed)

  def batch(self, step):
    """x_BM, float32: batch number `step`."""
    return _rows(self.planted.config, self.planted.arrays, self.planted.direction_NM, self.planted.bias_M,
                 self._step_key(step), self._batch_rows)[0]

  def truth(self, step):
    """(x_BM, f_BN): batch number `step` and the strengths of the planted features in it."""
    return _rows(self.planted.config, self.planted.arrays, self.planted.direction_NM, self.planted.bias_M,
                 self._step_key(step), self._batch_rows)

  def sample(self, n_rows, seed):
    """(n_rows, M) further rows, for estimates such as a geometric median."""
    key = jax.random.fold_in(jax.random.fold_in(self._key, 2**31 - 1), seed)
    return np.asarray(_rows(self.planted.config, self.planted.arrays, self.planted.direction_NM,
                            self.planted.bias_M, key, n_rows)[0])

  def _step_key(self, step):
    return jax.random.fold_in(self._key, step)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _rows(config, arrays, direction_NM, bias_M, key, n_rows):
  feature_key, noise_key = jax.random.split(key)
  f_BN = sample_features(config, arrays, feature_key, n_rows)
  x_BM = f_BN @ direction_NM + bias_M[None]
  if config.noise:
    x_BM += config.noise * jax.random.normal(noise_key, x_BM.shape)
  return x_BM, f_BN


def _unit(v_NM):
  return v_NM / jnp.linalg.norm(v_NM, axis=1, keepdims=True)


def spread(direction_NM, n_steps, learning_rate=3e-4):
  """Unit directions moved apart by Adam on sum over i != j of (v_i . v_j)^2 + N sum over i of (|v_i|^2 - 1)^2.

  The procedure of SynthSAEBench (arXiv 2602.14687). The first sum is |V^T V|_F^2 - sum |v_i|^4, M by M.
  """
  if not n_steps:
    return direction_NM

  def loss(v_NM):
    square_N = jnp.square(v_NM).sum(1)
    apart = jnp.square(v_NM.T @ v_NM).sum() - jnp.square(square_N).sum()
    return apart + len(v_NM) * jnp.square(square_N - 1).sum()
  run = jax.jit(lambda v_NM: minimised(loss, v_NM, optax.adam(learning_rate), n_steps))
  return _unit(run(direction_NM))
