"""The analysis against independent computations: definitions in NumPy and brute force."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from monojax.analysis import analyze, columns, detectors, examples, fidelity, logits, tables, text
from monojax.analysis import codes as sparse_codes
from monojax.analysis.config import AnalysisConfig
from monojax.analysis.shown_texts import shown_texts
from monojax.sae.config import SAEConfig
from monojax.sae.dictionary import SAE
from monojax.sae.model import Dictionary, Wiring
from monojax.subjects.config import TransformerConfig
from monojax.subjects.subject import LoadedSubject, LogitPath
from monojax.subjects.transformer import Transformer
from monojax.text.tokens import Tokens
from monojax.variance import joined, spread

CONFIG = TransformerConfig(n_layers=1, d_model=16, n_heads=2, d_mlp=24, vocab_size=31)
SITE = "layer.0.mlp.hidden"


def fake_tokens(n_tokens=1300, seed=0, domain_D=None):
  """`Tokens` over random ids, with documents of 37 tokens in two domains that alternate."""
  ids_N = np.random.default_rng(seed).integers(0, 31, n_tokens).astype(np.uint16)
  start_D = np.arange(0, n_tokens, 37)
  domain_D = np.arange(len(start_D)) % 2 if domain_D is None else domain_D
  return Tokens("train", ids_N, start_D, domain_D.astype(np.int32), ("ab_one", "cd_two"), 31, 0, n_tokens)


@pytest.fixture(scope="module")
def pair():
  """A subject and a random dictionary of its MLP."""
  subject = Transformer(CONFIG)
  params = subject.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
  sae = Dictionary(Wiring((24,)), 40)
  sae_params = sae.init(jax.random.key(1), jnp.zeros((1, 24)))["params"]
  return LoadedSubject(subject, params, 10), sae_of(sae, {**sae_params, "b_dec_O": jnp.full(24, 0.1)})


def sae_of(model, params, sites=(SITE,)):
  return SAE(SAEConfig(n_features=model.n_features), model, params, sites)


def test_no_more_tokens_are_analysed_than_fit_into_memory(capsys):
  enough = 4 * 8 * sparse_codes.BYTES_PER_ENTRY * 600
  assert sparse_codes.tokens_that_fit(600, 8.0, enough) == 600
  assert sparse_codes.tokens_that_fit(1300, 0.0, enough) == 1300
  assert sparse_codes.tokens_that_fit(1300, 8.0) == 1300  # this machine's memory
  assert capsys.readouterr().out == ""
  assert sparse_codes.tokens_that_fit(1300, 8.0, enough) == 600
  assert sparse_codes.tokens_that_fit(601, 8.0, enough) == 600
  assert "analysing 600 tokens instead of 1,300: with 8 activations on each" in capsys.readouterr().out


def test_activations_are_counted_token_by_token(pair):
  subject, sae = pair
  tokens = fake_tokens()
  encode_both = fidelity.make_encode(subject.model, sae.model, (SITE,))
  encode = lambda tokens_BT: encode_both(subject.params, sae.params, tokens_BT)
  f_NF, x_NM = encode(tokens.context(tokens.choose(10, 80, 5), 10))
  found = analyze._detecting(AnalysisConfig(seed=5), subject, encode, tokens, 8)
  expected = [(np.asarray(x_NJ) != 0).sum(1).mean() for x_NJ in (f_NF, x_NM)]
  np.testing.assert_allclose(found.per_token, expected, rtol=1e-6)
  assert found.n_neurons is None  # of a ReLU layer


def numpy_fidelity(pair, tokens, mean_M, context_C):
  """The reported figures by their definitions, with full forward passes and float64 statistics."""
  subject, sae = pair
  tokens_BU = tokens.context(context_C, 11)

  def ce(edit):
    logits_BTV, sites = subject.model.apply({"params": subject.params}, tokens_BU[:, :-1], edit)
    z = np.asarray(logits_BTV, np.float64)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p, tokens_BU[:, 1:, None], 2).mean(), sites

  clean, sites = ce(None)
  x = np.asarray(sites[SITE], np.float64).reshape(-1, 24)
  p = {name: np.asarray(value, np.float64) for name, value in sae.params.items()}
  f = np.maximum((x - p["b_dec_O"]) @ p["W_enc_MF"] + p["b_enc_F"], 0)
  x_hat = f @ p["W_dec_FO"] + p["b_dec_O"]
  spliced, _ = ce({SITE: lambda a: jnp.asarray(x_hat.reshape(a.shape), jnp.float32)})
  zero, _ = ce({SITE: jnp.zeros_like})
  mean, _ = ce({SITE: lambda a: jnp.broadcast_to(jnp.asarray(mean_M, jnp.float32)[None, None], a.shape)})
  return {
      "l0": (f > 0).sum(1).mean(), "l1": f.sum(1).mean(), "mse": np.square(x - x_hat).mean(),
      "explained_variance": 1 - np.square(x - x_hat).sum() / np.square(x - x.mean(0)).sum(),
      "l2_ratio": (np.linalg.norm(x_hat, axis=1) / np.linalg.norm(x, axis=1)).mean(),
      "ce_clean": clean, "ce_spliced": spliced, "ce_zero": zero, "ce_mean": mean,
      "ce_recovered_zero": (zero - spliced) / (zero - clean),
      "ce_recovered_mean": (mean - spliced) / (mean - clean)}


def useful(pair):
  """`pair` with a subject whose zero-ablation is far worse than its clean loss on fake_tokens(0)."""
  subject, sae = pair
  params = subject.params
  counts = np.bincount(fake_tokens().tokens_N, minlength=31) / 1300
  hidden = subject.model.apply({"params": params}, fake_tokens().context(np.arange(9), 10))[1][SITE]
  block = dict(params["layer_0"])
  block["W_out_MD"] = jnp.zeros((24, 16)).at[:, 0].set(3.0 / np.asarray(hidden).mean((0, 1)).sum())
  direction = np.log(counts + 1e-3) - np.log(counts + 1e-3).mean()
  W_unembed_DV = jnp.zeros((16, 31)).at[0].set(jnp.asarray(direction) * 0.2)
  return with_params(subject, {**params, "layer_0": block, "W_unembed_DV": W_unembed_DV}), sae


def with_params(subject, params):
  return dataclasses.replace(subject, params=params)


def test_fidelity_agrees_with_numpy_whatever_the_batching(pair):
  pair = useful(pair)
  tokens, mean_M = fake_tokens(), np.full(24, 0.2)
  found = [fidelity.fidelity(*pair, mean_M, tokens, 1000, batch) for batch in (7, 100)]
  expected = numpy_fidelity(pair, tokens, mean_M, tokens.choose(11, 1000))
  assert found[0]["n_tokens"] == 900  # 90 whole contexts of 11
  found.append(fidelity.fidelity(*pair, mean_M, tokens, 1000, 100, baseline=found[1]))
  for scores in found:
    for name, value in expected.items():
      rtol = 2e-3 if "recovered" in name else 1e-4  # a quotient of small differences of float32 losses
      np.testing.assert_allclose(scores[name], value, rtol=rtol, err_msg=name)


def test_recovered_is_undefined_where_ablation_does_not_hurt(pair):
  subject, sae = pair
  block = {**subject.params["layer_0"], "W_out_MD": jnp.zeros((24, 16))}
  scores = fidelity.fidelity(with_params(subject, {**subject.params, "layer_0": block}), sae, np.zeros(24),
                             fake_tokens(), 500, 10)
  assert scores["ce_recovered_zero"] is None and scores["ce_recovered_mean"] is None
  assert scores["ce_zero"] == scores["ce_clean"]


@pytest.mark.parametrize("mean", [0.0, 1.0, 3000.0, 1e5])
def test_explained_variance_of_the_mean_is_zero_and_an_offset_lowers_it(mean):
  x = np.random.default_rng(0).normal(mean, 1, (4096, 8))
  def variance(x_hat):
    rows = None
    for part in np.split(x.astype(np.float32), 4):
      rows = joined(rows, jax.device_get(jax.jit(spread)(part)))
    total = {"square_error": np.square(x - x_hat).sum(),
             "l0": 0, "l1": 0, "norm_ratio": 3.0, "not_zero": 4, "fired_F": np.array([0, 409, 410, 4096]),
             "ce_clean": 1, "ce_spliced": 2, "ce_zero": 3, "ce_mean": 4, "kl_spliced": 1, "kl_zero": 2, "kl_mean": 4}
    scores = fidelity._scores(total, rows, 4096, 32)
    assert scores["l2_ratio"] == 0.75  # over the tokens that are not zero
    assert scores["heldout_alive_fraction"] == 0.75 and scores["heldout_dense_features"] == 2  # on over a tenth of them
    return scores["explained_variance"]
  np.testing.assert_allclose(variance(x.mean(0)), 0, atol=1e-4)
  np.testing.assert_allclose(variance(x), 1)
  assert variance(x + 0.5) < 0.8
  x = np.full_like(x, mean)
  assert variance(x) is None


def collected(batch_contexts=7):
  tokens = fake_tokens()
  table = np.random.default_rng(3).normal(size=(31, 6)).astype(np.float32)
  encode = lambda tokens_BT: jnp.maximum(table[tokens_BT.reshape(-1)], 0)
  chosen = tokens.choose(10, 400, seed=1)
  codes = sparse_codes.collect(encode, text.batches(tokens, chosen, 10, batch_contexts), 400, "test")
  return tokens, text.of_contexts(tokens, chosen, 10), codes, np.asarray(encode(tokens.context(chosen, 10)))


@pytest.mark.parametrize("batch_contexts", [1, 7, 40, 64])
def test_codes_are_the_dense_matrix(batch_contexts):
  tokens, analysed, codes, dense_NF = collected(batch_contexts)
  assert codes.n_rows == analysed.n_rows == 400
  rebuilt = np.zeros_like(dense_NF)
  for i in range(6):
    rows, values = codes.feature(i)
    assert np.all(np.diff(rows) > 0) and np.all(values > 0)
    rebuilt[rows, i] = values
  np.testing.assert_array_equal(rebuilt, dense_NF)
  np.testing.assert_array_equal(analysed.token_N, tokens.context(tokens.choose(10, 400, 1), 10).reshape(-1))
  np.testing.assert_array_equal(analysed.context_N, np.repeat(np.arange(40), 10))


def test_example_tables_by_brute_force():
  _, analysed, codes, dense_NF = collected()
  found = examples.example_tables(codes, analysed, 2, 0)
  np.testing.assert_array_equal(found["n_fires_F"], (dense_NF > 0).sum(0))
  np.testing.assert_allclose(found["max_act_F"], dense_NF.max(0))
  mass = np.stack([dense_NF[analysed.domain_N == d].sum(0) for d in (0, 1)], 1)
  np.testing.assert_allclose(found["domain_share_FD"], mass / mass.sum(1, keepdims=True), rtol=1e-5)
  token_N = analysed.token_N

  def top_rows(i):
    """The rows of a feature's 20 top activations: the first largest one of each context."""
    row_C = 10 * np.arange(40) + dense_NF[:, i].reshape(40, 10).argmax(1)
    return row_C[np.argsort(-dense_NF[row_C, i], kind="stable")][:20]
  for i in range(6):
    sizes = np.cumsum([0] + [size for _, size in tables.EXAMPLE_GROUPS])
    acts_EW, tokens_EW = found["example_acts_FEW"][i], found["example_tokens_FEW"][i]
    top = acts_EW[:20, 4]
    per_context = np.sort(dense_NF[:, i].reshape(40, 10).max(1))[::-1][:20]
    np.testing.assert_allclose(top, per_context[:len(top)])
    for interval in range(11):
      centre = acts_EW[sizes[interval + 1]:sizes[interval + 2], 4]
      anchor = dense_NF[:, i].max() * (10 - interval) / 11
      rest_N = np.where(np.isin(np.arange(400), top_rows(i)), 0, dense_NF[:, i])
      nearest = np.sort(np.abs(rest_N[rest_N > 0] - anchor))[:5]
      nearest = nearest[nearest < dense_NF[:, i].max() / 22]
      there = tokens_EW[sizes[interval + 1]:sizes[interval + 2], 4] >= 0
      np.testing.assert_allclose(np.sort(np.abs(centre[there] - anchor)), nearest, atol=1e-6)
    top_domain, value_N = found["domain_share_FD"][i].argmax(), dense_NF[:, i]
    bin_N = np.minimum((value_N / value_N.max() * 40).astype(int), 39)
    for h in np.flatnonzero(found["act_counts_FH"][i]):
      here_N = (value_N > 0) & (bin_N == h)
      if here_N.sum() == found["act_counts_FH"][i, h]:  # none at an edge
        assert found["act_domain_share_FH"][i, h] == pytest.approx((analysed.domain_N[here_N] == top_domain).mean())
    longer_EU = found["longer_tokens_FLU"][i]
    assert longer_EU.shape == (6, 49) and (longer_EU[:, 20:29] == tokens_EW[:6]).all()
    assert (longer_EU[0] >= 0).sum() == 10  # its whole context
    np.testing.assert_array_equal(found["longer_acts_FLU"][i][:, 20:29], acts_EW[:6])
    assert np.all(acts_EW[sizes[12]:, 4] == 0) and np.all(tokens_EW[sizes[12]:, 4] >= 0)
    row = int(np.argmax(dense_NF[:, i]))
    for w in range(9):
      other = row + w - 4
      inside = other // 10 == row // 10 and other >= 0
      assert tokens_EW[0, w] == (token_N[other] if inside else -1)
      np.testing.assert_allclose(acts_EW[0, w], dense_NF[other, i] if inside else 0)


