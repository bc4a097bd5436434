"""Recipes: a published method is a model, an objective, an optimiser, a constraint, a start and a schedule."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from monojax.config import require
from monojax.sae import objectives
from monojax.sae.model import Dictionary, Wiring, kaiming_uniform, unit_rows
from monojax.sae.nonlinearity import BatchTopK, Gated, JumpReLU, ReLU, TopK


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The parts that the training step composes.

  Attributes:
    model: `Dictionary`.
    objective: from `objectives.make_objective`.
    row_loss: (params, x_BW) -> loss of each row, which weighs the draw of resampled directions.
    tx: optax transformation of the gradients, to be multiplied by the learning rate at its peak.
    start: (key, params, sample x_NM, y_NO) -> params: what the initial ones are made, given some of the data.
    constrain: params -> params, applied after each update.
    observe: (params, `Pass`) -> new values of the parameters that are not learned by gradient.
    penalty_scale: step -> factor of the sparsity penalty.
    peaks: {"penalty", "learning_rate"}: the settings that a step reads from its state, so that dictionaries
      that differ in nothing else share one compiled step.
    normalised: whether each site is scaled by one constant to E|x| = sqrt(width); raw data otherwise.
    slots: features a row, on average, that a sparse code has room for.
    ema_decay: of the weights' running mean, which is what is kept in the end; 0 keeps the last weights.
  """
  model: Dictionary
  objective: Callable
  row_loss: Callable
  tx: optax.GradientTransformation
  start: Callable
  constrain: Callable
  observe: Callable
  penalty_scale: Callable
  peaks: dict
  normalised: bool
  slots: int
  ema_decay: float = 0.0


def make_recipe(config, wiring, dtype, mesh=None):
  """The recipe that `config.recipe` names.

  Args:
    config: `SAEConfig`.
    wiring: `Wiring`, or the width of the one site that an autoencoder reads.
    dtype: of the matrix products.
    mesh: that training codes are spread over, if they are.
  """
  config = config.resolved()
  wiring = wiring if isinstance(wiring, Wiring) else Wiring((wiring,))
  require(not (config.skip and set(wiring.reads) & set(wiring.writes)), "sae.skip", True,
          "needs a dictionary that writes only what it does not read (a transcoder): others would only copy")

  def build(nonlinearity, pre_bias, encoder_init):
    nonlinearity = dataclasses.replace(nonlinearity, mesh=mesh)
    return Dictionary(wiring, config.n_features, nonlinearity, pre_bias, config.skip, encoder_init, dtype)
  make = {"tm2023": tm2023, "apr2024": apr2024, "jumprelu": jumprelu, "jan2025": jan2025, "gated": gated,
          "topk": topk, "batchtopk": batchtopk, "matryoshka": matryoshka}[config.recipe]
  return make(config, wiring, build)


def tm2023(config, wiring, build):
  """Towards Monosemanticity (2023): ReLU, L1, unit decoder columns, mean squared error.

  The decoder gradient's part along each column is removed before Adam, so that its moments do not see
  it, and the columns are scaled back to unit norm after the step. Groups, none by default, add to the
  published loss.
  """
  model = build(ReLU(), wiring.autoencodes, config.encoder_init)
  penalty = objectives.l1(group_weights(config))
  return compose(config, model, objectives.mean_square, [penalty], unit_decoder=True,
                 row_penalty=lambda f_BF: config.sparsity_coefficient * f_BF.sum(1))


def apr2024(config, wiring, build):
  """Anthropic, April 2024: L1 of features times decoder norms, free decoder norms, no pre-encoder bias.

  The decoder starts at random directions of norm 0.1 and the encoder as its transpose.
  """
  model = build(ReLU(), False, "decoder_transpose")

  def start(key, params, x_NM, y_NO):
    W_dec_FO = 0.1 * unit_rows(params["W_dec_FO"])
    return {**params, "W_dec_FO": W_dec_FO, "W_enc_MF": transposed_or(params["W_enc_MF"], W_dec_FO, wiring)}
  return compose(config, model, objectives.summed_square,
                 [objectives.l1_of_norms], start=start, normalised=True)


def jumprelu(config, wiring, build):
  """JumpReLU with an L0 penalty (arXiv 2407.14435): learned thresholds, unit decoder columns."""
  model = build(JumpReLU(math.log(config.threshold), config.bandwidth), wiring.autoencodes, config.encoder_init)
  return compose(config, model, objectives.summed_square,
                 [objectives.l0(model.nonlinearity)], unit_decoder=True, normalised=True)


