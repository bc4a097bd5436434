"""Effects of removing features against brute force: a pass of the subject for each feature, changed by hand."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pretrained_models
import pytest

import monojax
from monojax import InputError
from monojax import mesh as meshes
from monojax.activations.kept import EVERY, Kept
from monojax.analysis import analyze, effects, interventions, logits, progress, removal, removal_direct, text
from monojax.analysis.codes import collect
from monojax.analysis.config import AnalysisConfig
from monojax.analysis.examples import example_tables
from monojax.analysis.fidelity import make_encode
from monojax.analysis.progress import Progress
from monojax.sae.config import SAEConfig
from monojax.sae.dictionary import SAE
from monojax.sae.model import Dictionary, Wiring
from monojax.subjects.config import TransformerConfig
from monojax.subjects.pretrained.weights import load_params, open_weights
from monojax.subjects.subject import LoadedSubject
from monojax.subjects.transformer import Transformer
from monojax.text.tokens import Tokens

T, F, N_TOKENS = 10, 16, 300


def fake_tokens(n_vocab, prefix=()):
  ids_N = np.random.default_rng(0).integers(2, n_vocab - 3, N_TOKENS + 7).astype(np.uint16)
  start_D = np.arange(0, len(ids_N), 37)
  return Tokens("train", ids_N, start_D, (np.arange(len(start_D)) % 2).astype(np.int32), ("ab", "cd"), n_vocab, 0,
                len(ids_N), prefix)


def random_params(model, example, seed):
  """Parameters none of which has a value that would hide a mistake: matrices by their fan-in, gains near 1."""
  rng = np.random.default_rng(seed)
  made = lambda path, leaf: (("gain" in path[-1].key) + (
      rng.normal(0, leaf.shape[0] ** -0.5 if leaf.ndim > 1 else 0.2, leaf.shape))).astype(np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), example)["params"]
  return jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(made, shapes))


def transformer(n_layers, width=16, hidden=24, n_vocab=31):
  model = Transformer(TransformerConfig(n_layers=n_layers, d_model=width, n_heads=2, d_mlp=hidden, vocab_size=n_vocab))
  return LoadedSubject(model, random_params(model, jnp.zeros((1, 2), jnp.int32), 0), T)


def pretrained(name, folder, n_layers):
  layers = dict.fromkeys(("num_hidden_layers", "n_layer"), n_layers)  # which of the two depends on the family
  pretrained_models.write(folder, {**pretrained_models.CONFIGS[name], **layers})
  return LoadedSubject(*load_params(open_weights(str(folder)), jnp.float32), T)


def dictionary(subject, *sites, reads=(0,), writes=(0,), **options):
  """A random dictionary of some sites, whose features fire on a good part of the tokens."""
  wiring = Wiring(tuple(subject.model.site_widths[site] for site in sites), reads, writes)
  model = Dictionary(wiring, F, pre_bias=False, **options)
  params = random_params(model, jnp.zeros((1, wiring.n_inputs)), 5)
  return SAE(SAEConfig(n_features=F), model, {**params, "b_enc_F": jnp.full(F, -0.3)}, sites)


def seen_by(subject, sae, tokens, kept=EVERY, keep=True):
  """(`Seen` of all whole contexts, the feature columns of examples)."""
  direct = effects.direct_path(subject, sae)
  encode = make_encode(subject.model, sae.model, sae.reads, kept, direct[0].scale_site if direct else "")
  context_C = np.arange(tokens.contexts(T))
  analysed = text.of_contexts(tokens, context_C, T, kept)
  last = effects.last_rows(subject, sae, analysed.n_rows) if direct and keep else None
  watch = lambda row_P, feature_P, value_P, x_RM, *more: last and last.add(*more, removal.sizes(sae, x_RM))
  codes = collect(lambda tokens_BT: encode(subject.params, sae.params, tokens_BT),
                  text.batches(tokens, context_C, T, 4), analysed.n_rows, "test", watch=watch)
  used_V = np.arange(subject.model.n_vocab) % 7 != 3
  return (effects.Seen(subject, sae, codes, analysed, used_V, 4, kept, last),
          example_tables(codes, analysed, len(tokens.domains), 0))


def by_hand(subject, sae, kept, tokens_CT):
  """(features f_CTF of all contexts, losses and logits with each feature removed by the definition, and without)."""
  site, width = sae.writes[0], subject.model.site_widths[sae.writes[0]]

  @jax.jit
  def changed(removed):
    edit = {site: lambda x: x - removed}
    return subject.model.apply({"params": subject.params}, tokens_CT, edit, wanted=(*sae.reads, site))
  clean, sites = changed(np.zeros((*tokens_CT.shape, width), np.float32))
  x_CTM = np.concatenate([np.asarray(sites[name]) for name in sae.reads], -1)
  p = {name: np.asarray(value, np.float64) for name, value in sae.params.items()}
  middle, size = 0.0, np.ones((*tokens_CT.shape, 1))
  if sae.model.rows == "standardised":
    middle, size = x_CTM.mean(-1, keepdims=True), x_CTM.std(-1, keepdims=True, ddof=1)
  f_CTF = np.maximum((x_CTM - middle) / (size + 1e-5 * bool(sae.model.rows)) @ p["W_enc_MF"] + p["b_enc_F"], 0)
  f_CTF = np.where(kept.mask(tokens_CT)[..., None], f_CTF, 0)
  logits_of = [np.asarray(changed(np.float32(f_CTF[..., [i]] * size * p["W_dec_FO"][i]))[0], np.float64)
               for i in range(F)]

  def losses(z_CTV):
    log_p = z_CTV - np.log(np.exp(z_CTV).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p[:, :-1], tokens_CT[:, 1:, None], 2)[..., 0]
  clean = np.asarray(clean, np.float64)
  return f_CTF, np.stack([losses(z) for z in logits_of]) - losses(clean), np.stack(logits_of) - clean


def check(seen, columns, found, hand):
  """Compares the columns with what was computed by hand, in every window of every feature."""
  f_CTF, loss_FCT, logits_FCTV = hand
  effect_CTF = np.concatenate([np.zeros((len(f_CTF), 1, F)), np.moveaxis(loss_FCT, 0, 2)], 1)  # of the token itself
  row_FE = seen.text.rows_at(columns["example_position_FE"])
  n_listed = 0
  for i, e in np.argwhere(row_FE >= 0):
    context, middle = divmod(int(row_FE[i, e]), T)
    inside = [(w, middle + w - 4) for w in range(9) if 0 <= middle + w - 4 < T]
    assert [columns["example_tokens_FEW"][i, e, w] for w, _ in inside] == [
        seen.text.token_N[context * T + t] for _, t in inside]
    expected_W = np.zeros(9)
    expected_W[[w for w, _ in inside]] = [effect_CTF[context, t, i] for _, t in inside]
    np.testing.assert_allclose(found["example_effects_FEW"][i, e], expected_W, atol=1e-4)
    change_V = np.where(seen.used_V, logits_FCTV[i, context, middle], np.nan)
    if not np.abs(change_V[seen.used_V]).max() > 1e-5:
      continue
    n_listed += 1
    for name, order_V in (("lowered", np.sort(change_V)), ("raised", np.sort(change_V[seen.used_V])[::-1])):
      ids, values = (found[f"example_{name}_{kind}_FE5"][i, e] for kind in ("ids", "values"))
      np.testing.assert_allclose(values, order_V[:5], atol=1e-4)
      np.testing.assert_allclose(change_V[ids], values, atol=1e-4)  # NaN if it may not be listed
      assert len(set(ids.tolist())) == 5
  assert n_listed > 100 and np.abs(found["example_effects_FEW"][np.diff(seen.codes.start_F) > 0]).max() > 0.05


ALL = AnalysisConfig(effects="all")
LAYER = "layer.{}.mlp.hidden".format


@pytest.mark.parametrize("how", ["kept", "computed in small blocks"])
def test_a_one_layer_subject_agrees_with_brute_force(how, monkeypatch):
  subject, tokens = transformer(1), fake_tokens(31)
  sae = dictionary(subject, LAYER(0))
  seen, columns = seen_by(subject, sae, tokens, keep=how == "kept")
  assert effects.direct_path(subject, sae) and (seen.last is not None) == (how == "kept")
  if how != "kept":
    monkeypatch.setattr(removal, "_LOGITS", 31 * 8)
    monkeypatch.setattr(removal_direct, "_TABLE_LOGITS", 31 * 3)
  monkeypatch.setattr(effects, "again", None)
  found, figures = effects.effect_columns(ALL, seen, columns["example_position_FE"])
  check(seen, columns, found, by_hand(subject, sae, EVERY, tokens.context(np.arange(30), T)))
  assert figures == {"features_with_effects": (np.diff(seen.codes.start_F) > 0).sum()}


def test_the_rise_of_the_mean_loss_is_told_by_the_examples():
  """Effects that follow from activations by a rule: their mean over all tokens is found from the examples' alone."""
  subject, tokens = transformer(1), fake_tokens(31)
  sae = dictionary(subject, LAYER(0))
  seen, columns = seen_by(subject, sae, tokens)
  effect = lambda act: 0.3 * act - 0.1 * act ** 2
  n_rows = len(seen.text.counted_N)
  expected_F = [effect(seen.codes.feature(i)[1]).sum() / n_rows for i in range(F)]
  effects_FEW = np.zeros(columns["example_acts_FEW"].shape, np.float32)
  effects_FEW[:, :, 5] = effect(columns["example_acts_FEW"][:, :, 4])
  columns["example_effects_FEW"] = effects_FEW
  found_F = effects.loss_rises(columns, n_rows)
  assert np.ptp(expected_F) > 0.01
  np.testing.assert_allclose(found_F, expected_F, atol=0.03 * np.abs(expected_F).max())
  silent = {**columns, "max_act_F": np.append(0, columns["max_act_F"][1:])}
  effects_FEW[1] = np.nan
  changed_F = effects.loss_rises(silent, n_rows)
  assert changed_F[0] == 0 and np.isnan(changed_F[1]) and (changed_F[2:] == found_F[2:]).all()