def test_shown_texts_have_all_features_on_each_token():
  _, analysed, codes, dense_NF = collected()
  found = shown_texts(codes, analysed, ["a", "b", "none"])
  assert [piece["name"] for piece in found] == ["a", "b"]
  for d, piece in enumerate(found):
    n = len(piece["tokens"])
    starts = [i for i in range(400 - n + 1) if analysed.token_N[i:i + n].tolist() == piece["tokens"]
              and (analysed.domain_N[i:i + n] == d).all() and len(set(analysed.context_N[i:i + n])) == 1]
    assert starts and n == 10  # a context that is of the domain from end to end
    expected = [[np.flatnonzero(row_F).tolist(), pytest.approx(row_F[row_F > 0].tolist(), rel=1e-3)]
                for row_F in dense_NF[starts[0]:starts[0] + n]]
    assert [list(on) for on in piece["features"]] == expected
  assert [piece["name"] for piece in shown_texts(codes, analysed, [])] == [f"text {i}" for i in range(1, 9)]
  counts_N = np.arange(400) % 10 != 4  # as an end of text in the middle of each context, which is passed over
  some = dataclasses.replace(analysed, counts_N=counts_N, domain_N=np.where(counts_N, analysed.domain_N, -1))
  assert [len(piece["tokens"]) for piece in shown_texts(codes, some, ["a", "b"])] == [9, 9]
  apart = dataclasses.replace(analysed, context_N=np.arange(400))  # rows that do not follow one another
  assert shown_texts(codes, apart, ["a", "b"]) == []


