"""Each recipe's loss and gradients against its published formula, differentiated by hand in NumPy."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from monojax import mesh as meshes
from monojax.config import InputError
from monojax.sae.config import SAEConfig
from monojax.sae.model import Wiring
from monojax.sae.objectives import Given, random_chunks
from monojax.sae.recipes import RECIPES, Recipe, make_recipe
from monojax.sae.step import make_step

M, F, B, K = 10, 32, 48, 4
SETTINGS = {
    "tm2023": {"sparsity_coefficient": 0.05, "group_sizes": (4, 12), "group_weight": 3.0},
    "apr2024": {"sparsity_coefficient": 0.7},
    "gated": {"sparsity_coefficient": 0.6},
    "topk": {"k": K, "aux_k": 3, "multi_k_coefficient": 0.3, "orthogonality_coefficient": 0.02},
    "batchtopk": {"k": K, "aux_k": 3},
    "matryoshka": {"k": K, "aux_k": 40, "group_sizes": (4, 12)},
    "jumprelu": {"sparsity_coefficient": 0.3, "bandwidth": 0.6, "threshold": 0.4},
    "jan2025": {"sparsity_coefficient": 0.5, "bandwidth": 0.8, "threshold": 0.5, "pull_coefficient": 0.02},
    "gemmascope2": {"k": K, "bandwidth": 0.6, "threshold": 0.4, "l0_coefficient": 0.03, "group_sizes": (4, 12),
                    "group_weights": (0.5, 2.0)},
    "ortsae": {"k": K, "aux_k": 3, "cosine_coefficient": 0.4, "cosine_chunk": 12, "cosine_every_steps": 7},
    "panneal": {"sparsity_coefficient": 0.3, "p_end": 0.2, "n_steps": 10},
    "tsae": {"k": K, "aux_k": 3, "contrast_coefficient": 0.7},
}
SCALE = 0.7  # of the penalty, as in a warm-up
STEP = 7
DEAD_F = np.isin(np.arange(F), (3, 8, 9, 20, 31))


def wiring_of(name, width):
  """One site, with that of an earlier token where a recipe needs it."""
  return Wiring((width, width), earlier=(1,)) if RECIPES[name].pairs else Wiring((width,))


def example(name, n_slots=0, wiring=None):
  """(recipe, parameters that are no special case, rows)."""
  config = SAEConfig(recipe=name, n_features=F, batch_rows=B, slots=n_slots, **SETTINGS[name])
  recipe = make_recipe(config, wiring or wiring_of(name, M), jnp.float32)
  rng = np.random.default_rng(0)
  x_BW = rng.exponential(size=(B, sum(recipe.model.wiring.widths))).astype(np.float32)
  params = recipe.model.init(jax.random.key(1), jnp.zeros((1, recipe.model.wiring.n_inputs)))["params"]
  params = {key: np.asarray(value) + rng.normal(0, 0.2, np.shape(value)).astype(np.float32)
            for key, value in params.items()}
  params["b_enc_F"] -= 0.3
  return recipe, params, x_BW


def graded(recipe, params, x_BW, sparse=False):
  """((loss, pass), gradients) of a recipe's objective."""
  wiring = recipe.model.wiring
  x_BM, y_BO = wiring.inputs(x_BW), wiring.targets(x_BW)
  code = None
  if sparse:
    h_BF = recipe.model.apply({"params": params}, x_BM, method="pre_activations")
    *code, fits = recipe.model.nonlinearity.narrow(h_BF, params, recipe.slots)
    assert fits
  given = Given(x_BM=x_BM, y_BO=y_BO, earlier_BM=wiring.inputs_earlier(x_BW), step=np.int32(STEP),
                penalty=SCALE * recipe.peaks["penalty"], dead_F=DEAD_F, model=recipe.model, mesh=None)
  return jax.jit(jax.value_and_grad(recipe.objective, has_aux=True))(params, given, code)


