"""Circuits of features: weights by hand in NumPy, what really changes without a part, and where examples are."""

import contextlib
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pretrained_models
import pytest

import monojax
from monojax.activations.kept import Kept
from monojax.analysis import circuits, interventions
from monojax.analysis.fidelity import make_encode
from monojax.config import InputError
from monojax.pipeline import load
from monojax.pipeline.folder import RunFolder
from monojax.sae.config import SAEConfig
from monojax.sae.dictionary import SAE
from monojax.sae.model import Wiring
from monojax.sae.recipes import make_recipe
from monojax.subjects import subject as subjects
from monojax.subjects.config import SubjectConfig, TransformerConfig
from monojax.subjects.subject import LoadedSubject
from monojax.subjects.transformer import Transformer
from monojax.text.tokens import Tokens

D, H, M, V = 16, 2, 24, 40
IDS = np.random.default_rng(3).integers(0, V, 11).tolist()
STRINGS = [f"t{i}" for i in range(V)]


def random_subject(n_layers=1):
  """A transformer with random weights, none of which is at a value that would hide a mistake."""
  model = Transformer(TransformerConfig(n_layers=n_layers, d_model=D, n_heads=H, d_mlp=M, vocab_size=V), jnp.float32)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
  rng = np.random.default_rng(1)
  draw = lambda path, leaf: jnp.asarray(float("gain" in str(path[-1])) + rng.normal(0, 0.3, leaf.shape), jnp.float32)
  return LoadedSubject(model, jax.tree.map_with_path(draw, shapes), 16)


def dictionary(width, site, n_features=20):
  config = SAEConfig(recipe="tm2023", n_features=n_features).resolved()
  model = make_recipe(config, Wiring((width,), (0,), (0,)), jnp.float32).model
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, width))))["params"]
  rng = np.random.default_rng(6)
  params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32), shapes)
  return SAE(config, model, params, (site,))


def activations(subject, sae, ids):
  """The features' activations on the last token."""
  run = jax.jit(lambda params, ids_1T: subject.model.apply({"params": params}, ids_1T, wanted=sae.reads)[1])
  return sae.encode(np.asarray(run(subject.params, np.array([ids]))[sae.reads[0]])[0, -1:])[0]