def test_examples_that_are_equally_near_are_the_first():
  value_P = np.array([3.0, 1.0, 2.0, 2.0, 4.0, 2.0, 0.5, 8.0, 2.0, 6.0], np.float32)
  assert examples._nearest(value_P, np.sort(value_P), 2.0, 3).tolist() == [2, 3, 5]

  row_P, context_P = np.arange(10) * 7, np.array([0, 0, 0, 1, 1, 2, 2, 5, 5, 5])
  assert examples._largest_of_contexts(row_P, value_P, context_P).tolist() == [49, 28, 0, 35]


def test_no_example_of_a_feature_comes_twice():
  rng = np.random.default_rng(0)
  context_N = np.repeat(np.arange(30), 10).astype(np.int32)
  analysed = text.AnalysedText(np.zeros(300, np.int32), context_N, context_N.astype(np.int64), np.zeros(300, np.int32))
  for n in (1, 9, 60):
    row_P = np.sort(rng.choice(300, n, replace=False))
    value_P = rng.choice(np.arange(0.5, 11.5, 0.5), n).astype(np.float32)  # many half way between intervals
    row_E = examples.feature_rows(row_P, value_P, analysed, rng)
    there = row_E[row_E >= 0]
    assert len(row_E) == tables.N_EXAMPLES and len(set(there.tolist())) == len(there) >= 20 + min(n, 20) // 2
    assert not np.isin(row_E[-20:], row_P).any()