@pytest.mark.parametrize("name, site, is_direct", [
    ("gemma2", "layer.1.mlp.out", True), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("gpt2", "layer.1.mlp.hidden", True), ("neox", "layer.1.attn.out", True), ("llama", "layer.0.resid", False),
        ("gemma2", "layer.1.attn.out", False)))])
def test_pretrained_subjects_agree_with_brute_force(name, site, is_direct, tmp_path):
  """Families differ in norms, biases and caps. The dictionary scales rows, and the prefix is left alone."""
  subject, tokens, kept = pretrained(name, tmp_path / "model", 2), fake_tokens(96, (1,)), Kept(1)
  sae = dictionary(subject, site, rows="standardised")
  seen, columns = seen_by(subject, sae, tokens, kept)
  assert bool(effects.direct_path(subject, sae)) == is_direct
  found, _ = effects.effect_columns(ALL, seen, columns["example_position_FE"])
  tokens_CT = tokens.context(np.arange(tokens.contexts(T)), T)
  check(seen, columns, found, by_hand(subject, sae, kept, tokens_CT))


@pytest.mark.slow
@pytest.mark.parametrize("site", ["layer.1.mlp.hidden", "layer.0.resid"])
def test_a_subject_on_a_mesh_gives_the_same(site, tmp_path):
  subject, tokens = pretrained("llama", tmp_path / "model", 2), fake_tokens(96)
  sae = dictionary(subject, site)
  split = subject.placed(meshes.make_mesh(meshes.MeshConfig(data=1, model=2), jax.devices()[:2]))
  found = []
  for one in (subject, split):
    seen, columns = seen_by(one, sae, tokens)
    found.append(effects.effect_columns(ALL, seen, columns["example_position_FE"])[0])
  for name in ("example_effects_FEW", "example_lowered_values_FE5", "example_raised_values_FE5"):
    np.testing.assert_allclose(found[1][name], found[0][name], atol=1e-5)