class Reference:
  """The published formulas in float64, with their gradients written out."""

  def __init__(self, recipe, params, x_BW, settings):
    wiring = recipe.model.wiring
    self.p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    self.x_BW = np.asarray(x_BW, np.float64)
    self.x, self.y = (np.asarray(columns, np.float64) for columns in (wiring.inputs(x_BW), wiring.targets(x_BW)))
    self.pre_bias, self.segments = recipe.model.pre_bias, wiring.written()
    self.settings = settings
    self.centred = self.x - (self.p["b_dec_O"] if self.pre_bias else 0.0)
    self.h = self.centred @ self.p["W_enc_MF"] + self.p["b_enc_F"]
    self.g = {name: np.zeros_like(value) for name, value in self.p.items()}
    self.g_h = np.zeros_like(self.h)
    self.loss = 0.0

  def reconstruct(self, f, error_of, sizes=(F,), weights=(1.0,)):
    """Adds the weighted errors of the leading groups; returns (gradient by f, residual of the last)."""
    W, g_f = self.p["W_dec_FO"], np.zeros_like(f)
    for n, weight in zip(sizes, weights, strict=True):
      e = f[:, :n] @ W[:n] + self.p["b_dec_O"] - self.y
      value, g_e = error_of(e, self.y)
      self.loss += weight * value
      g_f[:, :n] += weight * g_e @ W[:n].T
      self.g["W_dec_FO"][:n] += weight * f[:, :n].T @ g_e
      self.g["b_dec_O"] += weight * g_e.sum(0)
    return g_f, e

  def norms(self):
    """(summed norms, derivative of each by the decoder)."""
    W = self.p["W_dec_FO"]
    total, slope = np.zeros(F), np.zeros_like(W)
    for first, last in self.segments:
      norm = np.linalg.norm(W[:, first:last], axis=1)
      total += norm
      slope[:, first:last] = W[:, first:last] / norm[:, None]
    return total, slope

  def auxk(self, e):
    """What the dead features miss of the residual, with their k largest; e is constant."""
    f = np.maximum(self.h, 0) * DEAD_F
    kth = np.sort(f, axis=1)[:, -min(self.settings["aux_k"], F)][:, None]
    f = np.where((f >= kth) & (f > 0), f, 0.0)
    rest = f @ self.p["W_dec_FO"] - (-e)
    total = np.square(e - e.mean(0)).sum()
    self.loss += np.square(rest).sum() / 32 / total
    g = 2 * rest / 32 / total
    self.g["W_dec_FO"] += f.T @ g
    self.g_h += (g @ self.p["W_dec_FO"].T) * (f > 0)

  def finish(self):
    """Carries the gradient from pre-activations to the encoder."""
    self.g["W_enc_MF"] += self.centred.T @ self.g_h
    self.g["b_enc_F"] += self.g_h.sum(0)
    if self.pre_bias:
      self.g["b_dec_O"] -= (self.g_h @ self.p["W_enc_MF"].T).sum(0)
    return self.loss, self.g


def mean_square(e, y):
  return np.square(e).mean(), 2 * e / e.size


def summed_square(e, y):
  return np.square(e).sum() / len(e), 2 * e / len(e)


def unexplained(e, y):
  total = np.square(y - y.mean(0)).sum()
  return np.square(e).sum() / total, 2 * e / total


def tm2023(r, s):
  f = np.maximum(r.h, 0)
  sizes, weights = (*s["group_sizes"], F), (*[s["group_weight"]] * 2, 1.0)
  g_f, _ = r.reconstruct(f, mean_square, sizes, weights)
  for n, weight in zip(sizes, weights, strict=True):
    r.loss += weight * SCALE * s["sparsity_coefficient"] * f[:, :n].sum(1).mean()
    g_f[:, :n] += weight * SCALE * s["sparsity_coefficient"] / B
  r.g_h += g_f * (r.h > 0)


def apr2024(r, s):
  f = np.maximum(r.h, 0)
  norm, slope = r.norms()
  g_f, _ = r.reconstruct(f, summed_square)
  c = SCALE * s["sparsity_coefficient"]
  r.loss += c * (f * norm).sum(1).mean()
  r.g["W_dec_FO"] += c * f.mean(0)[:, None] * slope
  r.g_h += (g_f + c * norm / B) * (r.h > 0)


def gated(r, s):
  opened = r.h > 0
  u = r.h - r.p["b_enc_F"]
  magnitude = np.exp(r.p["r_F"]) * u + r.p["b_mag_F"]
  on = opened & (magnitude > 0)
  g_f, _ = r.reconstruct(on * magnitude, summed_square)
  g_m = g_f * on
  r.g["r_F"] += (g_m * np.exp(r.p["r_F"]) * u).sum(0)
  r.g["b_mag_F"] += g_m.sum(0)
  g_u = g_m * np.exp(r.p["r_F"])
  # u is the encoder without its bias: through h its gradient would reach b_enc as well, so it is taken back.
  r.g_h += g_u
  r.g["b_enc_F"] -= g_u.sum(0)
  c = SCALE * s["sparsity_coefficient"]
  pi = np.maximum(r.h, 0)
  e = pi @ r.p["W_dec_FO"] + r.p["b_dec_O"] - r.y
  r.loss += c * pi.sum(1).mean() + np.square(e).sum(1).mean()
  r.g_h += (2 * e @ r.p["W_dec_FO"].T / B + c / B) * opened