def test_codes_of_many_features_and_of_none():
  f_NF = np.zeros((5, 70_000), np.float32)
  nothing = sparse_codes.collect(lambda batch: f_NF, [(None, 5), (None, 3)], 8, "test")
  assert nothing.n_rows == 8 and len(nothing.row_P) == 0 and nothing.start_F.shape == (70_001,)
  f_NF[[1, 4, 4], [69_999, 69_999, 3]] = 1.0, 2.0, 3.0
  found = sparse_codes.collect(lambda batch: f_NF, [(None, 5), (None, 3)], 8, "test")
  assert [part.tolist() for part in found.feature(69_999)] == [[1, 4, 6], [1.0, 2.0, 1.0]]
  assert [part.tolist() for part in found.feature(3)] == [[4], [3.0]]
  ranked = sparse_codes.collect(lambda batch: f_NF, [(None, 5), (None, 3)], 8, "test", np.arange(8)[::-1])
  assert [part.tolist() for part in ranked.feature(69_999)] == [[1, 3, 6], [1.0, 2.0, 1.0]]


def brute_force_f1(values, is_class):
  best = (0.0, None)
  for threshold in np.unique(values[values > 0]):
    chosen = values >= threshold
    best = max(best, (2 * (chosen & is_class).sum() / (chosen.sum() + is_class.sum()), threshold))
  return best


