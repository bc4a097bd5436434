"""End-to-end training: what a reconstruction does to the subject, in the loss of any recipe."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pretrained_models
import pytest
from tiny_run import run, tiny

from monojax import mesh as meshes
from monojax.activations.config import HarvestConfig
from monojax.activations.contexts import Contexts
from monojax.activations.origin import Order, Origin
from monojax.analysis.fidelity import fidelity
from monojax.config import InputError
from monojax.metrics import MetricsConfig
from monojax.pipeline import checks
from monojax.pipeline.config import RunConfig
from monojax.pipeline.folder import RunFolder
from monojax.sae import step as steps
from monojax.sae.config import SAEConfig
from monojax.sae.dictionary import SAE
from monojax.sae.model import Wiring
from monojax.sae.objectives import Given
from monojax.sae.recipes import make_recipe
from monojax.sae.sweep import name_of, train_sweep
from monojax.sae.train import train_sae
from monojax.subjects import loss, spliced
from monojax.subjects.config import SubjectConfig, TransformerConfig
from monojax.subjects.subject import LoadedSubject, load_pretrained
from monojax.subjects.transformer import Transformer
from monojax.text.tokens import Tokens

T, V, N_CONTEXTS = 12, 96, 90
HIDDEN, STREAM = "layer.0.mlp.hidden", "layer.0.resid"
SMALL = dict(n_features=40, n_steps=12, scan_steps=3, checkpoint_every_steps=6, start_rows=128, learning_rate=3e-3,
             dead_window_steps=50, code="dense")


def tokens_of(seed, prefix=()):
  ids_N = np.random.default_rng(seed).integers(0, V, N_CONTEXTS * T).astype(np.uint16)
  return Tokens("train", ids_N, np.arange(0, len(ids_N), 37), np.zeros(30, np.int32), ("a",), V, 0, len(ids_N), prefix,
                (5, 6, 7))


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
  """{name: subject}: one of this repository's, with sharper predictions than it starts with, and pretrained ones."""
  model = Transformer(TransformerConfig(n_layers=2, d_model=16, n_heads=1, d_mlp=24, vocab_size=V))
  params = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
  params = jax.tree.map(lambda leaf: 2 * leaf if leaf.ndim == 2 else leaf, params)
  # Half of the hidden units are hardly read: they count in a squared error as the others do, but not in predictions.
  unread_M1 = (jnp.arange(24) % 2 == 0)[:, None]
  params["layer_0"]["W_out_MD"] = jnp.where(unread_M1, 0.1, 3.0) * params["layer_0"]["W_out_MD"]
  found = {"own": LoadedSubject(model, params, T)}
  for name in ("gemma2", "gpt2"):
    folder = tmp_path_factory.mktemp(name)
    pretrained_models.write(folder, pretrained_models.CONFIGS[name])
    found[name] = load_pretrained(SubjectConfig(weights=str(folder), n_context=T))
  return found


def one_device():
  return meshes.make_mesh(meshes.MeshConfig(1, 1))


def contexts_of(subject, writes, n_contexts=4, sites=None, mesh=None, n_parts=1, tokens=None, **settings):
  """`Contexts` of a subject, with batches of some contexts."""
  tokens = tokens or tokens_of(1)
  config = HarvestConfig(source="stream", **{"first_position": 0, **settings})
  origin = Origin(config, "", "", lambda sites, mesh: subject, lambda: tokens)
  rows = n_contexts * (T - max(config.first_position, len(tokens.prefix)))
  return Contexts(origin, sites or writes, writes, Order(rows, 100, 0), n_parts, mesh or one_device())