def topk(r, s):
  f = np.maximum(r.h, 0)
  f = np.where(f >= np.sort(f, axis=1)[:, -s["k"]][:, None], f, 0.0)
  g_f, e = r.reconstruct(f, unexplained)
  r.g_h += g_f * (f > 0)
  r.auxk(e)
  f = np.maximum(r.h, 0)
  f = np.where(f >= np.sort(f, axis=1)[:, -4 * s["k"]][:, None], f, 0.0)
  weight = s["multi_k_coefficient"]
  g_f, _ = r.reconstruct(f, unexplained, (F,), (weight,))
  r.g_h += g_f * (f > 0)
  gram = r.p["W_dec_FO"] @ r.p["W_dec_FO"].T
  gram -= np.diag(np.diag(gram))
  r.loss += s["orthogonality_coefficient"] * np.square(gram).sum()
  r.g["W_dec_FO"] += s["orthogonality_coefficient"] * 4 * gram @ r.p["W_dec_FO"]


def batchtopk(r, s):
  f = np.maximum(r.h, 0)
  f = np.where(f >= np.sort(f.ravel())[-B * s["k"]], f, 0.0)
  assert (f > 0).sum() == B * s["k"] and len(set((f > 0).sum(1))) > 1
  sizes = (*s.get("group_sizes", ()), F)
  g_f, e = r.reconstruct(f, unexplained, sizes, [1.0] * len(sizes))
  r.g_h += g_f * (f > 0)
  r.auxk(e)


def ortsae(r, s):
  batchtopk(r, s)
  W = r.p["W_dec_FO"]
  norm = np.linalg.norm(W, axis=1, keepdims=True)
  unit = W / norm
  g_unit, weight = np.zeros_like(W), s["cosine_coefficient"] * s["cosine_every_steps"] / F
  chunks = [[i for i in chunk if i < F] for chunk in np.asarray(random_chunks(STEP, F, s["cosine_chunk"]))]
  assert [len(chunk) for chunk in chunks] == [11, 11, 10]
  assert sorted(sum(chunks, [])) == list(range(F)) != sum(chunks, [])
  for chunk in chunks:
    for i in chunk:
      c, j = max((unit[i] @ unit[j], j) for j in chunk if j != i)
      if c > 0:
        r.loss += weight * c ** 2
        g_unit[i] += 2 * weight * c * unit[j]
        g_unit[j] += 2 * weight * c * unit[i]
  r.g["W_dec_FO"] += (g_unit - (g_unit * unit).sum(1, keepdims=True) * unit) / norm


def tsae(r, s):
  """The leading fifth counts .2 and all .8, of half the squared error; earlier tokens are told by the leading ones."""
  f, n = np.maximum(r.h, 0), F // 5
  f = np.where(f >= np.sort(f.ravel())[-B * s["k"]], f, 0.0)
  g_f, e = r.reconstruct(f, summed_square, (n, F), (0.5 * 0.2, 0.5 * 0.8))
  r.auxk(e)
  centred = r.x_BW[:, M:] - r.p["b_dec_O"]
  before = np.maximum(centred @ r.p["W_enc_MF"] + r.p["b_enc_F"], 0)
  before = np.where(before >= np.sort(before.ravel())[-B * s["k"]], before, 0.0)
  S = f[:, :n] @ before[:, :n].T
  by_row, by_column = (np.exp(S) / np.exp(S).sum(axis, keepdims=True) for axis in (1, 0))
  r.loss -= s["contrast_coefficient"] / 2 * (np.log(np.diag(by_row)) + np.log(np.diag(by_column))).mean()
  g_S = s["contrast_coefficient"] / 2 / B * (by_row + by_column - 2 * np.eye(B))
  g_f[:, :n] += g_S @ before[:, :n]
  r.g_h += g_f * (f > 0)
  g_before = np.zeros_like(before)
  g_before[:, :n] = g_S.T @ f[:, :n]
  g_before *= before > 0
  r.g["W_enc_MF"] += centred.T @ g_before
  r.g["b_enc_F"] += g_before.sum(0)
  r.g["b_dec_O"] -= (g_before @ r.p["W_enc_MF"].T).sum(0)