@pytest.mark.parametrize("sites, wiring", [
    ((LAYER(0),), {"rows": "standardised"}),
    pytest.param(("layer.0.mlp.in", "layer.0.mlp.out"), {"writes": (1,)}, marks=pytest.mark.slow)],
                         ids=["autoencoder", "transcoder"])
def test_deeper_subjects_agree_with_brute_force(sites, wiring):
  subject, tokens, kept = transformer(2), fake_tokens(31, (1,)), Kept(2, (5,))
  sae = dictionary(subject, *sites, **wiring)
  seen, columns = seen_by(subject, sae, tokens, kept)
  assert effects.direct_path(subject, sae) is None
  found, _ = effects.effect_columns(ALL, seen, columns["example_position_FE"])
  check(seen, columns, found, by_hand(subject, sae, kept, tokens.context(np.arange(tokens.contexts(T)), T)))


@pytest.mark.slow
def test_crosscoders_agree_with_interventions():
  """What they read of the second layer depends on what they write to the first."""
  subject, tokens = transformer(2), fake_tokens(31)
  sae = dictionary(subject, LAYER(0), LAYER(1), reads=(0, 1), writes=(0, 1))
  seen, columns = seen_by(subject, sae, tokens)
  found, _ = effects.effect_columns(ALL, seen, columns["example_position_FE"])
  feature = int(np.diff(seen.codes.start_F).argmax())
  row_E, mean_O = seen.text.rows_at(columns["example_position_FE"][feature]), np.zeros(sae.model.wiring.n_outputs)
  assert np.abs(found["example_effects_FEW"][feature]).max() > 0.05
  for e in np.flatnonzero(row_E >= 0)[::9]:
    context, middle = divmod(int(row_E[e]), T)
    ids = seen.text.token_N[context * T:context * T + T].tolist()
    losses = interventions.losses(subject, sae, mean_O, ids, {feature: 0.0})
    expected_T = np.concatenate([np.zeros(5), losses["steered"] - losses["clean"], np.zeros(4)])
    np.testing.assert_allclose(found["example_effects_FEW"][feature, e], expected_T[middle:middle + 9], atol=1e-4)