def test_detectors_by_brute_force():
  _, _, codes, dense_NF = collected()
  rng = np.random.default_rng(5)
  is_class_CN = np.stack([dense_NF[:, 2] + 0.5 * rng.normal(size=400) > 0.7, rng.random(400) < 0.1])
  for (column, threshold), is_class in zip(detectors.best_detectors(codes, is_class_CN), is_class_CN,
                                           strict=True):
    scores = [brute_force_f1(dense_NF[:, i], is_class)[0] for i in range(6)]
    assert column == int(np.argmax(scores))
    np.testing.assert_allclose(threshold, brute_force_f1(dense_NF[:, column], is_class)[1])
    np.testing.assert_allclose(detectors.f1_of(codes, column, threshold, is_class), max(scores))


def test_detector_classes_follow_the_domains_names():
  found = detectors.classes_of(("Both=ab_*|cd_*", "None=zz", "Two=cd_two"), ("ab_one", "cd_two"))
  assert found == {"Both": [0, 1], "Two": [1]}
  _, _, codes, _ = collected()
  domain_N = np.arange(400) % 2
  rows = detectors.compare((codes, codes), (codes, codes), domain_N, domain_N, found)
  assert [row["class"] for row in rows] == ["Both", "Two"] and rows[1]["test_tokens"] == 200
  assert all(row["feature_f1"] == row["neuron_f1"] for row in rows)


def test_logit_weights_by_definition():
  rng = np.random.default_rng(0)
  W_dec, W_out, gain = rng.normal(size=(5, 7)), rng.normal(size=(7, 4)), rng.uniform(0.5, 2, 4)
  W_unembed, used = rng.normal(size=(4, 50)), np.arange(50) % 5 != 0
  single = [array.astype(np.float32) for array in (W_dec, W_out, gain)]
  path = LogitPath(single[1], "layer", single[2], W_unembed.astype(np.float32), "")
  found = logits.logit_weights(single[0], path, 1.7, used, n_listed=3, block_features=2)
  residual = W_dec @ W_out
  weights = (residual - residual.mean(1, keepdims=True)) * gain / 1.7 @ W_unembed
  weights -= np.median(weights[:, used], axis=1, keepdims=True)
  weights[:, ~used] = np.nan
  order = np.argsort(np.where(used, -weights, np.inf), axis=1)
  np.testing.assert_array_equal(found["top_logit_ids_FK"], order[:, :3])
  np.testing.assert_allclose(found["top_logit_values_FK"], np.take_along_axis(weights, order[:, :3], 1),
                             rtol=1e-4)
  lowest = np.argsort(np.where(used, weights, np.inf), axis=1)[:, :3]
  np.testing.assert_array_equal(found["bottom_logit_ids_FK"], lowest)
  np.testing.assert_allclose(found["logit_range_F2"][:, 1], np.nanmax(weights, 1), rtol=1e-4)
  assert np.all(found["logit_counts_FH"].sum(1) == used.sum())
  expected = np.histogram(weights[0][used], 40)[0]
  assert np.abs(found["logit_counts_FH"][0] - expected).sum() <= 4  # float32 at the edges of bins


def test_tables_save_and_load(tmp_path):
  """What is computed from activations alone makes tables; columns that need a subject or weights may be absent."""
  tokens, analysed, codes, _ = collected()
  columns = {**examples.example_tables(codes, analysed, 2, 0),
             "status_F": np.zeros(6, np.int8), "encoder_bias_F": np.arange(6, dtype=np.float32)}
  columns["top_neuron_ids_FN"] = np.zeros((6, 3), np.int32)
  columns["top_neuron_weights_FN"] = columns["top_neuron_l1_share_FN"] = np.zeros((6, 3), np.float32)
  made = tables.FeatureTables(columns, ["a\n"], list(tokens.domains), {"n": 1})
  made.save(tmp_path)
  loaded = tables.FeatureTables.load(tmp_path)
  assert set(loaded.columns) == set(columns)
  for name in columns:
    np.testing.assert_array_equal(getattr(loaded, name), columns[name])
  assert loaded.summary == {"n": 1} and loaded.token_strings == ["a\n"] and loaded.domains == ["ab_one", "cd_two"]