def panneal(r, s):
  f, c, small = np.maximum(r.h, 0), SCALE * s["sparsity_coefficient"], 1e-3
  g_f, _ = r.reconstruct(f, summed_square)
  power = 1 - 0.8 * (STEP / s["n_steps"] - 0.1) / 0.9
  scale = f.sum() / ((f + small) ** power - small ** power).sum()
  r.loss += c * f.sum() / B
  r.g_h += (g_f + c * scale * power * (f + small) ** (power - 1) / B) * (r.h > 0)


def jumprelu(r, s):
  theta, width, c = np.exp(r.p["log_threshold_F"]), s["bandwidth"], SCALE * s["sparsity_coefficient"]
  on = r.h > theta
  g_f, _ = r.reconstruct(r.h * on, summed_square)
  r.loss += c * on.sum(1).mean()
  band = np.abs((r.h - theta) / width) < 0.5
  assert band.sum() > 50
  g_theta = (-theta / width * band * g_f).sum(0) - (band / width).sum(0) * c / B
  r.g["log_threshold_F"] += theta * g_theta
  r.g_h += g_f * on


def gemmascope2(r, s):
  theta, width, c = np.exp(r.p["log_threshold_F"]), s["bandwidth"], s["l0_coefficient"] * M
  on = r.h > theta
  g_f, _ = r.reconstruct(r.h * on, summed_square, (*s["group_sizes"], F), (*s["group_weights"], 1.0))
  apart = on.sum(1) - s["k"]
  r.loss += c * 2 / s["k"] * np.square(apart).mean()
  band = np.abs((r.h - theta) / width) < 0.5
  g_on = np.broadcast_to(c * 4 / s["k"] * apart[:, None] / B, band.shape)
  r.g["log_threshold_F"] += theta * ((-theta / width * band * g_f).sum(0) - (band / width * g_on).sum(0))
  r.g_h += g_f * on


def jan2025(r, s):
  theta, width, c = np.exp(r.p["log_threshold_F"]), s["bandwidth"], SCALE * s["sparsity_coefficient"]
  norm, slope = r.norms()
  on = r.h > theta
  f = r.h * on
  g_f, _ = r.reconstruct(f, summed_square)
  t = np.tanh(4 * f * norm)
  r.loss += c * t.sum(1).mean()
  g_f += c * (1 - t ** 2) * 4 * norm / B
  r.g["W_dec_FO"] += (c * ((1 - t ** 2) * 4 * f).mean(0))[:, None] * slope
  band = np.abs((r.h - theta) / width) < 0.5
  r.g["log_threshold_F"] += (-theta / width * band * g_f).sum(0)
  r.g_h += g_f * (on + theta / width * band)
  short = np.maximum(theta - r.h, 0)
  pull = s["pull_coefficient"]
  r.loss += pull * (short * norm).sum(1).mean()
  r.g["W_dec_FO"] += pull * short.mean(0)[:, None] * slope
  r.g["log_threshold_F"] += pull * norm * theta * (short > 0).mean(0)
  r.g_h -= pull * norm * (short > 0) / B


BY_HAND = {"tm2023": tm2023, "apr2024": apr2024, "gated": gated, "topk": topk, "batchtopk": batchtopk,
           "matryoshka": batchtopk, "jumprelu": jumprelu, "jan2025": jan2025, "gemmascope2": gemmascope2,
           "ortsae": ortsae, "panneal": panneal, "tsae": tsae}


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_loss_and_gradients_are_the_published_ones(name, sparse):
  recipe, params, x_BW = example(name, 0 if name == "topk" else F - 1)
  (loss, _), gradients = graded(recipe, params, x_BW, sparse)
  reference = Reference(recipe, params, x_BW, SETTINGS[name])
  BY_HAND[name](reference, SETTINGS[name])
  expected_loss, expected = reference.finish()
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
  assert set(gradients) == set(expected)
  for key, value in expected.items():
    np.testing.assert_allclose(gradients[key], value, atol=1e-5 * max(1.0, np.abs(value).max()), err_msg=key)
    assert key == "threshold" or np.abs(value).max() > 1e-4, key


@pytest.mark.parametrize("name", ["apr2024", "jan2025"])
def test_crosscoders_and_transcoders_are_the_same_formulas_on_other_columns(name):
  for wiring in (Wiring((4, 6), (0,), (1,)), Wiring((4, 6), (0, 1), (0, 1)), Wiring((4, 3, 6), (2,), (0, 1))):
    recipe, params, x_BW = example(name, 0, wiring)
    (loss, _), gradients = graded(recipe, params, x_BW)
    reference = Reference(recipe, params, x_BW, SETTINGS[name])
    BY_HAND[name](reference, SETTINGS[name])
    expected_loss, expected = reference.finish()
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    for key, value in expected.items():
      np.testing.assert_allclose(gradients[key], value, atol=1e-5 * max(1.0, np.abs(value).max()), err_msg=key)