def jan2025(config, wiring, build):
  """Anthropic, January 2025: JumpReLU with a tanh penalty and a pull on silent features.

  The penalty rises over the whole run. Encoder biases start where each feature fires on a fraction
  10,000 / F of a sample (of a tenth at most, for dictionaries too small for the published rule).
  """
  model = build(JumpReLU(math.log(config.threshold), config.bandwidth, through_input=True, per_log=True), False,
                "kaiming")
  m, f = wiring.n_inputs, config.n_features

  def start(key, params, x_NM, y_NO):
    decoder_key, encoder_key = jax.random.split(key)
    W_dec_FO = kaiming_uniform(decoder_key, params["W_dec_FO"].shape, m)
    W_enc_MF = (m / f * W_dec_FO.T if wiring.autoencodes
                else kaiming_uniform(encoder_key, params["W_enc_MF"].shape, f))
    level_F = jax.lax.map(lambda w_M: jnp.quantile(x_NM[:8192] @ w_M, 1 - min(10_000 / f, 0.1)), W_enc_MF.T,
                          batch_size=256)
    b_enc_F = config.threshold - level_F
    return {**params, "W_dec_FO": W_dec_FO, "W_enc_MF": W_enc_MF, "b_enc_F": b_enc_F}
  terms = [objectives.tanh_of_norms(4.0),
           objectives.pre_activation_pull(config.pull_coefficient, model)]
  return compose(config, model, objectives.summed_square, terms, start=start, normalised=True)


def gated(config, wiring, build):
  """Gated SAE (arXiv 2404.16014): one encoder decides which features fire, the same one rescaled how much."""
  model = build(Gated(), wiring.autoencodes, "decoder_transpose")
  return compose(config, model, objectives.summed_square,
                 [objectives.gate(model)], unit_decoder=True, normalised=True)


def topk(config, wiring, build):
  """TopK with AuxK (arXiv 2406.04093): the k largest features of a row, dead ones fitted to what is left."""
  more = min(4 * config.k, config.n_features) if config.multi_k_coefficient else 0
  return _topk_family(config, wiring, build, TopK(config.k, more), config.group_sizes)


def batchtopk(config, wiring, build):
  """BatchTopK (arXiv 2412.06410): the B k largest features of a batch, a constant threshold afterwards."""
  return _topk_family(config, wiring, build, BatchTopK(config.k), config.group_sizes)


