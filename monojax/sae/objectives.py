"""What recipes minimise: the error of a reconstruction and terms beside it, each a published formula.

A term is a function of one `Pass`, a batch's way through a dictionary. Terms read dense and sparse codes alike, so
that a recipe is written once for both. A loss that changes in the course of training reads `Pass.step`, as this L1
does that falls to 0 over some steps:

  def annealed_l1(n_steps):
    return lambda p: jnp.maximum(0.0, 1 - p.step / n_steps) * p.penalty * p.f.sum() / p.x_BM.shape[0]
"""

import itertools
from collections.abc import Callable, Sequence

import flax
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from monojax.linear import matmul
from monojax.sae.model import Dictionary
from monojax.sae.nonlinearity import JumpReLU, Params, TopK
from monojax.sae.sparse.code import Places, at, decode, leading, pre_activations_at, row_sums
from monojax.sae.sparse.select import top_k
from monojax.variance import spread


@flax.struct.dataclass
class Given:
  """What a step gives to a loss, besides the parameters and the code.

  Attributes:
    x_BM, y_BO: what is read, and what is to be reconstructed.
    earlier_BM: what is read of an earlier token of each row's context; None where a batch does not hold it.
    step: int32, the optimiser steps done before this one, for losses that follow a schedule of their own.
    penalty: the sparsity penalty's coefficient, as its schedule has it at this step.
    dead_F: bool, the features that have not fired of late.
    model: `Dictionary`.
    mesh: the device mesh that the batch is spread over, or None for one device.
  """
  x_BM: jax.Array
  y_BO: jax.Array
  earlier_BM: jax.Array | None
  step: jax.Array
  penalty: jax.Array
  dead_F: jax.Array
  model: Dictionary = flax.struct.field(pytree_node=False)
  mesh: Mesh | None = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Pass(Given):
  """A batch's way through a dictionary: all that a published loss may depend on.

  Attributes:
    params: the dictionary's parameters.
    places: what the entries of h and f stand for, or None for all (see `monojax.sae.sparse.code`).
    h, f: pre-activations and features, (B, F) or (V, K).
    norm_F: the features' decoder norms, summed over the sites written.
    error_BO: reconstruction minus target, by the whole dictionary.
  """
  params: Params
  places: Places | None
  h: jax.Array
  f: jax.Array
  norm_F: jax.Array
  error_BO: jax.Array


Error = Callable[[jax.Array, jax.Array], jax.Array]  # (target y_BO, error e_BO) -> scalar
Term = Callable[[Pass], jax.Array]
SparseCode = tuple[jax.Array, Places]  # (h_VK, the places of its entries)
Objective = Callable[..., tuple[jax.Array, Pass]]


def make_objective(error: Error, terms: Sequence[Term], group_sizes: Sequence[int] = (),
                   group_weights: Sequence[float] = ()) -> Objective:
  """The function that a step differentiates.

  With `group_sizes`, the first n features must also do as a dictionary of their own, for each n: the error
  of that part's reconstruction is added, times the group's weight (Matryoshka, arXiv 2503.17547).

  Args:
    error: (y_BO, e_BO) -> the scalar that stands for a reconstruction's error e.
    terms: functions of a `Pass`, each a scalar to add.
    group_sizes: sizes of leading groups of features, rising.
    group_weights: the weight of each group's error.

  Returns:
    objective: (params, `Given`, code=None) -> (loss, `Pass`), where `code` is None for a dense code, or
      (h_VK, `Places`) for one of few features a row, all of which are kept.
  """
  def objective(params: Params, given: Given, code: SparseCode | None = None) -> tuple[jax.Array, Pass]:
    model, x_BM, y_BO = given.model, given.x_BM, given.y_BO
    bound = model.bind({"params": params})
    if code is None:
      places, h = None, bound.pre_activations(x_BM)
    else:
      h_VK, places = code
      h = pre_activations_at(bound.centred(x_BM), params["W_enc_MF"], bound.encoder_bias(), h_VK, places)
    f = features_of(model, params, h, places, given.mesh)
    parts = group_reconstructions(model, params, f, places, x_BM, group_sizes)
    passed = Pass(**vars(given), params=params, places=places, h=h, f=f, norm_F=decoder_norms(model, params),
                  error_BO=parts[-1] - y_BO)
    loss = error(y_BO, passed.error_BO) + sum(term(passed) for term in terms)
    loss += sum(weight * error(y_BO, part - y_BO) for weight, part in zip(group_weights, parts[:-1], strict=True))
    return loss, passed
  return objective


