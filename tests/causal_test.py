"""Dictionaries whose features belong to one site and write it and later ones: cross-layer transcoders."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import run, tiny

import monojax
from monojax import interop
from monojax import mesh as meshes
from monojax.config import InputError
from monojax.sae import finish
from monojax.sae.config import SAEConfig
from monojax.sae.model import Wiring
from monojax.sae.objectives import Given
from monojax.sae.recipes import make_recipe
from monojax.sae.resample import resample
from monojax.sae.step import make_step

READ, WRITTEN, EACH, B = (4, 5, 3), (2, 6, 4), 10, 40
WIRING = Wiring((*READ, *WRITTEN), (0, 1, 2), (3, 4, 5))
F = EACH * len(READ)


def made(recipe, wiring=WIRING, **settings):
  config = SAEConfig(recipe=recipe, n_features=F, batch_rows=B, causal=True, learning_rate=1e-2, start_rows=64,
                     **settings)
  return make_recipe(config, wiring, jnp.float32)


def rows(seed, n=B):
  return np.random.default_rng(seed).exponential(size=(n, sum(READ + WRITTEN))).astype(np.float32)


def by_layer(params, wiring=WIRING):
  """([encoder of each layer], {(from, to): decoder}, encoder biases, decoder biases) cut out of the parameters."""
  starts = lambda sites: np.cumsum([0, *(wiring.widths[i] for i in sites)])
  m, o, n = starts(wiring.reads), starts(wiring.writes), len(wiring.reads)
  of = [slice(EACH * i, EACH * (i + 1)) for i in range(n)]
  encoders = [params["W_enc_MF"][m[i]:m[i + 1], of[i]] for i in range(n)]
  decoders = {(i, j): params["W_dec_FO"][of[i], o[j]:o[j + 1]] for i in range(n) for j in range(i, n)}
  return encoders, decoders, [params["b_enc_F"][s] for s in of], [params["b_dec_O"][o[j]:o[j + 1]] for j in range(n)]


def published(params, x_BW, coefficient, sparsity):
  """The loss of cross-layer transcoders, layer by layer, as Circuit Tracing prints it, with any sparsity penalty."""
  encoders, decoders, b_enc, b_dec = by_layer(params)
  cuts = np.cumsum((*READ, *WRITTEN))[:-1]
  x, y = jnp.split(x_BW, cuts, axis=1)[:3], jnp.split(x_BW, cuts, axis=1)[3:]
  f = [jax.nn.relu(x[i] @ encoders[i] + b_enc[i][None]) for i in range(3)]
  loss = 0.0
  for j in range(3):
    loss += jnp.square(sum(f[i] @ decoders[i, j] for i in range(j + 1)) + b_dec[j][None] - y[j]).sum(1).mean()
  for i in range(3):
    norm = jnp.linalg.norm(jnp.concatenate([decoders[i, j] for j in range(i, 3)], axis=1), axis=1)
    loss += coefficient * sparsity(f[i] * norm[None]).sum(1).mean()
  return loss


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_loss_and_gradients_are_those_of_separate_layers(sparse):
  recipe = made("apr2024", sparsity_coefficient=0.7, slots=F - 1)
  model, x_BW = recipe.model, rows(0)
  params = model.init(jax.random.key(1), jnp.zeros((1, WIRING.n_inputs)))["params"]
  rng = np.random.default_rng(0)
  params = model.within({name: value + rng.normal(0, 0.3, value.shape).astype(np.float32)
                         for name, value in params.items()})
  params["b_enc_F"] -= 0.3
  code = None
  if sparse:
    h_BF = model.apply({"params": params}, WIRING.inputs(x_BW), method="pre_activations")
    *code, fits = model.nonlinearity.narrow(h_BF, params, recipe.slots)
    assert fits
  given = Given(x_BM=WIRING.inputs(x_BW), y_BO=WIRING.targets(x_BW), earlier_BM=None, step=np.int32(0), penalty=0.7,
                dead_F=np.zeros(F, bool), model=model, mesh=None)
  (loss, _), gradients = jax.value_and_grad(recipe.objective, has_aux=True)(params, given, code)
  expected, slopes = jax.value_and_grad(published)(params, x_BW, 0.7, lambda v: v)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  for name, value in model.within(gradients).items():
    np.testing.assert_allclose(value, slopes[name], atol=1e-5 * max(1, np.abs(slopes[name]).max()), err_msg=name)


def test_the_tanh_penalty_takes_the_norm_over_all_layers():
  recipe = made("jan2025", sparsity_coefficient=0.5, threshold=1e-9, bandwidth=1e-9, pull_coefficient=0.0)
  params = recipe.model.init(jax.random.key(1), jnp.zeros((1, WIRING.n_inputs)))["params"]
  x_BW = rows(0)
  given = Given(x_BM=WIRING.inputs(x_BW), y_BO=WIRING.targets(x_BW), earlier_BM=None, step=np.int32(0), penalty=0.5,
                dead_F=np.zeros(F, bool), model=recipe.model, mesh=None)
  loss, _ = recipe.objective(params, given)
  np.testing.assert_allclose(loss, published(params, x_BW, 0.5, lambda v: jnp.tanh(4 * v)), rtol=1e-5)


@pytest.mark.parametrize("name, shape", [("batchtopk", (2, 2)), pytest.param("jan2025", (1, 2), marks=pytest.mark.slow),
                                         pytest.param("tm2023", (4, 1), marks=pytest.mark.slow)])
def test_weights_that_are_not_there_stay_0_and_a_mesh_gives_the_same(name, shape):
  settings = {"sparsity_coefficient": 0.05} if name != "batchtopk" else {"k": 4}

  def trained(mesh_shape):
    mesh = meshes.make_mesh(meshes.MeshConfig(*mesh_shape))
    recipe = made(name, clip_norm=1.0, n_steps=20, **settings)
    init, step = make_step(recipe, mesh, 3)
    state = init(jax.random.key(0), rows(9, 64))
    for seed in range(3):
      state, _ = step(state, np.stack([rows(10 * seed + i) for i in range(4)]))
    return recipe, state
  recipe, state = trained((1, 1))
  params = jax.device_get(state.params)
  within = jax.device_get(recipe.model.within(params))
  for key, value in params.items():
    np.testing.assert_array_equal(value, within[key], err_msg=key)
  encoders, decoders, *_ = by_layer(params)
  for part in (*encoders, *decoders.values()):
    assert (part != 0).mean() > 0.9
  _, spread = trained(shape)
  for key, value in jax.device_get(spread.params).items():
    np.testing.assert_allclose(value, params[key], atol=1e-5, err_msg=key)
  dead = {**state.counters, "last_fired_F": state.counters["last_fired_F"] - 100}
  again, n_dead = resample(dataclasses.replace(state, counters=dead), rows(5, F), recipe, 3, 0.2)
  assert n_dead == F
  for key, value in jax.device_get(recipe.model.within(again.params)).items():
    np.testing.assert_array_equal(value, again.params[key], err_msg=key)
  finished = jax.device_get(finish.finished_params(recipe, state))
  norm_F = np.linalg.norm(finished["W_dec_FO"], axis=1)
  np.testing.assert_allclose(norm_F.mean(), 1, rtol=1e-4)


@pytest.mark.parametrize("wiring, settings, message", [
    (Wiring((8,)), {}, "several sites"), (Wiring((4, 4, 4), (0, 1), (2,)), {}, "several sites"),
    (WIRING, {"skip": True}, "sae.skip=True: cannot"), (Wiring((4, 4, 4, 4), (0, 1, 2, 3), (0, 1, 2, 3)), {},
                                                         "multiple of the 4 sites")])
def test_what_has_no_order_of_layers_is_refused(wiring, settings, message):
  with pytest.raises(InputError, match=message):
    made("batchtopk", wiring, k=4, **settings)


@pytest.mark.slow
def test_a_cross_layer_transcoder_from_text_to_circuit_tracers_files(tmp_path):
  """The commands of docs/how-to/transcoders.md, in small."""
  workdir = tmp_path / "run"
  sites = lambda name: ",".join(f"layer.{layer}.mlp.{name}" for layer in range(3))
  steps = [("prepare_text", *tiny("tokens")),
           ("train_subject", *tiny("subject"), "--subject.model.n_layers=3"),
           ("harvest", *tiny("activations"), "--activations.site=layer.0.mlp.in",
            f"--activations.more_sites={sites('in').partition(',')[2]},{sites('out')}"),
           ("train_sae", *tiny("sae"), "--name=clt", "--sae.recipe=jan2025", "--sae.causal", "--sae.n_features=96",
            "--sae.resample_every_steps=0", f"--sae.reads={sites('in')}", f"--sae.writes={sites('out')}"),
           ("analyze", "--dictionary=clt", *tiny("analysis")), ("build_browser", "--dictionary=clt")]
  for script, *flags in steps:
    done = run(script, workdir, *flags)
    assert done.returncode == 0, (script, done.stdout[-2000:], done.stderr[-2000:])
  figures = json.loads((workdir / "dictionaries" / "clt" / "stage.json").read_text())["figures"]
  assert 0.1 < figures["sae/explained_variance"] < 1 and figures["sae/l0"] > 0, figures
  loaded = monojax.load(workdir, "clt")
  interop.write(loaded.sae, tmp_path / "clt", "circuit_tracer")
  again = interop.read(tmp_path / "clt")
  assert again.sites == loaded.sae.sites
  x = np.random.default_rng(0).normal(size=(20, 96)).astype(np.float32)
  np.testing.assert_allclose(again.encode(x), loaded.sae.encode(x), atol=1e-5)