def test_a_limit_takes_the_features_that_carry_most(capsys):
  subject, tokens = transformer(1), fake_tokens(31)
  sae = dictionary(subject, LAYER(0))
  seen, columns = seen_by(subject, sae, tokens)
  measured = lambda **settings: effects.effect_columns(AnalysisConfig(**settings), seen, columns["example_position_FE"])
  whole, _ = measured()
  asked = {i: len(seen.asked(i, effects.windows_of(seen.text.rows_at(columns["example_position_FE"][i]), 300, T)))
           for i in range(F)}
  carried_F = seen.codes.sums()[1] * np.square(np.linalg.norm(sae.direction_FO, axis=1))
  most = np.argsort(-carried_F)[:3]
  some, figures = measured(effect_teraflops=2 * 31 * 16 * sum(asked[i] for i in most) / 1e12)
  assert figures == {"features_with_effects": 3} and "of 3 of" not in (told := capsys.readouterr().out)
  assert "3 of the 1" in told and "carry most" in told
  there_F = ~np.isnan(some["example_effects_FEW"]).any((1, 2))
  assert set(np.flatnonzero(there_F)) == set(most)
  for name, array in some.items():
    np.testing.assert_allclose(array[there_F], whole[name][there_F], atol=1e-6)
  assert measured(effect_teraflops=0.0) == ({}, {"features_with_effects": 0})
  assert "are too few" in capsys.readouterr().out
  assert measured(effects="none") == ({}, {})
  with pytest.raises(InputError, match="analysis.effects"):
    AnalysisConfig(effects="some")