def features_of(model: Dictionary, params: Params, h: jax.Array, places: Places | None,
                mesh: Mesh | None) -> jax.Array:
  """The features of pre-activations h in training, where which of them are kept gets no gradient."""
  keep = model.nonlinearity.keep(jax.lax.stop_gradient(h), jax.lax.stop_gradient(params), places, mesh)
  f = model.nonlinearity.value(h, params, places)
  return f if keep is None else jnp.where(keep, f, 0.0)


def group_reconstructions(model: Dictionary, params: Params, f: jax.Array, places: Places | None, x_BM: jax.Array,
                          group_sizes: Sequence[int]) -> list[jax.Array]:
  """Reconstructions by the first n features, for each n of `group_sizes`, and by all.

  Each adds its own features to the one before, so that all of them cost what the last alone would.
  """
  own = decode(f, places, params["W_dec_FO"], model.dtype, (*group_sizes, model.n_features))
  offset = model.bind({"params": params}).offset(x_BM)
  return list(itertools.accumulate(own, initial=offset))[1:]


def decoder_norms(model: Dictionary, params: Params) -> jax.Array:
  """The L2 norm of each feature's direction, shape (F,): summed over the sites it writes to, or, in a `causal`
  dictionary, of all of them side by side (Circuit Tracing, Anthropic, March 2025)."""
  if model.causal:
    return jnp.linalg.norm(params["W_dec_FO"], axis=1)
  return sum(jnp.linalg.norm(params["W_dec_FO"][:, first:last], axis=1)
             for first, last in model.wiring.written())


# Errors of a reconstruction.

def mean_square(y_BO: jax.Array, e_BO: jax.Array) -> jax.Array:
  """The squared error's mean over elements and rows: Towards Monosemanticity."""
  return jnp.square(e_BO).mean()


def summed_square(y_BO: jax.Array, e_BO: jax.Array) -> jax.Array:
  """The squared error's sum over elements, mean over rows: from February 2024 on."""
  return jnp.square(e_BO).sum() / e_BO.shape[0]


def unexplained(y_BO: jax.Array, e_BO: jax.Array) -> jax.Array:
  """The squared error over that of the batch's mean, the fraction of variance unexplained: the TopK family.

  Of rows that are all equal there is nothing to explain: it is 0, without a gradient.
  """
  square = jnp.square(y_BO - y_BO.mean(0, keepdims=True)).sum()
  varies = spread(y_BO).varies & (square > 0)
  return jnp.where(varies, jnp.square(e_BO).sum() / jnp.where(varies, square, 1.0), 0.0)


# Terms.

def l1(weight_F: jax.Array | None = None) -> Term:
  """penalty * sum of features, mean over rows; `weight_F`, if given, weighs each feature's."""
  def term(p: Pass) -> jax.Array:
    f = p.f if weight_F is None else p.f * at(weight_F, p.places)
    return p.penalty / p.x_BM.shape[0] * f.sum()
  return term


def l1_of_norms(p: Pass) -> jax.Array:
  """penalty * sum of f |d| (Anthropic, April 2024); a crosscoder's |d| is a sum over its sites."""
  return p.penalty / p.x_BM.shape[0] * (p.f * at(p.norm_F, p.places)).sum()