def by_hand(subject, writes, tokens_CT, counts_CT, y_CTO):
  """The mean over positions that count of KL(subject || spliced), with all logits at once, from its definition."""
  clean, _ = subject.model.apply({"params": subject.params}, tokens_CT)
  ends = np.cumsum([subject.model.site_widths[site] for site in writes])[:-1]
  edit = {site: lambda x, part=part: jnp.where(counts_CT[..., None], part, x)
          for site, part in zip(writes, jnp.split(y_CTO, ends, axis=-1), strict=True)}
  changed, _ = subject.model.apply({"params": subject.params}, tokens_CT, edit)
  p_CTV, q_CTV = jax.nn.softmax(clean), jax.nn.softmax(changed)
  kl_CT = (p_CTV * (jnp.log(p_CTV) - jnp.log(q_CTV))).sum(-1)
  return (kl_CT * counts_CT).sum() / counts_CT.sum()


@pytest.mark.parametrize("name, writes, first, prefix", [
    ("own", (STREAM, "layer.1.attn.out"), 3, ()), ("own", ("final.in",), 0, ()),
    ("gemma2", ("layer.0.mlp.out_raw",), 1, ()), ("gpt2", (STREAM,), 0, (4,))])
def test_the_divergence_and_its_gradient(subjects, monkeypatch, name, writes, first, prefix):
  """In several passes, each in several chunks of positions of which the last is not full."""
  monkeypatch.setattr(spliced, "_PASS_POSITIONS", 2 * T)
  monkeypatch.setattr(loss, "MAX_ROWS_ON_CPU", 10)
  subject = subjects[name]
  contexts = contexts_of(subject, writes, 6, first_position=first, tokens_per_context=2, tokens=tokens_of(1, prefix))
  x_BO, (tokens_CT, at_CR, last) = contexts.batch_in_context(3)
  counted = range(max(first, len(prefix)), T)
  np.testing.assert_array_equal(at_CR, [list(counted)] * 6)
  assert not prefix or np.all(tokens_CT[:, 0] == prefix[0])
  _, sites = jax.jit(lambda tokens_CT: subject.model.apply({"params": subject.params}, tokens_CT))(tokens_CT)
  clean_CTO = np.concatenate([sites[site] for site in writes], axis=-1)
  np.testing.assert_allclose(x_BO.reshape(6, len(counted), -1), clean_CTO[:, counted.start:], atol=1e-5)
  assert float(contexts.divergence(contexts.params, x_BO, (tokens_CT, at_CR, last))) < 1e-6

  y_BO = x_BO + 0.7 * np.random.default_rng(0).normal(size=x_BO.shape) * x_BO.std()
  found, gradient_BO = jax.jit(jax.value_and_grad(contexts.divergence, argnums=1))(
      contexts.params, y_BO, (tokens_CT, at_CR, last))
  counts_CT = jnp.broadcast_to(jnp.arange(T) >= counted.start, tokens_CT.shape)
  whole = lambda y_BO: jnp.pad(y_BO.reshape(6, len(counted), -1), ((0, 0), (counted.start, 0), (0, 0)))
  expected, expected_BO = jax.jit(jax.value_and_grad(
      lambda y_BO: by_hand(subject, writes, tokens_CT, counts_CT, whole(y_BO))))(y_BO)
  assert expected > 0.01
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  np.testing.assert_allclose(gradient_BO, expected_BO, atol=1e-4 * np.abs(expected_BO).max())


def test_an_epoch_visits_each_context_once(subjects):
  contexts = contexts_of(subjects["own"], (HIDDEN,), 9)
  visited = np.concatenate([contexts.contexts(step) for step in range(20)])
  np.testing.assert_array_equal(np.sort(visited[:N_CONTEXTS]), np.arange(N_CONTEXTS))
  np.testing.assert_array_equal(np.sort(visited[N_CONTEXTS:]), np.arange(N_CONTEXTS))
  assert np.mean(visited[:N_CONTEXTS] == visited[N_CONTEXTS:]) < 0.1
  other = contexts_of(subjects["own"], (HIDDEN,), 9)
  np.testing.assert_array_equal(other.batch(7), contexts.batch(7))  # asked for out of turn


# The step.