def matryoshka(config, wiring, build):
  """Matryoshka (arXiv 2503.17547): BatchTopK whose leading groups of features reconstruct alone, too.

  Groups of 1/16, 1/16, 1/8, 1/4 and 1/2 of the features unless the settings say otherwise.
  """
  parts = tuple(config.n_features // n for n in (16, 8, 4, 2) if config.n_features >= n)
  return _topk_family(config, wiring, build, BatchTopK(config.k), config.group_sizes or parts)


def _topk_family(config, wiring, build, nonlinearity, group_sizes):
  """Unit columns, pre-encoder bias, AuxK, the encoder started as the decoder's transpose.

  The encoder is divided once so that unit inputs around the bias reconstruct with norm 1, which a sample of
  directions around it measures.
  """
  model = build(nonlinearity, wiring.autoencodes, "decoder_transpose")
  k_aux = config.aux_k or 2 ** round(math.log2(max(wiring.n_inputs / 2, 1)))
  terms = [objectives.auxk(config.aux_coefficient, k_aux, model)] if config.aux_coefficient else []
  if getattr(nonlinearity, "more", 0):
    terms.append(objectives.multi_topk(config.multi_k_coefficient, nonlinearity.more, model))

  def start(key, params, x_NM, y_NO):
    if not wiring.autoencodes:
      return params
    unit_NM = unit_rows(jax.random.normal(key, (256, wiring.n_inputs)))
    f_NF = jax.nn.relu(unit_NM @ params["W_enc_MF"])
    kept_NF = jnp.where(f_NF >= jax.lax.top_k(f_NF, config.k)[0][:, -1:], f_NF, 0.0)
    norm = jnp.linalg.norm(kept_NF @ params["W_dec_FO"], axis=1).mean()
    return {**params, "W_enc_MF": params["W_enc_MF"] / norm}
  observe = follow_threshold if isinstance(nonlinearity, BatchTopK) else None
  return compose(config, model, objectives.unexplained, terms, start=start, unit_decoder=True, normalised=True,
                 observe=observe, group_sizes=group_sizes)


def compose(config, model, error, terms, start=None, unit_decoder=False, normalised=False, observe=None,
            group_sizes=None, row_penalty=None):
  """A recipe from its parts and the settings that every recipe has."""
  wiring = model.wiring

  def row_loss(params, x_BW):
    y_BO, f_BF = model.apply({"params": params}, wiring.inputs(x_BW))
    error_B = jnp.square(y_BO - wiring.targets(x_BW)).mean(1)
    return error_B + row_penalty(f_BF) if row_penalty else error_B
  terms = terms + ([objectives.orthogonality(config.orthogonality_coefficient)]
                   if config.orthogonality_coefficient else [])
  group_sizes = config.group_sizes if group_sizes is None else group_sizes
  steps = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
  steps += [remove_parallel_gradient()] if unit_decoder else []
  tx = optax.chain(*steps, optax.scale_by_adam(config.beta1, config.beta2, config.adam_epsilon),
                   optax.scale_by_learning_rate(learning_rate_schedule(config)))

  def begin(key, params, x_NM, y_NO):
    """The bias at the targets' geometric median where it is subtracted, and in transcoders; then the recipe's start."""
    if model.pre_bias or not wiring.autoencodes:
      params = {**params, "b_dec_O": geometric_median(y_NO)}
    params = start(key, params, x_NM, y_NO) if start else params
    return with_unit_decoder(params) if unit_decoder else params
  return Recipe(model, objectives.make_objective(model, error, terms, group_sizes, config.group_weight),
                row_loss, tx, begin, with_unit_decoder if unit_decoder else (lambda params: params),
                observe or (lambda params, passed: {}), linear_warmup(config.penalty_warmup_steps),
                {"penalty": config.sparsity_coefficient, "learning_rate": config.learning_rate}, normalised,
                min(model.nonlinearity.room(config.slots), config.n_features), config.ema_decay)


def group_weights(config):
  """How often each feature's L1 counts: once, and `group_weight` times more for each group it is in."""
  if not config.group_sizes:
    return None
  number_F = jnp.arange(config.n_features)
  return 1.0 + config.group_weight * sum((number_F < n).astype(jnp.float32) for n in config.group_sizes)


def follow_threshold(params, passed, rate=0.1):
  """BatchTopK's threshold follows the smallest value kept in a batch, from the first batch's on."""
  smallest = jnp.min(jnp.where(passed.f > 0, passed.f, jnp.inf))
  old = params["threshold"]
  new = jnp.where(old < 0, smallest, old + rate * (smallest - old))
  return {"threshold": jnp.where(jnp.isfinite(smallest), new, old)}


def transposed_or(W_enc_MF, W_dec_FO, wiring):
  """The decoder's transpose where the dictionary reads what it writes, otherwise the encoder given."""
  return W_dec_FO.T if wiring.autoencodes else W_enc_MF


def linear_warmup(n_steps):
  """step -> min(1, (step + 1) / n_steps); 1 where n_steps is 0."""
  return lambda step: jnp.minimum(1.0, (step + 1.0) / max(n_steps, 1))


def learning_rate_schedule(config):
  """Linear warm-up to 1, constant, linear decay to 0 over the last `decay_fraction` of the steps."""
  warmup = linear_warmup(config.warmup_steps)
  n_decay = config.decay_fraction * config.n_steps

  def schedule(step):
    left = (config.n_steps - step) / max(n_decay, 1.0)
    return warmup(step) * jnp.clip(left, 0.0, 1.0)
  return schedule


def remove_parallel_gradient():
  """Removes from the decoder's gradient its component along each (unit) decoder column."""
  def update(gradients, state, params):
    W_dec_FO, gradient_FM = params["W_dec_FO"], gradients["W_dec_FO"]
    along_F = jnp.sum(gradient_FM * W_dec_FO, axis=1, keepdims=True)
    return {**gradients, "W_dec_FO": gradient_FM - along_F * W_dec_FO}, state
  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def with_unit_decoder(params):
  """The parameters with every decoder column at unit norm."""
  return {**params, "W_dec_FO": unit_rows(params["W_dec_FO"])}


def geometric_median(x_NM, n_iterations=100):
  """The point with the smallest summed distance to the rows, by Weiszfeld's iteration from the mean.

  Args:
    x_NM: rows, any float dtype.
    n_iterations: 100 are ample (`dictionary_learning` takes as many).

  Returns:
    float32 array of shape (M,).
  """
  x_NM = jnp.asarray(x_NM, jnp.float32)

  def improve(_, median_M):
    distance_N = jnp.linalg.norm(x_NM - median_M[None], axis=1)
    weight_N = 1.0 / jnp.maximum(distance_N, 1e-8)
    return weight_N @ x_NM / weight_N.sum()
  return jax.lax.fori_loop(0, n_iterations, improve, x_NM.mean(0))