def one_layer(p, e_TD):
  """The transformer of one layer in float64 from embeddings: what `weights_by_hand` needs of it."""
  b = p["layer_0"]
  scale = lambda x_TD: np.sqrt(np.square(x_TD - x_TD.mean(-1, keepdims=True)).mean(-1, keepdims=True) + 1e-5)
  norm = lambda x, gain, bias: (x - x.mean(-1, keepdims=True)) / scale(x) * gain + bias
  n, width = len(e_TD), D // H
  u = norm(e_TD, b["gain_attn_D"], b["bias_attn_D"])
  q, k, v = (part.reshape(n, H, width) for part in np.split(u @ b["W_qkv_DE"], 3, axis=1))
  angle = np.arange(n)[:, None] * 1e4 ** (-np.arange(0, width, 2) / width)
  turn = lambda x: np.concatenate([x[..., :width // 2] * np.cos(angle)[:, None] - x[..., width // 2:] * np.sin(
      angle)[:, None], x[..., width // 2:] * np.cos(angle)[:, None] + x[..., :width // 2] * np.sin(angle)[:, None]], -1)
  scores = np.einsum("qhk,shk->hqs", turn(q), turn(k)) / np.sqrt(width)
  scores[:, ~np.tri(n, dtype=bool)] = -np.inf
  pattern = np.exp(scores - scores.max(-1, keepdims=True))
  pattern /= pattern.sum(-1, keepdims=True)
  mid = e_TD + np.einsum("hqs,shk->qhk", pattern, v).reshape(n, D) @ b["W_o_ED"]
  hidden = np.maximum(norm(mid, b["gain_mlp_D"], b["bias_mlp_D"]) @ b["W_in_DM"] + b["b_in_M"], 0)
  resid = mid + hidden @ b["W_out_MD"] + b["b_out_D"]
  return {"pattern": pattern, "mid": mid, "hidden": hidden, "resid": resid, "scale": scale,
          "logits": norm(resid, p["gain_D"], p["bias_D"]) @ p["W_unembed_DV"]}


def numbers(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def pre_activation(sae, hidden_M, feature):
  p = numbers(sae.params)
  return (hidden_M - p["b_dec_O"]) @ p["W_enc_MF"][:, feature] + p["b_enc_F"][feature]


@pytest.fixture(scope="module")
def made():
  """(subject, dictionary of its MLP, a feature that fires on the last of IDS, its circuit with all tokens listed)."""
  subject, sae = random_subject(), dictionary(M, "layer.0.mlp.hidden")
  p = numbers(subject.params)
  seen = one_layer(p, p["W_embed_VD"][IDS])
  feature = int(np.argmax([pre_activation(sae, seen["hidden"][-1], i) for i in range(sae.n_features)]))
  return subject, sae, feature, circuits.circuit(subject, sae, IDS, feature, STRINGS, n_listed=11)


def test_weights_of_sources_are_those_of_numpy_head_by_head(made):
  """Patterns, scales and the signs of the MLP's units are held as they are; all else is a product of matrices."""
  subject, sae, feature, found = made
  p = numbers(subject.params)
  b, e_TD = p["layer_0"], p["W_embed_VD"][IDS]
  seen = one_layer(p, e_TD)
  linear = lambda x, scale, gain: (x - x.mean(-1, keepdims=True)) / scale * gain
  value_TD = linear(e_TD, seen["scale"](e_TD), b["gain_attn_D"]) @ np.split(b["W_qkv_DE"], 3, axis=1)[2]
  def read(x_D):
    u_D = linear(x_D, seen["scale"](seen["mid"])[-1], b["gain_mlp_D"])
    return (u_D @ b["W_in_DM"] * (seen["hidden"][-1] > 0)) @ numbers(sae.params)["W_enc_MF"][:, feature]
  by_head = np.zeros((len(IDS), H))
  for t in range(len(IDS)):
    for h in range(H):
      part = slice(h * D // H, (h + 1) * D // H)
      by_head[t, h] = read(seen["pattern"][h, -1, t] * value_TD[t, part] @ b["W_o_ED"][part])
  past = np.zeros(len(IDS))
  past[-1] = read(e_TD[-1])
  assert found.layer == 0 and sorted(source.position for source in found.sources) == list(range(len(IDS)))
  for source in found.sources:
    np.testing.assert_allclose(source.by_head, by_head[source.position], atol=1e-4)
    assert source.past == pytest.approx(past[source.position], abs=1e-4)
    assert source.weight == pytest.approx(by_head[source.position].sum() + past[source.position], abs=2e-4)
    assert source.token == STRINGS[IDS[source.position]]
  expected = pre_activation(sae, seen["hidden"][-1], feature)
  assert found.pre_activation == pytest.approx(expected, abs=1e-4) == found.activation
  assert found.rest == pytest.approx(expected - by_head.sum() - past.sum(), abs=1e-3)
  sizes = [abs(source.weight) for source in found.sources]
  assert sizes == sorted(sizes, reverse=True)


def test_a_source_is_really_taken_out(made):
  subject, sae, feature, found = made
  p = numbers(subject.params)
  e_TD = p["W_embed_VD"][IDS]
  whole = pre_activation(sae, one_layer(p, e_TD)["hidden"][-1], feature)
  for source in found.sources[:4]:
    without_TD = e_TD.copy()
    without_TD[source.position] = 0
    left = pre_activation(sae, one_layer(p, without_TD)["hidden"][-1], feature)
    assert source.removed == pytest.approx(whole - left, abs=2e-4)


def test_raised_tokens_are_exact_at_the_norms_scale_and_agree_with_ablation(made):
  subject, sae, feature, found = made
  p = numbers(subject.params)
  seen = one_layer(p, p["W_embed_VD"][IDS])
  added_M = found.activation * sae.direction_FO[feature].astype(np.float64)
  added_D = added_M @ p["layer_0"]["W_out_MD"]
  weight_V = (added_D - added_D.mean()) / seen["scale"](seen["resid"])[-1] * p["gain_D"] @ p["W_unembed_DV"]
  weight_V -= weight_V.mean()
  left = dict(p, layer_0=dict(p["layer_0"]))
  left["layer_0"]["b_out_D"] = p["layer_0"]["b_out_D"] - added_D  # at the last position, the feature is gone
  change_V = seen["logits"][-1] - one_layer(left, p["W_embed_VD"][IDS])["logits"][-1]
  change_V -= change_V.mean()
  order = np.argsort(-change_V)[:len(found.raised)]
  assert [raised.token for raised in found.raised] == [STRINGS[i] for i in order]
  np.testing.assert_allclose([raised.weight for raised in found.raised], weight_V[order], atol=1e-4)
  np.testing.assert_allclose([raised.removed for raised in found.raised], change_V[order], atol=1e-4)
  assert np.corrcoef(weight_V, change_V)[0, 1] > 0.9


def test_a_frozen_subject_is_one_object_to_what_is_compiled(made):
  model = made[0].model
  assert model.frozen() == model.frozen() != model and hash(model.frozen()) == hash(model.frozen())


def test_what_precedes_an_mlp_is_a_sum_of_tokens_in_a_pretrained_transformer(tmp_path):
  """RMSNorms without biases and attention alone: all that is left is the dictionary's own bias, to the last digit."""
  pretrained_models.write(tmp_path / "model", dict(pretrained_models.CONFIGS["qwen3"], num_hidden_layers=1))
  subject = subjects.load_pretrained(SubjectConfig(weights=str(tmp_path / "model"), n_context=16))
  sae = dictionary(64, "layer.0.mlp.in")
  ids, strings = [int(i) for i in np.random.default_rng(0).integers(0, 96, 9)], [f"t{i}" for i in range(96)]
  found = None
  for feature in range(sae.n_features):  # the first one that fires
    with contextlib.suppress(InputError):
      found = found or circuits.circuit(subject, sae, ids, feature, strings, n_listed=9)
  feature = found.feature
  p = numbers(sae.params)
  own = p["b_enc_F"][feature] - p["b_dec_O"] @ p["W_enc_MF"][:, feature]
  assert found.rest == pytest.approx(own, abs=2e-3) and abs(found.pre_activation - own) > 0.1
  assert len(found.sources[0].by_head) == 4 and found.activation == pytest.approx(found.pre_activation, abs=1e-3)
  assert len(found.raised) == 9 and found.raised[0].weight > 0
  used_V = np.arange(96) % 2 == 0
  rarer = circuits.circuit(subject, sae, ids, feature, strings, used_V=used_V, n_listed=9)
  assert all(int(raised.token[1:]) % 2 == 0 for raised in rarer.raised)
  assert {raised for raised in found.raised if int(raised.token[1:]) % 2 == 0} <= set(rarer.raised)


@pytest.mark.slow
def test_weights_through_mlps_are_derivatives_of_the_frozen_subject():
  """In the second of two layers: what it reads at a token is grown a little, with scales and patterns set to stay."""
  subject, sae = random_subject(2), dictionary(D, "layer.1.resid")
  f_F = activations(subject, sae, IDS)
  found = circuits.circuit(subject, sae, IDS, int(f_F.argmax()), STRINGS, n_listed=11)
  assert found.layer == 1
  assert all(source.past == pytest.approx(0, abs=1e-4) for source in found.sources if source.position < 10)
  expected = derivative_by_hand(numbers(subject.params), sae, found.feature)
  for source in found.sources:
    assert source.weight == pytest.approx(expected[source.position], rel=1e-2, abs=2e-3)


def derivative_by_hand(p, sae, feature, step=1e-5):
  """(h(x_t (1 + step)) - h(x_t (1 - step))) / (2 step) for each token t, x being what layer 1 reads, with scales and
  patterns of the clean pass."""
  def layer(b, x_TD, held):
    scale = lambda x: np.sqrt(np.square(x - x.mean(-1, keepdims=True)).mean(-1, keepdims=True) + 1e-5)
    new = one_layer({"layer_0": b, "gain_D": p["gain_D"], "bias_D": p["bias_D"], "W_unembed_DV": p["W_unembed_DV"]},
                    x_TD) if held is None else None
    attn, pattern, mlp = held or (scale(x_TD), new["pattern"], scale(new["mid"]))
    norm = lambda x, s, name: (x - x.mean(-1, keepdims=True)) / s * b[f"gain_{name}_D"] + b[f"bias_{name}_D"]
    v = np.split(norm(x_TD, attn, "attn") @ b["W_qkv_DE"], 3, axis=1)[2].reshape(len(x_TD), H, D // H)
    mid = x_TD + np.einsum("hqs,shk->qhk", pattern, v).reshape(x_TD.shape) @ b["W_o_ED"]
    hidden = np.maximum(norm(mid, mlp, "mlp") @ b["W_in_DM"] + b["b_in_M"], 0)
    return mid + hidden @ b["W_out_MD"] + b["b_out_D"], (attn, pattern, mlp)
  x_TD, _ = layer(p["layer_0"], p["W_embed_VD"][IDS], None)
  _, held = layer(p["layer_1"], x_TD, None)
  h = lambda x_TD: pre_activation(sae, layer(p["layer_1"], x_TD, held)[0][-1], feature)
  grown = lambda t, by: x_TD * (1 + by * (np.arange(len(x_TD)) == t)[:, None])
  return [(h(grown(t, step)) - h(grown(t, -step))) / (2 * step) for t in range(len(x_TD))]


def test_a_circuit_is_a_graph_and_a_text(made):
  *_, feature, found = made
  graph = json.loads(json.dumps(found.to_dict()))
  ids = {node["id"] for node in graph["nodes"]}
  assert len(ids) == len(graph["nodes"]) == 11 + 1 + 11
  assert all(edge["from"] in ids and edge["to"] in ids for edge in graph["edges"])
  into = sum(edge["weight"] for edge in graph["edges"] if edge["to"] == f"feature {feature}")
  assert into + found.rest == pytest.approx(found.pre_activation, abs=1e-4)
  assert f"feature {feature} on 't" in str(found) and "head 1" in str(found) and "raises" in str(found)


@pytest.mark.parametrize("reads, writes", [((0, 1, 2), (0, 1, 2)), ((0,), (1, 2))])
def test_a_feature_that_writes_several_layers_is_removed_once(reads, writes):
  """What it adds to one residual stream is in the next one already; the tokens are those of an edit by hand."""
  subject, sites = random_subject(3), tuple(f"layer.{i}.resid" for i in range(3))
  config = SAEConfig(recipe="tm2023", n_features=20).resolved()
  model = make_recipe(config, Wiring((D, D, D), reads, writes), jnp.float32).model
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, len(reads) * D))))["params"]
  rng = np.random.default_rng(6)
  sae = SAE(config, model, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32), shapes),
            sites)
  f_F = np.asarray(make_encode(subject.model, sae.model, sae.reads)(subject.params, sae.params, np.array([IDS]))[0])[-1]
  feature = int(f_F.argmax())
  _, clean = subject.model.apply({"params": subject.params}, np.array([IDS]))
  parts = np.split(f_F[feature] * sae.direction_FO[feature], len(writes))
  without = {site: clean[site].at[0, -1].add(-part) for site, part in zip(sae.writes, parts, strict=True)}
  edit = {site: lambda _, x=x: x for site, x in without.items()}
  edited_V = np.asarray(subject.model.apply({"params": subject.params}, np.array([IDS]), edit)[0])[0, -1]
  found = circuits.circuit(subject, sae, IDS, feature, STRINGS)
  clean_V, without_V = interventions.next_token_logits(subject, sae, IDS, [interventions.Change(
      feature, "ablate", positions=(len(IDS) - 1, None))])
  np.testing.assert_allclose(without_V, edited_V, atol=1e-4)
  fall_V = (clean_V - clean_V.mean()) - (without_V - without_V.mean())
  np.testing.assert_allclose([raised.removed for raised in found.raised],
                             np.sort(fall_V)[::-1][:len(found.raised)], atol=1e-4)