@pytest.mark.parametrize("recipe, n_parts, code", [("tm2023", 1, "dense"), ("batchtopk", 2, "dense"),
                                                   ("topk", 1, "sparse")])
def test_the_step_adds_the_rescaled_divergence(subjects, recipe, n_parts, code):
  """Its gradient is the recipe's, and error / KL times that of KL, of which everything is written out here."""
  subject = subjects["own"]
  contexts = contexts_of(subject, (HIDDEN,), 4, n_parts=n_parts)
  uses = {"k": 5} if recipe.endswith("topk") else {"sparsity_coefficient": 0.1}
  config = SAEConfig(recipe, kl_coefficient=1.5, **uses, **{**SMALL, "code": code}).resolved()
  made, mesh = make_recipe(config, Wiring(contexts.widths), jnp.float32), one_device()
  init, _ = steps.make_step(made, mesh, 50, downstream=contexts)
  state = init(jax.random.key(0), contexts.sample(128, 0))
  x_BW, (tokens_CT, at_CR, last) = contexts.batch_in_context(0)
  scale_W = state.counters["scale_W"]

  def parts_of(x):
    return jnp.split(x.reshape(4 // n_parts, n_parts, -1).swapaxes(0, 1), n_parts)

  def by_formula(params, x_BW, tokens_CT):
    x_BW = x_BW * scale_W[None]
    given = Given(x_BM=x_BW, y_BO=x_BW, earlier_BM=None, step=state.step, penalty=made.penalty_scale(state.step) *
                  config.sparsity_coefficient, dead_F=jnp.zeros(40, bool), model=made.model, mesh=mesh)
    own, passed = made.objective(params, given)
    y_CTO = ((x_BW + passed.error_BO) / scale_W[None]).reshape(*tokens_CT.shape, -1)
    kl = by_hand(subject, (HIDDEN,), tokens_CT, jnp.ones_like(tokens_CT, bool), y_CTO)
    e_BO = passed.error_BO
    error = {"tm2023": jnp.square(e_BO).mean(), "jumprelu": jnp.square(e_BO).sum(1).mean()}.get(
        recipe, jnp.square(e_BO).sum() / jnp.square(x_BW - x_BW.mean(0, keepdims=True)).sum())
    return own + 1.5 * jax.lax.stop_gradient(error / kl) * kl, (kl, 1.5 * error)

  found = []
  for part_BW, part_CT in zip(parts_of(x_BW), parts_of(tokens_CT), strict=True):
    (total, (kl, share)), gradients = jax.jit(jax.value_and_grad(by_formula, has_aux=True))(
        state.params, part_BW.reshape(-1, x_BW.shape[1]), part_CT.reshape(-1, T))
    found.append((gradients, {"loss": total, "kl": kl, "kl_share": share / total}))
  expected, metrics = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *found)

  # What the optimiser is given is seen through one that takes plain steps of length 1 against the gradient.
  plain = dataclasses.replace(made, tx=_PLAIN, constrain=lambda params: params,
                              peaks={**made.peaks, "learning_rate": 1.0})
  init, step = steps.make_step(plain, mesh, 50, code == "sparse", n_parts, downstream=contexts)
  before = init(jax.random.key(0), contexts.sample(128, 0))
  params = jax.device_get(before.params)
  batch = jax.tree.map(lambda leaf: leaf[None], (x_BW, (tokens_CT, at_CR, last)))
  after, values = step(before, batch)
  for name, gradient in expected.items():
    if name == "threshold":  # measured, not learned
      continue
    np.testing.assert_allclose(params[name] - np.asarray(after.params[name]), gradient, err_msg=name,
                               atol=2e-4 * np.abs(gradient).max() + 1e-6)
  assert metrics["kl"] > 0.01
  for name, value in metrics.items():
    np.testing.assert_allclose(values[name], value, rtol=1e-3, err_msg=name)
  assert values["sparse_fraction"] == (code == "sparse")


_PLAIN = optax.sgd(1.0)


# Training.

def fit(directory, contexts, config, mesh=None, **more):
  wiring = Wiring(contexts.widths, **more.pop("wiring", {}))
  return train_sae(config, contexts, wiring, directory, {"data": "a"}, mesh or one_device(),
                   MetricsConfig(), downstream=contexts, **more)


def metrics_of(directory):
  return [json.loads(line) for line in (pathlib.Path(directory) / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_finetuning_brings_predictions_nearer(subjects, tmp_path):
  """From one finished dictionary, as many further steps with the divergence and without, judged on other text."""
  subject = subjects["own"]
  config = SAEConfig("topk", k=4, **{**SMALL, "n_steps": 200, "scan_steps": 50, "checkpoint_every_steps": 200},
                     batch_rows=16 * T)
  contexts = contexts_of(subject, (HIDDEN,), 16)
  start = train_sae(config, contexts, Wiring(contexts.widths), tmp_path / "start", {}, one_device(), MetricsConfig())
  more = {"start_from": str(tmp_path / "start" / "dictionary"), "learning_rate": 5e-3, "n_steps": 200}
  plain = fit(tmp_path / "plain", contexts, dataclasses.replace(config, **more))
  tuned = fit(tmp_path / "tuned", contexts, dataclasses.replace(config, **more, kl_coefficient=1.0))

  def scores(pair):
    return fidelity(subject, SAE(config, *pair, (HIDDEN,)), np.zeros(24), tokens_of(2), 0)
  before, without, after = map(scores, (start, plain, tuned))
  assert after["kl_spliced"] < 0.85 * min(before["kl_spliced"], without["kl_spliced"])
  assert after["l0"] == before["l0"] == 4
  lines = metrics_of(tmp_path / "tuned")
  assert lines[-1]["kl"] < lines[0]["kl"] and all(0.3 < line["kl_share"] < 0.7 for line in lines)
  assert "kl" not in metrics_of(tmp_path / "plain")[-1]


@pytest.mark.slow
def test_interrupted_training_goes_on_with_the_same_bits(subjects, tmp_path):
  config = SAEConfig("batchtopk", k=4, kl_coefficient=1.0, **{**SMALL, "scan_steps": 6}, batch_rows=4 * T,
                     resample_every_steps=6, resample_rows=4 * T)
  _, whole = fit(tmp_path / "whole", contexts_of(subjects["own"], (HIDDEN,), 4), config)
  contexts = contexts_of(subjects["own"], (HIDDEN,), 4)
  given = contexts.batch_in_context

  def interrupted(step):
    if step == 8:
      raise KeyboardInterrupt
    return given(step)
  contexts.batch_in_context = interrupted
  with pytest.raises(KeyboardInterrupt):
    fit(tmp_path / "again", contexts, config)
  _, again = fit(tmp_path / "again", contexts_of(subjects["own"], (HIDDEN,), 4), config)
  jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_a_mesh_gives_what_one_device_gives(subjects, tmp_path):
  """A transcoder with a skip, in parts, and the subject's heads split over devices."""
  found = {}
  sites = ("layer.0.mlp.in", "layer.0.mlp.out")
  for mesh in (one_device(), meshes.make_mesh(meshes.MeshConfig(4, 2))):
    config = SAEConfig("batchtopk", k=4, kl_coefficient=1.0, **{**SMALL, "n_steps": 6}, batch_rows=16 * T, skip=True,
                       accumulate=2)
    contexts = contexts_of(subjects["gpt2"], sites[1:], 16, sites, mesh, 2)
    found[mesh.size] = fit(tmp_path / str(mesh.size), contexts, config, mesh, wiring={"reads": (0,), "writes": (1,)})[1]
  for name, value in found[1].items():
    np.testing.assert_allclose(found[8][name], value, atol=2e-3 * np.abs(value).max() + 1e-5, err_msg=name)


@pytest.mark.slow
def test_a_sweep_trains_end_to_end_as_single_runs_do(subjects, tmp_path):
  contexts = contexts_of(subjects["own"], (HIDDEN,), 4)
  base = SAEConfig("tm2023", kl_coefficient=1.0, sparsity_coefficient=0.05, **SMALL, batch_rows=4 * T).resolved()
  members = [base, dataclasses.replace(base, sparsity_coefficient=0.2)]
  found = train_sweep(members, contexts, Wiring(contexts.widths), tmp_path / "sweep",
                      {name_of(member): {} for member in members}, one_device(), MetricsConfig(), downstream=contexts)
  _, alone = fit(tmp_path / "alone", contexts, members[1])
  for name, value in alone.items():
    np.testing.assert_allclose(found[name_of(members[1])][2][name], value, rtol=1e-4, atol=1e-6, err_msg=name)


# What cannot be.

def test_batches_that_are_no_whole_contexts(subjects):
  origin = Origin(HarvestConfig(first_position=2), "", "", lambda sites, mesh: subjects["own"], lambda: tokens_of(1))
  for rows, mesh, n_parts, better in ((100, one_device(), 1, 100), (110, one_device(), 2, 120),
                                      (110, meshes.make_mesh(meshes.MeshConfig(4, 1)), 1, 120)):
    make = lambda rows: Contexts(origin, (HIDDEN,), (HIDDEN,), Order(rows, 100, 0), n_parts, mesh)
    if rows != better:
      with pytest.raises(InputError, match=f"sae.batch_rows={rows}: .* each of 10 rows.* instance {better}$"):
        make(rows)
    make(better)


def test_without_a_subject_or_with_an_encoder(tmp_path):
  sae = SAEConfig("topk", kl_coefficient=1.0)
  with pytest.raises(InputError, match="sae.kl_coefficient=1.0: .* these activations come without one"):
    train_sae(sae, None, Wiring((8,)), tmp_path, {}, one_device(), MetricsConfig())
  with pytest.raises(InputError, match="sae.kl_coefficient=1.0: .* activations.source=given has none"):
    checks.look_ahead(RunFolder(tmp_path), RunConfig(activations=HarvestConfig(source="given"), sae=sae), ("sae",))
  pretrained_models.write(tmp_path / "bert", pretrained_models.BERT)
  config = RunConfig(subject=SubjectConfig(weights=str(tmp_path / "bert"), n_context=T), sae=sae)
  with pytest.raises(InputError, match="is an encoder, which makes none"):
    checks.look_ahead(RunFolder(tmp_path), config, ("sae",))
  with pytest.raises(InputError, match="kl_coefficient=-1.0"):
    SAEConfig("topk", kl_coefficient=-1.0)


# A run.

@pytest.mark.slow
def test_finetuning_a_runs_dictionary_from_the_command_line(finished, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  flags = [*tiny("sae"), "--name=tuned", f"--sae.start_from={workdir}/sae/dictionary", "--sae.kl_coefficient=1",
           "--sae.resample_every_steps=0", "--sae.learning_rate=3e-4", "--sae.penalty_warmup_steps=0"]
  refused = run("train_sae", workdir, *flags, "--sae.batch_rows=250")
  assert refused.returncode == 2 and not (workdir / "dictionaries").exists()
  assert "sae.batch_rows=250" in refused.stderr and "take a multiple of 32, for instance 256" in refused.stderr
  result = run("train_sae", workdir, *flags)
  assert result.returncode == 0, result.stderr[-3000:]
  before, after = (RunFolder(workdir).stage(stage)["figures"] for stage in ("sae", "dictionaries/tuned"))
  assert after["sae/kl_spliced"] < 0.9 * before["sae/kl_spliced"]
  assert after["sae/ce_spliced"] - after["sae/ce_clean"] < before["sae/ce_spliced"] - before["sae/ce_clean"]
  assert metrics_of(workdir / "dictionaries" / "tuned")[-1]["kl"] > 0