def l0(nonlinearity: JumpReLU) -> Term:
  """penalty * number of features above their thresholds (arXiv 2407.14435)."""
  def term(p: Pass) -> jax.Array:
    active = nonlinearity.active(jax.lax.stop_gradient(p.h), p.params, p.places)
    return p.penalty / p.x_BM.shape[0] * active.sum()
  return term


def squared_l0(nonlinearity: JumpReLU, coefficient: float, target: float) -> Term:
  """coefficient * (2 / target) * (l0 - target)^2, mean over rows: l0 features fire on a row, and `target` are to.

  Its gradient by l0 is 4 coefficient (l0 / target - 1), so that it raises a row's l0 where that is too low. Only
  thresholds feel it. The scale is that of SAELens, for dictionaries such as those of Gemma Scope 2.
  """
  def term(p: Pass) -> jax.Array:
    active = nonlinearity.active(jax.lax.stop_gradient(p.h), p.params, p.places)
    return coefficient * 2 / target * jnp.square(row_sums(active, p.places) - target).mean()
  return term


def annealed_lp(p_end: float, n_steps: int, epsilon: float = 1e-3) -> Term:
  """penalty * sum of (f + epsilon)^p - epsilon^p, where p falls from 1 to `p_end` (p-annealing, arXiv 2408.00113).

  p is 1 over the first tenth of the steps, and falls linearly over the others. With p below 1 the penalty presses less
  on large features than on small ones. In each step it is multiplied by what makes its value that of the L1 penalty,
  so that it counts the same throughout; the publication does this at ten updates. `epsilon`, which the publication has
  not, bounds the slope at 0.
  """
  def term(p: Pass) -> jax.Array:
    progress = jnp.clip((p.step / n_steps - 0.1) / 0.9, 0.0, 1.0)
    power = 1 - (1 - p_end) * progress
    l1, lp = p.f.sum(), ((p.f + epsilon) ** power - epsilon ** power).sum()
    scale = jax.lax.stop_gradient(jnp.where(lp > 0, l1 / jnp.where(lp > 0, lp, 1.0), 1.0))
    return p.penalty / p.x_BM.shape[0] * scale * lp
  return term


def tanh_of_norms(c: float) -> Term:
  """penalty * sum of tanh(c f |d|) (Anthropic, January 2025)."""
  return lambda p: p.penalty / p.x_BM.shape[0] * jnp.tanh(c * p.f * at(p.norm_F, p.places)).sum()


def pre_activation_pull(coefficient: float) -> Term:
  """coefficient * sum of ReLU(theta - h) |d|, which draws silent features to their threshold.

  Anthropic, January 2025, with the pre-activation h where the page prints f: by f, a silent feature's
  encoder would get no gradient. All features but the active ones take part, so what is summed is the
  linear sum over all of them less its part over the active ones, which a sparse code names.
  """
  def term(p: Pass) -> jax.Array:
    norm_F = p.norm_F
    theta_F = jnp.exp(p.params["log_threshold_F"])
    bound = p.model.bind({"params": p.params})
    mean_h_F = bound.centred(p.x_BM).mean(0) @ p.params["W_enc_MF"] + bound.encoder_bias()
    everywhere = (norm_F * (theta_F - mean_h_F)).sum()
    short = at(theta_F, p.places) - p.h
    active = jnp.where(short < 0, short * at(norm_F, p.places), 0.0).sum() / p.x_BM.shape[0]
    return coefficient * (everywhere - active)
  return term


def gate(p: Pass) -> jax.Array:
  """penalty * L1 of the gates, and the error of reconstructing from them by a frozen decoder.

  With pi the gate's pre-activation: penalty * sum ReLU(pi) + |x - x_hat_frozen(ReLU(pi))|^2
  (arXiv 2404.16014).
  """
  open_ = jax.nn.relu(p.h)
  fixed = jax.lax.stop_gradient(p.params)
  y_BO = decode(open_, p.places, fixed["W_dec_FO"], p.model.dtype)[0] + p.model.bind({"params": fixed}).offset(p.x_BM)
  return (p.penalty / p.x_BM.shape[0] * open_.sum()
          + summed_square(p.y_BO, y_BO - p.y_BO))