def test_what_does_not_fire_has_no_circuit(made):
  subject, sae, feature, _ = made
  with pytest.raises(InputError, match="does not fire"):
    circuits.circuit(subject, sae, IDS, feature, STRINGS, Kept(first_position=11))


@pytest.mark.parametrize("prefix, expected", [((), [9, 1, 2, 3, 1]), ((7,), [7, 9, 1, 2, 3, 1])])
def test_the_strongest_example_is_where_the_tables_say(prefix, expected):
  tokens = Tokens("train", np.array([9, 5, 6, 7, 8, 9, 1, 2, 3, 1, 2, 3], np.uint16), np.array([0, 5]),
                  np.array([-1, -1], np.int32), (), 10, 9, 0, prefix=prefix)
  known = types.SimpleNamespace(example_position_FE=np.array([[9, 2], [-1, -1]]), has=lambda name: True)
  assert circuits.strongest_example(tokens, known, 0, 5 + len(prefix)) == expected
  with pytest.raises(InputError, match="feature=1: never fires"):
    circuits.strongest_example(tokens, known, 1, 5)
  with pytest.raises(InputError, match="monojax before 0.2"):
    circuits.strongest_example(tokens, types.SimpleNamespace(has=lambda name: False), 0, 5)


def test_the_sources_of_all_features_are_those_of_their_circuits(finished):
  run = monojax.load(finished[0])
  tables = run.features
  features = np.argsort(-tables.max_act_F)[:3].tolist()
  for feature in features:
    circuit = run.circuit(feature, n=8)
    assert tables.source_whole_F[feature] == pytest.approx(circuit.pre_activation, rel=1e-3, abs=1e-3)
    listed = [(len(circuit.tokens) - 1 - source.position, source.token, source.weight) for source in circuit.sources]
    ids_S = tables.source_ids_FS[feature][:len(listed)]
    assert [run._token_strings[i] for i in ids_S] == [token for _, token, _ in listed]
    assert tables.source_back_FS[feature][:len(listed)].tolist() == [back for back, _, _ in listed]
    np.testing.assert_allclose(tables.source_weights_FS[feature][:len(listed)], [w for *_, w in listed], atol=1e-3)
    assert (tables.source_ids_FS[feature][len(listed):] == -1).all()


@pytest.mark.slow
def test_the_circuit_of_a_runs_feature_is_at_its_strongest_example(finished):
  run = monojax.load(finished[0])
  feature = int(run.features.max_act_F.argmax())
  tokens = load.open_tokens(RunFolder(finished[0]), "train")
  ids = circuits.strongest_example(tokens, run.features, feature, run.n_context)
  encode = make_encode(run.subject, run.sae.model, run.reads, run.kept)
  padded_1T = np.array([ids + [0] * (run.n_context - len(ids))], np.int32)
  activation = float(encode(run.subject_params, run.sae.params, padded_1T)[0][len(ids) - 1, feature])
  assert activation == pytest.approx(float(run.features.max_act_F[feature]), rel=1e-4)
  text = "In the beginning God created"
  (strongest,) = run.top_features(text, token=4, n=1)
  found = run.circuit(strongest.feature, text, token=4, n=3)
  assert found.activation == pytest.approx(strongest.activation, rel=1e-3) and len(found.tokens) == 5
  assert len(found.sources) == len(found.raised) == 3
  with pytest.raises(InputError, match="token=99"):
    run.circuit(feature, text, token=99)