def test_a_skip_that_would_copy_is_refused():
  config = SAEConfig(recipe="topk", n_features=F, k=K, skip=True)
  assert make_recipe(config, Wiring((4, 6), (0,), (1,)), jnp.float32).model.skip
  for wiring in (Wiring((4,)), Wiring((4, 6), (0, 1), (0, 1)), Wiring((4, 6), (0,), (0, 1))):
    with pytest.raises(InputError, match="skip"):
      make_recipe(config, wiring, jnp.float32)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_a_record_says_all_that_there_is_to_say(recipe):
  fields = {field.name: field for field in dataclasses.fields(SAEConfig)}
  assert len(recipe.about) > 40 and set(recipe.uses) <= set(fields)
  quick = SAEConfig(recipe=recipe.name, **recipe.quick).resolved()
  assert quick.learning_rate >= 1e-3, "a short run needs a rate above the publication's"
  values = [config.sparsity for config in quick.at_grid()]
  assert values == sorted(recipe.grid) and len(values) >= 3
  published = SAEConfig(recipe=recipe.name, n_steps=200).resolved()
  for name, value in recipe.published.items():
    assert getattr(published, name.replace("warmup", "warmup_steps")) == (200 * value if "warmup" in name else value)
  for name in (recipe.knob, *recipe.uses):
    assert recipe.name in fields[name].metadata["help"].partition("]")[0], "help names the recipes that use a setting"


def test_records_and_settings_load_no_jax():
  program = "import sys, monojax.sae.config, monojax.sae.recipes; print('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


def build_scheduled(parts, config, wiring, dtype):
  """ReLU features and a term that grows by 1 a step, from 100."""
  model = parts.dictionary(config, wiring, dtype, parts.nonlinearities.ReLU(), True, "kaiming")
  return parts.compose(config, model, error=parts.objectives.mean_square, terms=[lambda p: 100.0 + p.step],
                       unit_decoder=True)


SCHEDULED = Recipe("test.scheduled", "A term of the loss that follows a schedule of its own, to test that it can.",
                   build_scheduled, "sparsity_coefficient", (1.0,), {"learning_rate": 1e-3}, {})


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_a_recipe_of_ones_own_with_a_scheduled_loss_needs_no_other_change(sparse):
  config = SAEConfig(recipe="test.scheduled", n_features=F, batch_rows=B, slots=F - 1)
  recipe = make_recipe(config, Wiring((M,)), jnp.float32, SCHEDULED)
  init, step = make_step(recipe, meshes.make_mesh(meshes.MeshConfig(1, 1)), 10, sparse)
  x_BM = np.random.default_rng(0).exponential(size=(B, M)).astype(np.float32)
  state = init(jax.random.key(0), x_BM)
  for t in range(4):
    state, values = step(state, x_BM[None])
    np.testing.assert_allclose(values["loss"] - values["mse"], 100 + t, rtol=1e-6)
    assert values["sparse_fraction"] == sparse


@pytest.mark.parametrize("config, recipe, message", [
    ({"recipe": "topkk"}, None, "sae.recipe='topkk': choose one of tm2023, .*named OWNER.NAME"),
    ({"recipe": "test.scheduled"}, None, "give its record"),
    ({"recipe": "topk"}, SCHEDULED, "is not the recipe that was given: set it to 'test.scheduled'"),
    ({"recipe": "topk"}, dataclasses.replace(RECIPES["topk"], grid=(1, 2)), "must be named OWNER.NAME"),
    ({"recipe": "test.scheduled"}, dataclasses.replace(SCHEDULED, published={"k": 3}), r"published=\['k'\]: can set"),
    ({"recipe": "test.scheduled", "multi_k_coefficient": 0.1}, SCHEDULED, "is for the recipe topk")])
def test_recipes_that_are_not_known_are_named(config, recipe, message):
  with pytest.raises(InputError, match=message):
    make_recipe(SAEConfig(**config), Wiring((M,)), jnp.float32, recipe)


def test_a_record_is_checked():
  for change in ({"knob": "threshold"}, {"grid": ()}, {"grid": (0.0, 1.0)}):
    with pytest.raises(InputError, match=f"topk.{next(iter(change))}"):
      dataclasses.replace(RECIPES["topk"], **change)
