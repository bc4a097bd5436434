"""Which positions count: the same ones where rows are kept, measured, analysed and changed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tiny_run import TINY, run
from tokenizers import processors

import monojax
from monojax import mesh as meshes
from monojax.activations import harvest
from monojax.activations.config import HarvestConfig
from monojax.activations.kept import EVERY, Kept
from monojax.activations.origin import Order
from monojax.activations.store import ActivationStore
from monojax.activations.stream import Stream
from monojax.activations.visits import Visits
from monojax.analysis import analyze, fidelity, interventions, logits, text
from monojax.analysis.config import AnalysisConfig
from monojax.config import InputError, from_dict, to_dict
from monojax.sae.config import SAEConfig
from monojax.sae.dictionary import SAE
from monojax.sae.model import Dictionary, Wiring
from monojax.subjects.config import TransformerConfig
from monojax.subjects.subject import LoadedSubject
from monojax.subjects.transformer import Transformer
from monojax.text.tokens import Tokens

T, M, V, BOS, EOT = 10, 24, 31, 30, 0
SITE = "layer.0.mlp.hidden"


def tokens_with(prefix=(BOS,), n_tokens=903, seed=0):
  """Random text of documents of 7 to 36 tokens, behind EOT each, in two domains that alternate."""
  rng = np.random.default_rng(seed)
  start_D = np.cumsum(rng.integers(8, 37, 200))
  start_D = np.concatenate([[0], start_D[start_D < n_tokens]])
  ids_N = rng.integers(1, BOS, n_tokens).astype(np.uint16)
  ids_N[start_D] = EOT
  return Tokens("train", ids_N, start_D, (np.arange(len(start_D)) % 2).astype(np.int32), ("ab_one", "cd_two"), V, EOT,
                n_tokens, prefix, (EOT, BOS))


@pytest.fixture(scope="module")
def pair():
  """A subject and a random dictionary of its MLP."""
  subject = Transformer(TransformerConfig(n_layers=1, d_model=16, n_heads=2, d_mlp=M, vocab_size=V))
  params = subject.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
  model = Dictionary(Wiring((M,)), 40)
  sae_params = model.init(jax.random.key(1), jnp.zeros((1, M)))["params"]
  sae = SAE(SAEConfig(n_features=40), model, {**sae_params, "b_dec_O": jnp.full(M, 0.1)}, (SITE,))
  return LoadedSubject(subject, params, T), sae


def counting(kept, tokens_BT):
  """Which positions count, one by one."""
  return np.array([[t >= kept.first_position and token not in kept.special_ids for t, token in enumerate(row)]
                   for row in tokens_BT.tolist()])


# Contexts with a prefix.

@pytest.mark.parametrize("width", [2, 10, 128])
def test_contexts_with_a_prefix_lie_side_by_side_in_the_text(width):
  tokens = tokens_with()
  n_contexts = tokens.contexts(width)
  assert n_contexts == 903 // (width - 1)
  tokens_CT = tokens.context(np.arange(n_contexts), width)
  position_CT = tokens.positions(np.arange(n_contexts), width)
  assert tokens_CT.shape == position_CT.shape == (n_contexts, width) and tokens_CT.dtype == np.int32
  assert (tokens_CT[:, 0] == BOS).all() and (position_CT[:, 0] == -1).all() and position_CT.dtype == np.int64
  assert position_CT[:, 1:].reshape(-1).tolist() == list(range(n_contexts * (width - 1)))
  np.testing.assert_array_equal(tokens_CT[:, 1:], tokens.tokens_N[position_CT[:, 1:]])
  chosen_C = tokens.choose(width, 200)
  assert len(chosen_C) == 200 // (width - 1) and len({*chosen_C.tolist()}) == len(chosen_C)


def test_batches_to_train_on_have_the_prefix_too():
  tokens = dataclasses.replace(tokens_with(), tokens_N=np.arange(903))
  rows = np.concatenate([tokens.batch(step, 4, 9, seed=1) for step in range(25)])
  assert rows.shape == (100, 10) and (rows[:, 0] == BOS).all() and (np.diff(rows[:, 1:], axis=1) == 1).all()
  assert len(np.unique(rows[:99, 1:])) == 99 * 9  # an epoch of 99 or 100 windows of 9


def test_a_context_needs_more_than_its_prefix():
  with pytest.raises(InputError, match="subject.n_context=1: a context begins with 1 token that is not of the text"):
    tokens_with().contexts(1)
  assert tokens_with(prefix=()).contexts(1) == 903


# The rule.

@pytest.mark.parametrize("kept", [EVERY, Kept(1), Kept(3, (EOT, BOS)), Kept(0, (5, 1000)), Kept(99)])
def test_the_mask_against_a_loop(kept):
  tokens_BT = tokens_with().context(np.arange(20), T)
  expected_BT = counting(kept, tokens_BT)
  np.testing.assert_array_equal(kept.mask(tokens_BT), expected_BT)
  np.testing.assert_array_equal(jax.jit(kept.mask)(tokens_BT), expected_BT)
  np.testing.assert_array_equal(kept.mask(tokens_BT[:, 4:], 4), expected_BT[:, 4:])
  assert kept.all == (kept == EVERY) and hash(kept) == hash(dataclasses.replace(kept))


def test_the_rule_of_a_runs_settings():
  tokens = tokens_with()
  rule = lambda tokens, **settings: Kept.of(HarvestConfig(**settings), tokens.prefix, tokens.special_ids)
  assert rule(tokens) == rule(tokens, first_position=0) == Kept(1)  # the prefix is no part of the text
  assert rule(tokens_with(prefix=())) == EVERY and rule(tokens_with(prefix=()), first_position=1) == Kept(1)
  assert rule(tokens, skip_special=True, first_position=4) == Kept(4, (EOT, BOS))
  # Version 0.1 saved no first position, and kept all; today's default is decided by the stage.
  old = {name: value for name, value in to_dict(HarvestConfig()).items() if name != "first_position"}
  assert from_dict(HarvestConfig, old).first_position == 0 and HarvestConfig().first_position is None
  with pytest.raises(InputError, match="activations.first_position=-1"):
    HarvestConfig(first_position=-1)


# Which rows are kept.

def visits_of(tokens, **settings):
  return Visits.of(HarvestConfig(**settings), tokens, T)


@pytest.mark.parametrize("prefix", [(), (BOS,)])
@pytest.mark.parametrize("settings", [
    {}, {"first_position": 3}, {"first_position": 3, "tokens_per_context": 4}, {"skip_special": True},
    {"skip_special": True, "tokens_per_context": 5, "first_position": 2},
    {"tokens_per_context": 9, "first_position": 1}, {"skip_special": True, "tokens_per_context": 9}])
def test_visits_keep_only_what_counts(settings, prefix):
  tokens = tokens_with(prefix)
  visits, kept = visits_of(tokens, **settings), Kept.of(HarvestConfig(**settings), prefix, tokens.special_ids)
  context_B = visits.context(np.arange(visits.n))
  assert len({*context_B.tolist()}) == visits.n == visits.n_contexts
  kept_BR, position_BR = visits.kept(context_B), visits.positions(context_B)
  assert kept_BR.shape == position_BR.shape == (visits.n, visits.per_context) and visits.n_rows == kept_BR.size
  assert (np.diff(kept_BR, axis=1) > 0).all() and len(np.unique(position_BR)) == visits.n_rows
  every_CT = counting(kept, tokens.context(np.arange(tokens.contexts(T)), T))
  assert np.take_along_axis(every_CT[context_B], kept_BR, axis=1).all() and (position_BR >= 0).all()
  wanted = settings.get("tokens_per_context", 0)
  assert visits.per_context == (wanted or visits.per_context)
  enough_C = every_CT.sum(1) >= visits.per_context
  assert sorted(context_B.tolist()) == np.flatnonzero(enough_C).tolist()  # all contexts that have so many, and no other
  if not wanted:
    assert enough_C.mean() >= 0.95
  if wanted and wanted < 9:
    assert len(np.unique(kept_BR, axis=0)) > 1  # a random choice


def test_contexts_that_are_left_out_are_told_of():
  visits = visits_of(tokens_with(), skip_special=True, tokens_per_context=9)
  n_whole = visits.n
  assert f"{100 - n_whole} of 100 contexts are left out, since fewer than 9 of their tokens" in visits.left_out
  assert 0 < n_whole < 100 and not visits_of(tokens_with()).left_out
  assert visits_of(tokens_with(), skip_special=True, tokens_per_context=5, n_tokens=90).n == 10


@pytest.mark.parametrize("settings, message", [
    ({"tokens_per_context": 10}, "activations.tokens_per_context=10: a context has 10 tokens, of which 9 count"),
    ({"first_position": 10}, "activations.first_position=10: a context has 10 tokens")])
def test_too_few_positions_are_refused(settings, message):
  with pytest.raises(InputError, match=message):
    visits_of(tokens_with(), **settings)


def test_text_of_special_tokens_alone_is_refused():
  tokens = dataclasses.replace(tokens_with(), tokens_N=np.zeros(903, np.uint16))
  with pytest.raises(InputError, match="contexts have 0 to 0 tokens that are not special"):
    visits_of(tokens, skip_special=True)


@pytest.mark.parametrize("settings", [{}, {"first_position": 2, "tokens_per_context": 4}, {"skip_special": True}])
def test_store_and_stream_hold_the_same_rows(tmp_path, pair, settings):
  subject, _ = pair
  tokens, mesh = tokens_with(), meshes.make_mesh(meshes.MeshConfig(data=1))
  config = HarvestConfig(dtype="float32", batch_contexts=8, shard_rows=256, chunk_rows=64, **settings)
  visits = Visits.of(config, tokens, T)
  context_B = visits.context(np.arange(visits.n))
  sites = subject.model.apply({"params": subject.params}, tokens.context(context_B, T))[1]
  expected_NM = np.take_along_axis(np.asarray(sites[SITE]), visits.kept(context_B)[..., None], 1).reshape(-1, M)
  position_N = visits.positions(context_B).reshape(-1)
  of_position = dict(zip(position_N.tolist(), expected_NM, strict=True))

  harvest.harvest(config, subject, tokens, tmp_path / "store", {}, mesh)
  store = ActivationStore.open(tmp_path / "store", {})
  assert store.n_rows == visits.n_rows
  token_N, document_N, offset_N, domain_N = np.asarray(store.places(0, store.n_rows)).T
  stored_N = tokens.start_D[document_N] + offset_N
  assert sorted(stored_N.tolist()) == sorted(position_N.tolist())
  np.testing.assert_array_equal(token_N, tokens.tokens_N[stored_N])
  np.testing.assert_array_equal(domain_N, tokens.domain_D[document_N])
  in_order_NM = np.stack([of_position[position] for position in stored_N.tolist()])
  np.testing.assert_allclose(store.rows(0, store.n_rows), in_order_NM, atol=1e-5)
  if config.skip_special:
    assert EOT not in token_N

  stream = Stream(dataclasses.replace(config, source="stream"), subject, tokens, Order(24, 200, 0), mesh)
  for step in (0, 5):
    x_BM, position_B = np.asarray(stream.batch(step)), stream.positions(step)
    np.testing.assert_allclose(x_BM, np.stack([of_position[p] for p in position_B.tolist()]), atol=1e-5)


# Measures and analysis.

KEPT = Kept(2, (EOT, BOS))


def test_fidelity_is_over_positions_that_count(pair):
  subject, sae = pair
  tokens, mean_M = tokens_with(), np.full(M, 0.2)
  tokens_BU = tokens.context(tokens.choose(T + 1, 600), T + 1)
  counts_BT = counting(KEPT, tokens_BU[:, :-1])

  def ce(edit):
    logits_BTV, sites = subject.model.apply({"params": subject.params}, tokens_BU[:, :-1], edit)
    z = np.asarray(logits_BTV, np.float64)
    loss_BT = np.log(np.exp(z).sum(-1)) - np.take_along_axis(z, tokens_BU[:, 1:, None], 2)[..., 0]
    return loss_BT[counts_BT].mean(), np.asarray(sites[SITE], np.float64)

  clean, x_BTM = ce(None)
  p = {name: np.asarray(value, np.float64) for name, value in sae.params.items()}
  f_BTF = np.maximum((x_BTM - p["b_dec_O"]) @ p["W_enc_MF"] + p["b_enc_F"], 0)
  x_hat_BTM = f_BTF @ p["W_dec_FO"] + p["b_dec_O"]
  put = lambda value: ce({SITE: lambda _: jnp.asarray(np.where(counts_BT[..., None], value, x_BTM), jnp.float32)})[0]
  x, x_hat, f = x_BTM[counts_BT], x_hat_BTM[counts_BT], f_BTF[counts_BT]
  expected = {
      "n_tokens": counts_BT.sum(), "l0": (f > 0).sum(1).mean(), "mse": np.square(x - x_hat).mean(),
      "explained_variance": 1 - np.square(x - x_hat).sum() / np.square(x - x.mean(0)).sum(),
      "l2_ratio": (np.linalg.norm(x_hat, axis=1) / np.linalg.norm(x, axis=1)).mean(), "ce_clean": clean,
      "ce_spliced": put(x_hat_BTM), "ce_zero": put(0.0), "ce_mean": put(mean_M),
      "heldout_alive_fraction": (f > 0).any(0).mean()}
  found = [fidelity.fidelity(subject, sae, mean_M, tokens, 600, batch, kept=KEPT) for batch in (7, 100)]
  found.append(fidelity.fidelity(subject, sae, mean_M, tokens, 600, 100, baseline=found[1], kept=KEPT))
  for scores in found:
    for name, value in expected.items():
      np.testing.assert_allclose(scores[name], value, rtol=1e-4, err_msg=name)
  keep_JF = np.arange(sae.n_features)[None] % 3 > np.arange(3)[:, None]  # two thirds of the features, one third, none
  parts = [put((f_BTF * keep_F) @ p["W_dec_FO"] + p["b_dec_O"]) for keep_F in keep_JF]
  for batch in (7, 100):
    losses = fidelity.spliced_losses(subject, sae, keep_JF, tokens, 600, batch, KEPT)
    np.testing.assert_allclose(losses, parts, rtol=1e-5)


def test_features_fire_and_are_counted_only_where_positions_count(pair):
  subject, sae = pair
  tokens, val_tokens = tokens_with(), tokens_with(seed=1)
  config = AnalysisConfig(n_tokens=400, n_detector_tokens=300, batch_contexts=7, min_token_count=1,
                          detectors=("One=ab_*",))
  tables = analyze.analyze(config, subject, sae, tokens, val_tokens, [str(i) for i in range(V)], KEPT)
  chosen_C = tokens.choose(T, 400, config.seed)
  tokens_CT = tokens.context(chosen_C, T)
  counts_N = counting(KEPT, tokens_CT).reshape(-1)
  f_NF, x_NM = fidelity.make_encode(subject.model, sae.model, (SITE,))(subject.params, sae.params, tokens_CT)
  f_NF = np.where(counts_N[:, None], f_NF, 0)
  np.testing.assert_array_equal(tables.n_fires_F, (f_NF > 0).sum(0))
  np.testing.assert_allclose(tables.density_F, (f_NF > 0).sum(0) / counts_N.sum(), rtol=1e-6)
  assert tables.summary["n_tokens"] == counts_N.sum()
  masked_NF, masked_NM = fidelity.make_encode(subject.model, sae.model, (SITE,), KEPT)(
      subject.params, sae.params, tokens_CT)
  np.testing.assert_allclose(masked_NF, f_NF, atol=1e-6)
  np.testing.assert_allclose(masked_NM, np.where(counts_N[:, None], x_NM, 0), atol=1e-6)
  # So are their correlations with neurons and with one another.
  alive_F = f_NF.any(0)
  r = np.corrcoef(f_NF[counts_N][:, alive_F], np.asarray(x_NM)[counts_N], rowvar=False)
  n_alive = alive_F.sum()
  np.testing.assert_array_equal(tables.best_neuron_F[alive_F], np.abs(r[:n_alive, n_alive:]).argmax(1))
  np.testing.assert_allclose(np.abs(tables.best_neuron_correlation_F[alive_F]),
                             np.abs(r[:n_alive, n_alive:]).max(1), atol=1e-5)
  np.testing.assert_allclose(tables.together_correlations_F10[alive_F, 0],
                             (r[:n_alive, :n_alive] - np.eye(n_alive)).max(1).clip(0), atol=1e-5)
  # Examples are around tokens that count, and show the others beside them.
  fires = tables.example_acts_FEW > 0
  assert not np.isin(tables.example_tokens_FEW[fires], KEPT.special_ids).any()
  middle_FE = tables.example_tokens_FEW[..., tables.example_tokens_FEW.shape[2] // 2]
  assert not np.isin(middle_FE, KEPT.special_ids).any() and (middle_FE >= 0).any()
  assert (tables.example_tokens_FEW == BOS).any() and (tables.example_tokens_FEW == EOT).any()
  tested_C = val_tokens.choose(T, 300, config.seed)
  tested_N = counting(KEPT, val_tokens.context(tested_C, T)).reshape(-1)
  position_N = np.maximum(val_tokens.positions(tested_C, T), 0).reshape(-1)
  n_tested = (tested_N & (val_tokens.position_domain(position_N) == 0)).sum()
  assert tables.summary["detectors"][0]["test_tokens"] == n_tested > 50


def test_the_text_of_contexts_with_a_prefix():
  tokens = tokens_with()
  found = text.of_contexts(tokens, np.array([3, 0]), T, KEPT)
  np.testing.assert_array_equal(found.token_N, tokens.context(np.array([3, 0]), T).reshape(-1))
  position_N = np.array([27, *range(27, 36), 0, *range(9)])  # the prefix belongs to the document that follows
  np.testing.assert_array_equal(found.document_N, [np.sum(tokens.start_D <= p) - 1 for p in position_N])
  counts_N = counting(KEPT, tokens.context(np.array([3, 0]), T)).reshape(-1)
  np.testing.assert_array_equal(found.counts_N, counts_N)
  np.testing.assert_array_equal(found.domain_N, np.where(counts_N, tokens.domain_D[found.document_N], -1))
  assert found.counted_N.tolist() == np.flatnonzero(counts_N).tolist()


def test_the_typical_scale_is_that_of_positions_that_count(pair):
  subject, _ = pair
  tokens, path = tokens_with(), subject.model.logit_path(subject.params, SITE)
  found = logits.typical_scale(subject, path, tokens, 1000, 0, 500, kept=KEPT)
  tokens_CT = tokens.context(tokens.choose(T, 500, 0), T)
  residual = np.asarray(subject.model.apply({"params": subject.params}, tokens_CT)[1][path.scale_site], np.float64)
  scale_CT = residual.std(-1) if path.norm == "layer" else np.sqrt(np.square(residual).mean(-1))
  np.testing.assert_allclose(found, scale_CT[counting(KEPT, tokens_CT)].mean(), rtol=1e-5)


def test_only_positions_that_count_are_changed(pair):
  subject, sae = pair
  ids = [BOS, 5, EOT, 7, 8, 9]
  mean_M, early = np.full(M, 3.0), Kept(4)
  found = interventions.losses(subject, sae, mean_M, ids, {0: 9.0}, early)
  everywhere = interventions.losses(subject, sae, mean_M, ids, {0: 9.0})
  for name in ("spliced", "ablated", "steered"):
    np.testing.assert_allclose(found[name][:4], found["clean"][:4], atol=1e-6)  # the text before is as it was
    assert abs(found[name][4] - found["clean"][4]) > 1e-4
    assert np.abs(everywhere[name][:4] - found["clean"][:4]).max() > 1e-4
  nowhere = interventions.losses(subject, sae, mean_M, ids, {0: 9.0}, Kept(0, tuple(range(V))))
  np.testing.assert_allclose(nowhere["spliced"], nowhere["clean"], atol=1e-6)


@pytest.mark.slow
def test_a_whole_run_with_bos_and_without_special_tokens(tmp_path):
  result = run("prepare_text", tmp_path / "first", *(flag for flag in TINY if flag.startswith("--tokens.")))
  assert result.returncode == 0, result.stderr
  backend = tokenizers.Tokenizer.from_file(str(tmp_path / "first" / "tokens" / "tokenizer.json"))
  backend.add_special_tokens(["<bos>"])
  bos_id = backend.token_to_id("<bos>")
  backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos_id)])
  (tmp_path / "model").mkdir()
  backend.save(str(tmp_path / "model" / "tokenizer.json"))
  result = run("monosemanticity", tmp_path / "run", *(flag for flag in TINY if "vocab_size=400" not in flag),
               f"--tokens.tokenizer={tmp_path / 'model'}", "--activations.skip_special",
               "--activations.first_position=2", timeout=900)
  assert result.returncode == 0, result.stderr
  loaded = monojax.load(tmp_path / "run")
  assert loaded.kept == Kept(2, (0, bos_id))
  ids = loaded.token_ids("The sun rose")
  assert ids[0] == bos_id and ids.count(bos_id) == 1
  encoded = loaded.encode("The sun rose over the hills")
  assert encoded.tokens[0] == "<bos>" and not encoded.f_TF[:2].any() and encoded.f_TF[2:].any()
  assert loaded.steer("The sun", {0: 5.0}, n_tokens=5).startswith("The sun")
  spliced = loaded.splice("The sun rose over the hills")
  np.testing.assert_allclose(spliced.spliced_T[:1], spliced.clean_T[:1], atol=1e-6)
  tables = loaded.features
  assert not np.isin(tables.example_tokens_FEW[tables.example_acts_FEW > 0], [0, bos_id]).any()
  places_N4 = ActivationStore.open(tmp_path / "run" / "activations").places(0, 2000)
  assert not np.isin(places_N4[:, 0], [0, bos_id]).any()