def auxk(coefficient: float, k: int, n_few: int = 512) -> Term:
  """Dead features reconstruct what is left: coefficient * |e - e_hat|^2 / |e - mean e|^2 (arXiv 2406.04093).

  e is the residual, held constant; e_hat comes from the k largest of the dead features, without bias.
  With few features dead only their columns are computed, with none nothing.

  Args:
    coefficient: 1/32 in the paper.
    k: dead features used in each row, at most.
    n_few: so many dead features or fewer count as few.
  """
  return lambda p: coefficient * _dead_error(p, k, min(n_few, p.model.n_features))


def _dead_error(p: Pass, k: int, n_few: int) -> jax.Array:
  """|e - e_hat|^2 / |e - mean e|^2 of a pass; see `auxk`."""
  model = p.model

  def unexplained_by(params, columns_D, dead_D, x_BM, e_BO, mesh):
    of = lambda a, axis: a if columns_D is None else jnp.take(a, columns_D, axis)
    bound = model.bind({"params": params})
    h_BD = matmul(bound.centred(x_BM), of(params["W_enc_MF"], 1), model.dtype) + of(bound.encoder_bias(), 0)[None]
    f_BD = jnp.where(dead_D[None], jax.nn.relu(h_BD), 0.0)
    if k < len(dead_D):
      f_BD = jnp.where(f_BD >= top_k(jax.lax.stop_gradient(f_BD), k, mesh)[0][:, -1:], f_BD, 0.0)
    e_hat_BO = matmul(f_BD, of(params["W_dec_FO"], 0), model.dtype)
    return unexplained(e_BO, e_BO - e_hat_BO)

  def nothing(params, x_BM, e_BO, dead_F):
    return jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)

  def few(params, x_BM, e_BO, dead_F):
    columns_D = jnp.nonzero(dead_F, size=n_few, fill_value=0)[0]
    dead_D = jnp.arange(n_few) < dead_F.sum()
    return jax.value_and_grad(unexplained_by)(params, columns_D, dead_D, x_BM, e_BO, None)

  def many(params, x_BM, e_BO, dead_F):
    return jax.value_and_grad(unexplained_by)(params, None, dead_F, x_BM, e_BO, p.mesh)

  # The gradient is made where the value is: carried out of a branch, what it needs would be as large for no dead
  # features as for many.
  @jax.custom_vjp
  def value(params, x_BM, e_BO, dead_F):
    return forward(params, x_BM, e_BO, dead_F)[0]

  def forward(params, x_BM, e_BO, dead_F):
    n_dead = dead_F.sum()
    case = (n_dead > 0).astype(jnp.int32) + (n_dead > n_few)
    return jax.lax.switch(case, (nothing, few, many), params, x_BM, e_BO, dead_F)

  def backward(gradients, g):
    return jax.tree.map(lambda leaf: g * leaf, gradients), None, None, None
  value.defvjp(forward, backward)
  return value(p.params, p.x_BM, jax.lax.stop_gradient(-p.error_BO), p.dead_F)


def multi_topk(coefficient: float, n: int, nonlinearity: TopK) -> Term:
  """coefficient * unexplained variance with the n largest features of a row (Multi-TopK, arXiv 2406.04093).

  The paper adds 1/8 of it with n = 4 k, so that the dictionary still works with more features than k.

  Args:
    coefficient: 1/8 in the paper.
    n: features of a row, at most `nonlinearity.n_sparse`.
    nonlinearity: the model's.
  """
  def term(p: Pass) -> jax.Array:
    largest = nonlinearity.largest(jax.lax.stop_gradient(p.h), p.places, n, p.mesh)
    f = jnp.where(largest, jax.nn.relu(p.h), 0.0)
    y_hat_BO = decode(f, p.places, p.params["W_dec_FO"], p.model.dtype)[0]
    return coefficient * unexplained(p.y_BO, y_hat_BO + p.model.bind({"params": p.params}).offset(p.x_BM) - p.y_BO)
  return term