def test_an_analysis_has_effects_unless_it_is_told_otherwise():
  subject, tokens = transformer(1), fake_tokens(31)
  sae = dictionary(subject, LAYER(0))
  config = AnalysisConfig(n_tokens=300, batch_contexts=8, min_token_count=0, detectors=(), n_share_tokens=0)
  val = dataclasses.replace(tokens, split="val")
  strings = [str(i) for i in range(29)]  # the subject has room for two more
  tables = analyze.analyze(config, subject, sae, tokens, val, strings)
  fires_F = tables.n_fires_F > 0
  assert (np.isnan(tables.example_effects_FEW).any((1, 2)) == ~fires_F).all()
  assert 5 <= tables.example_lowered_ids_FE5.max() < 29 and tables.top_logit_ids_FK.max() < 29
  assert tables.summary["figures"]["features_with_effects"] == fires_F.sum()
  without = analyze.analyze(dataclasses.replace(config, effects="none"), subject, sae, tokens, val, strings)
  missing = {name for name in tables.columns if not without.has(name)}
  assert missing == {"source_ids_FS", "source_back_FS", "source_weights_FS", "source_whole_F", "example_effects_FEW",
                     *(f"example_{side}_{kind}_FE5" for side in ("lowered", "raised")
                       for kind in ("ids", "values"))}
  for name in without.columns:
    np.testing.assert_array_equal(without.columns[name], tables.columns[name])
  split = analyze.analyze(config, subject, sae, tokens, val, strings, mesh=meshes.make_mesh())  # eight
  for name, array in tables.columns.items():
    np.testing.assert_allclose(split.columns[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


def test_an_analysis_that_was_interrupted_goes_on(tmp_path, monkeypatch):
  subject, tokens = transformer(1), fake_tokens(31)
  sae = dictionary(subject, LAYER(0))
  config = AnalysisConfig(n_tokens=300, batch_contexts=4, min_token_count=0, detectors=(), n_share_tokens=0)
  strings = [str(i) for i in range(29)]
  run = lambda **how: analyze.analyze(config, subject, sae, tokens, dataclasses.replace(tokens, split="val"), strings,
                                      **how)
  whole = run()
  encoded = []
  original = Progress.add
  monkeypatch.setattr(Progress.__init__, "__defaults__", (0.0,))  # every batch is kept
  monkeypatch.setattr(progress, "_PATIENCE", 0)

  def stopping(self, arrays, n_rows):
    original(self, arrays, n_rows)
    encoded.append(self.n_batches)
    if len(encoded) == 3:
      raise KeyboardInterrupt
  monkeypatch.setattr(Progress, "add", stopping)
  with pytest.raises(KeyboardInterrupt):
    run(partial=tmp_path / "partial", identity="x")
  kept = sorted(path.name for path in (tmp_path / "partial").iterdir())
  assert kept == ["00000.npy", "00001.npy", "00002.npy", "state.npz"]
  for spoilt in (None, "00001.npy", "state.npz"):  # what is damaged is collected anew
    folder = shutil.copytree(tmp_path / "partial", tmp_path / f"partial {spoilt}")
    if spoilt:
      content = (folder / spoilt).read_bytes()
      (folder / spoilt).write_bytes(content[:-5] + bytes(5))
    encoded[:] = [0] * 3
    found = run(partial=folder, identity="x")
    assert encoded[3] == (1 if spoilt else 4) and not folder.exists()
    for name, array in whole.columns.items():
      np.testing.assert_array_equal(found.columns[name], array, err_msg=name)
    assert found.summary == whole.summary
  encoded[:] = [0] * 3
  run(partial=tmp_path / "partial", identity="other")
  assert encoded[3] == 1


def test_logit_weights_are_what_small_perturbations_do():
  """The mean over tokens of the change of each logit, for a feature added at its own strength of 0.01.

  Logit weights leave out how a feature changes the scale of the norm, which adds a multiple of the logits themselves.
  That is of the order of 1 / sqrt(D) of the whole, hence a subject as wide as those that are studied.
  """
  subject, tokens = transformer(1, 128, 192, 400), fake_tokens(400)
  sae = dictionary(subject, LAYER(0))
  path, _ = logits.path_of(subject, sae)
  scale = logits.typical_scale(subject, path, tokens, 4, 0)
  weights = logits.logit_weights(sae.direction_FO, path, scale, np.ones(400, bool), n_listed=400)
  tokens_CT = tokens.context(np.arange(30), T)

  @jax.jit
  def added(direction_O):
    edit = {LAYER(0): lambda x: x + direction_O[None, None]}
    return subject.model.apply({"params": subject.params}, tokens_CT, edit, wanted=())[0].mean((0, 1))
  clean_V = np.asarray(added(np.zeros(192, np.float32)))
  for i in range(F):
    change_V = np.asarray(added(np.float32(0.01) * sae.direction_FO[i]) - clean_V) / 0.01
    weight_V = np.empty(400)
    weight_V[weights["top_logit_ids_FK"][i]] = weights["top_logit_values_FK"][i]
    assert np.corrcoef(change_V, weight_V)[0, 1] >= 0.99
    np.testing.assert_allclose(np.polyfit(weight_V, change_V, 1)[0], 1, atol=0.05)


@pytest.fixture(scope="module")
def loaded(finished):
  return monojax.load(finished[0])


def test_examples_of_a_run_have_effects(loaded):
  tables = loaded.features
  assert tables.summary["figures"]["features_with_effects"] > 0
  feature = int(tables.max_act_F.argmax())
  example = loaded.examples(feature, 1)[0]
  assert len(example.effects) == len(example.tokens) and np.abs(example.effects).max() > 0
  assert len(example.lowered) == len(example.raised) == 5
  assert all(change < 0 for _, change in example.lowered[:1]) and all(token for token, _ in example.raised)
  whole = loaded.examples(feature, 1, whole_characters=True)[0]
  np.testing.assert_allclose(whole.effects.sum(), example.effects.sum(), atol=1e-6)


def test_longer_windows_agree_with_the_tokens(loaded):
  from monojax.pipeline import load
  tables, tokens = loaded.features, load.open_tokens(loaded._folder, "train")
  feature = int(tables.max_act_F.argmax())
  short, long = loaded.examples(feature), loaded.examples(feature, n_tokens=61)
  n_context, strings = loaded.n_context, loaded.tokenizer.token_strings()
  assert len(short) == len(long) == 20
  for a, b in zip(short, long, strict=True):
    first, last = max(0, b.position - 30), min(b.position + 31, tokens.n_tokens // n_context * n_context)
    assert b.tokens == [strings[i] for i in tokens.tokens_N[first:last]]
    assert (a.position, a.document, a.lowered) == (b.position, b.document, b.lowered)
    # The short window ends with its context, the long one does not.
    start = max(b.position - 4, b.position // n_context * n_context) - first
    same = slice(start, start + len(a.tokens))
    assert b.tokens[same] == a.tokens
    np.testing.assert_allclose(b.activations[same], a.activations, atol=1e-5)
    np.testing.assert_allclose(b.effects[same], a.effects, atol=1e-5)
  assert loaded.examples(feature, 1, n_tokens=61, effects=False)[0].effects is None
  with pytest.raises(InputError, match="n_tokens=60.*odd"):
    loaded.examples(feature, n_tokens=60)