def test_harvested_rows_are_the_subjects_activations(tmp_path, pair):
  """Each stored row equals the activation at the position it claims to come from."""
  from monojax import mesh
  from monojax.activations.config import HarvestConfig
  from monojax.activations.harvest import harvest
  from monojax.activations.store import ActivationStore
  subject, _ = pair
  tokens = fake_tokens()
  for per_context in (0, 3):
    config = HarvestConfig(dtype="float32", tokens_per_context=per_context, batch_contexts=8, shard_rows=256,
                           chunk_rows=64)
    directory = tmp_path / str(per_context)
    meta = harvest(config, subject, tokens, directory, {"x": 1},
                   mesh.make_mesh(mesh.MeshConfig(data=4)))
    store = ActivationStore.open(directory)
    rows, places = store.rows(0, store.n_rows), store.places(0, store.n_rows)
    positions = tokens.start_D[places[:, 1]] + places[:, 2]
    np.testing.assert_array_equal(places[:, 0], tokens.tokens_N[positions])
    np.testing.assert_array_equal(places[:, 3], tokens.position_domain(positions))
    assert meta["n_rows"] == 130 * (per_context or 10) == len(np.unique(positions))
    assert np.all(np.bincount(positions // 10, minlength=130) == (per_context or 10))
    sites = subject.model.apply({"params": subject.params}, tokens.context(np.arange(130), 10))[1]
    expected = np.asarray(sites[SITE]).reshape(-1, 24)
    np.testing.assert_allclose(rows, expected[positions], atol=1e-5)
    assert np.mean(np.abs(np.diff(positions)) > 20) > 0.7, "neighbours on disk come from one context"


def test_a_part_of_the_text_is_a_random_part(tmp_path, pair):
  """Text in the order of its files, one domain and then the other: both are harvested and scored alike."""
  from monojax import mesh
  from monojax.activations.config import HarvestConfig
  from monojax.activations.harvest import harvest
  from monojax.activations.store import ActivationStore
  n_documents = 40_000 // 37 + 1
  tokens = fake_tokens(40_000, domain_D=np.arange(n_documents) >= n_documents // 2)
  second = lambda position_N: np.mean(tokens.position_domain(position_N) == 1)
  chosen_C = tokens.choose(10, 4000)
  assert len(chosen_C) == len(set(chosen_C)) == 400 and 0.4 < second(chosen_C * 10) < 0.6
  config = HarvestConfig(n_tokens=4000, batch_contexts=64, shard_rows=1024, chunk_rows=256)
  harvest(config, pair[0], tokens, tmp_path / "a", {}, mesh.make_mesh(mesh.MeshConfig(data=1)))
  store = ActivationStore.open(tmp_path / "a")
  assert store.n_rows == 4000 and 0.4 < np.mean(store.places(0, 4000)[:, 3] == 1) < 0.6


def test_alive_features_are_those_that_fired_at_all():
  """The word has one meaning: pages call regular what is alive and neither ultralow nor faint."""
  assert columns.STATUSES == ("regular", "ultralow", "dead", "faint")
  for seed in range(20):
    status = np.random.default_rng(seed).integers(0, 4, 50).astype(np.int8)
    figures = analyze.density_figures(status, (status != tables.DEAD).astype(np.float32))
    assert figures["alive_fraction"] == np.isin(status, (tables.REGULAR, tables.ULTRALOW, tables.FAINT)).mean()
    assert figures["alive_fraction"] + figures["dead_fraction"] == pytest.approx(1)


def test_density_figures_and_histogram():
  from monojax.analysis import analyze
  density = np.array([0, 2e-6, 0.02, 0.005], np.float32)
  status = np.array([tables.DEAD, tables.ULTRALOW, tables.REGULAR, tables.REGULAR], np.int8)
  figures = analyze.density_figures(status, density)
  assert figures["alive_fraction"] == 0.75 and figures["ultralow_fraction"] == 0.25
  assert figures["dead_fraction"] == 0.25 and figures["features_above_1_percent"] == 1
  histogram = analyze.density_histogram(density)
  assert sum(histogram["counts"]) == 3
  at = int(np.flatnonzero(histogram["counts"])[0])
  assert histogram["log10_edges"][at] < np.log10(2e-6) < histogram["log10_edges"][at + 1]
  assert figures["n_features"] == 4