def contrast(coefficient: float, n_leading: int) -> Term:
  """coefficient * how badly the leading features tell a row's earlier token from those of other rows.

  With S[i, j] the product of row i's leading features with those of the earlier token of row j, it is the mean of two
  cross-entropies in which i = j is right: over each row's S[i, :], and over each S[:, j]. Features of the two tokens
  come from the same encoder, and both learn (after T-SAE, arXiv 2511.05541: products are not divided by lengths or by a
  temperature, as in its authors' code). Takes memory for B x B numbers.
  """
  def term(p: Pass) -> jax.Array:
    h_BF = p.model.bind({"params": p.params}).pre_activations(p.earlier_BM)
    earlier_BF = features_of(p.model, p.params, h_BF, None, p.mesh)
    S_BB = jnp.matmul(leading(p.f, p.places, n_leading), earlier_BF[:, :n_leading].T,
                      precision=jax.lax.Precision.HIGHEST)
    missed = [jax.nn.logsumexp(S_BB, axis=axis) - jnp.diagonal(S_BB) for axis in (0, 1)]
    return coefficient * (missed[0] + missed[1]).mean() / 2
  return term


def orthogonality(coefficient: float) -> Term:
  """coefficient * sum over pairs i != j of (d_i . d_j)^2, from the O x O product of the decoder with itself."""
  def term(p: Pass) -> jax.Array:
    W_FO = p.params["W_dec_FO"]
    gram_OO = jnp.matmul(W_FO.T, W_FO, precision=jax.lax.Precision.HIGHEST)
    return coefficient * (jnp.square(gram_OO).sum() - jnp.square(jnp.square(W_FO).sum(1)).sum())
  return term


def largest_cosines(coefficient: float, chunk: int, every_steps: int) -> Term:
  """coefficient * the mean over features of max(0, c)^2, c the largest cosine with another feature of its chunk.

  After OrtSAE (arXiv 2509.22033): features are put into chunks at random, anew at each step, so that the cost is linear
  in their number. The penalty is computed at every so many steps, and counts that many times there.
  """
  def penalty(W_FO: jax.Array, step: jax.Array) -> jax.Array:
    unit_FO = W_FO / jnp.linalg.norm(W_FO, axis=1, keepdims=True)

    @jax.checkpoint
    def of_chunk(feature_C: jax.Array) -> jax.Array:
      unit_CO = unit_FO.at[feature_C].get(mode="fill", fill_value=0.0)
      cosine_CC = jnp.matmul(unit_CO, unit_CO.T, precision=jax.lax.Precision.HIGHEST)
      others_CC = jnp.where(jnp.eye(len(feature_C), dtype=bool), 0.0, cosine_CC)
      return jnp.square(jax.nn.relu(others_CC.max(1))).sum()
    return jax.lax.map(of_chunk, random_chunks(step, len(W_FO), chunk)).sum() / len(W_FO)

  def term(p: Pass) -> jax.Array:
    value = jax.lax.cond(p.step % every_steps == 0, penalty, lambda W_FO, step: jnp.zeros(()), p.params["W_dec_FO"],
                         p.step)
    return coefficient * every_steps * value
  return term


def random_chunks(step: jax.Array, n_features: int, chunk: int) -> jax.Array:
  """The features in a random order, in as few equal chunks of at most `chunk` as hold them, shape (N, C) int32.

  Places that are left over hold `n_features`. The order is another at each step.
  """
  n_chunks = -(-n_features // chunk)
  size = -(-n_features // n_chunks)
  order_F = jax.random.permutation(jax.random.key(step), n_features)
  return jnp.pad(order_F, (0, n_chunks * size - n_features), constant_values=n_features).reshape(n_chunks, size)
