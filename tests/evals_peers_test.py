"""A dictionary's figures equal those of SAELens' `run_evals` (6.54) on the same model, tokens and dictionary (extra
`peers`).

Both read the same files: a Hugging Face folder of random weights, which TransformerLens holds without centring or
folding, and a folder that `monojax.interop.write` makes of a dictionary that was trained on the model. The text is
drawn from the model, so that wiping a site out raises its loss. Figures agree to 1e-4 of themselves once what follows
is undone; each of these has a test, or is undone in one.

* SAELens reads contexts of a fixed length U. Its losses are of U - 1 positions, since the last has no next token in
  the context, its other figures of all U. Ours are all of the T positions of a context of T + 1 tokens. So U = T + 1
  gives its losses, and U = T, without the last token of each context, the others.
* `mse` is a sum over columns, ours a mean.
* Its ablation with special tokens left out still sets *every* position to 0, and only its mean leaves them out; the
  spliced run leaves them as they are. Ours leaves them as they are in both.
* It can leave out tokens, not positions. The first position can be left out where a token of its own stands there.
* `exclude_special_tokens=True` stands for the tokenizer's BOS, EOS, PAD and SEP (and the first token of a decoder);
  `skip_special` for every token marked special.
* The losses are of the first batches of the data set, the other figures of the batches *after* them: its
  `reset_input_dataset` does not go back to the start. They are of the same text only where the losses have used all.
* `ce_loss_score` is a number also where the ablation does not raise the loss; ours is None there.
* `l2_ratio` takes |x_hat| itself at rows x shorter than 1e-4; ours leaves rows of zeros out.
* `explained_variance` subtracts sums of squares about zero, which it adds up in float32 within a batch: of rows whose
  mean is large, few digits are left. `explained_variance_legacy` is another formula.
* A transcoder is measured, and its output spliced in, at the site that it *reads*.
"""

import dataclasses
import functools
import importlib.util
import json
import os
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pretrained_models
import pytest
from safetensors.numpy import load_file, save_file

import monojax
from monojax import interop
from monojax.activations.kept import EVERY, Kept
from monojax.analysis.fidelity import fidelity
from monojax.sae.config import SAEConfig
from monojax.sae.model import Wiring
from monojax.sae.recipes import make_recipe
from monojax.subjects.loss import divergence, next_token_loss
from monojax.subjects.pretrained.weights import load_params, open_weights
from monojax.subjects.sample import sample
from monojax.subjects.subject import LoadedSubject
from monojax.text.tokens import Tokens
from monojax.variance import joined, share_unexplained, spread

pytestmark = pytest.mark.slow
if importlib.util.find_spec("sae_lens"):  # which reads them when it is imported
  os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "WANDB_MODE": "disabled"}
torch = pytest.importorskip("torch")
sae_lens = pytest.importorskip("sae_lens")
C, T = 24, 48  # contexts, positions of each that are measured
BOS, MARK = 0, 7  # tokens that some tests leave out
CASES = [("gpt2", "layer.1.resid", "topk", {"k": 12}), ("gpt2", "layer.1.mlp.hidden", "jumprelu", {}),
         ("neox", "layer.1.resid", "gated", {}), ("neox", "layer.0.mlp.hidden", "tm2023", {})]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case[:3]), indirect=True)
one_case = pytest.mark.parametrize("case", CASES[:1], ids=lambda case: " ".join(case[:3]), indirect=True)


@dataclasses.dataclass
class Case:
  """A subject, a dictionary of one of its sites, and both as SAELens has them."""
  subject: LoadedSubject
  sae: monojax.SAE
  model: object  # TransformerLens'
  folder: str  # the dictionary, for SAELens
  tokens_CU: np.ndarray


def hooked(folder):
  """The model in a Hugging Face folder as TransformerLens', whose weights stay as they are."""
  from transformer_lens import HookedTransformer, HookedTransformerConfig
  from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights, convert_neox_weights
  from transformers import AutoModelForCausalLM
  theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
  said = json.loads((folder / "config.json").read_text())
  sizes = dict(d_head=16, n_heads=4, d_model=64, n_layers=3, n_ctx=128, d_vocab=96, eps=1e-5, device="cpu",
               normalization_type="LN", default_prepend_bos=False)
  if said["model_type"] == "gpt2":
    config, convert = dict(sizes, d_mlp=256, act_fn="gelu_new"), convert_gpt2_weights
  else:
    config = dict(sizes, d_mlp=96, act_fn="gelu", parallel_attn_mlp=True, positional_embedding_type="rotary",
                  rotary_dim=4, rotary_adjacent_pairs=False)
    convert = convert_neox_weights
  config = HookedTransformerConfig(**config)
  model = HookedTransformer(config)
  model.load_and_process_state_dict(convert(theirs, config), fold_ln=False, center_writing_weights=False,
                                    center_unembed=False, fold_value_biases=False)
  return model.eval()


def subject_of(folder, n_context=T):
  return LoadedSubject(*load_params(open_weights(str(folder)), jnp.float32), n_context)


def written_by(subject, n_contexts, temperature=0.5):
  """Contexts of T + 1 tokens behind a BOS, (C, U), that the subject writes; below 0, the opposite of what it would."""
  subject = dataclasses.replace(subject, n_context=T + 1)
  return np.asarray([sample(subject, [BOS], T, jax.random.key(i), temperature) for i in range(n_contexts)], np.int32)


def rows_of(subject, tokens_BT, site):
  """Activations at a site, (N, M)."""
  found = subject.model.apply({"params": subject.params}, jnp.asarray(tokens_BT), wanted=(site,))[1][site]
  return np.asarray(found, np.float32).reshape(-1, found.shape[-1])


def for_sae_lens(sae, folder):
  interop.write(sae, folder, "sae_lens", metadata={"context_size": T, "prepend_bos": False})
  return str(folder)


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
  """The function family -> (subject, TransformerLens' model, text)."""
  @functools.cache
  def made(family):
    folder = tmp_path_factory.mktemp("model")
    pretrained_models.write(folder, pretrained_models.CONFIGS[family])
    subject = subject_of(folder)
    return subject, hooked(folder), written_by(subject, 2 * C)
  return made


@pytest.fixture(scope="module")
def case(request, model_of, tmp_path_factory):
  family, site, recipe, settings = request.param
  subject, model, text_CU = model_of(family)
  sae = monojax.train(rows_of(subject, text_CU[C:, :-1], site), recipe, n_features=160, n_steps=300, **settings)
  sae = dataclasses.replace(sae, sites=(site,))
  return Case(subject, sae, model, for_sae_lens(sae, tmp_path_factory.mktemp("sae") / "sae"), text_CU[:C])


def ours(case, tokens_CU, kept=EVERY, **changed):
  """Our figures of contexts with the token that follows each."""
  tokens = Tokens("val", tokens_CU.reshape(-1).astype(np.uint16), np.zeros(1, np.int64), np.zeros(1, np.int32), ("a",),
                  96, BOS, tokens_CU.size)
  subject = dataclasses.replace(case.subject, n_context=tokens_CU.shape[1] - 1)
  mean_O = np.zeros(sum(subject.model.site_widths[name] for name in case.sae.writes), np.float32)
  return fidelity(subject, case.sae, mean_O, tokens, 0, kept=kept, **changed)


def theirs(case, tokens_CT, exclude=False, loss_batches=None, other_batches=None, batch=8):
  """(figures, figures of features) of SAELens; by default each batch of the contexts is used once for each."""
  from datasets import Dataset
  from sae_lens.evals import get_eval_everything_config, run_evals
  from sae_lens.training.activation_scaler import ActivationScaler
  from sae_lens.training.activations_store import ActivationsStore
  whole = len(tokens_CT) // batch
  config = get_eval_everything_config(batch, loss_batches or whole, other_batches or whole)
  sae = sae_lens.SAE.load_from_disk(case.folder, device="cpu")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    store = ActivationsStore.from_sae(case.model, sae, Dataset.from_dict({"tokens": tokens_CT.tolist()}),
                                      context_size=tokens_CT.shape[1], streaming=False, total_tokens=1)
    groups, features = run_evals(sae, store, case.model, ActivationScaler(), config, exclude_special_tokens=exclude)
  return {name: value for group in groups.values() for name, value in group.items()}, features


# (our figure, SAELens' key)
LOSSES = (("ce_clean", "ce_loss_without_sae"), ("ce_spliced", "ce_loss_with_sae"))
ABLATED_LOSSES = (("ce_zero", "ce_loss_with_ablation"), ("ce_recovered_zero", "ce_loss_score"))
ROWS = (("l0", "l0"), ("l1", "l1"), ("explained_variance", "explained_variance"), ("l2_ratio", "l2_ratio"))
OTHERS = (*ROWS, ("kl_spliced", "kl_div_with_sae"))
ABLATED_OTHERS = (("kl_zero", "kl_div_with_ablation"), ("kl_recovered_zero", "kl_div_score"))


def assert_equal(found, expected, pairs):
  """Figures agree to 1e-4 of themselves; L0 also if rounding lets one feature fire in one row more."""
  for name, key in pairs:
    within = 1.01 / (C * T) if name == "l0" else 1e-6
    assert found[name] == pytest.approx(expected[key], rel=1e-4, abs=within), f"{name}, {key}"


@each_case
def test_every_figure_is_theirs(case):
  found, width = ours(case, case.tokens_CU), case.sae.params["W_dec_FO"].shape[1]
  assert found["ce_clean"] + 0.05 < found["ce_spliced"] + 0.05 < found["ce_zero"] and found["n_tokens"] == C * T
  assert 0.2 < found["explained_variance"] < 0.99 and found["l0"] > 1 and found["kl_spliced"] > 1e-3
  assert_equal(found, theirs(case, case.tokens_CU)[0], LOSSES + ABLATED_LOSSES)
  figures, features = theirs(case, case.tokens_CU[:, :-1])
  assert_equal(found, figures, OTHERS + ABLATED_OTHERS)
  assert found["mse"] * width == pytest.approx(figures["mse"], rel=1e-4)
  density_F = np.asarray(features["feature_density"])
  assert found["heldout_alive_fraction"] == pytest.approx((density_F > 0).mean(), abs=1.01 / len(density_F))
  assert found["heldout_dense_features"] == pytest.approx((density_F > 0.1).sum(), abs=1)


def per_position(case, tokens_CU, edit=None):
  """Losses and divergences at each position, (C, T), of a subject with an edit."""
  logits = lambda edit: case.subject.model.apply({"params": case.subject.params}, tokens_CU[:, :-1], edit, wanted=())[0]
  changed = logits(edit)
  return np.asarray(next_token_loss(changed, tokens_CU[:, 1:])), np.asarray(divergence(logits(None), changed))


def wiped(case):
  return {case.sae.writes[0]: jnp.zeros_like}


@one_case
def test_their_losses_leave_out_the_last_position_and_other_figures_do_not(case):
  figures, _ = theirs(case, case.tokens_CU[:, :-1])
  ce_CT = per_position(case, case.tokens_CU)[0]
  assert figures["ce_loss_without_sae"] == pytest.approx(ce_CT[:, :-1].mean(), rel=1e-5)
  longer_CV = np.pad(case.tokens_CU, ((0, 0), (0, 1)), constant_values=5)  # the target of the last position, any token
  assert_equal(ours(case, longer_CV), theirs(case, case.tokens_CU)[0], OTHERS + ABLATED_OTHERS)


def scores(figures, ce_ablated, kl_ablated):
  """SAELens' scores of our figures, with other ones of the ablation."""
  return {"ce_zero": ce_ablated, "kl_zero": kl_ablated, "kl_recovered_zero": 1 - figures["kl_spliced"] / kl_ablated,
          "ce_recovered_zero": (ce_ablated - figures["ce_spliced"]) / (ce_ablated - figures["ce_clean"])}


def assert_equal_but_for_the_ablation(case, tokens_CU, kept, exclude):
  """All figures but the ablation's are theirs, and those are when every position is ablated, as SAELens does."""
  found, kept_CT = ours(case, tokens_CU, kept), kept.mask(tokens_CU[:, :-1])
  assert found["n_tokens"] == kept_CT.sum() <= C * (T - 1)
  longer, shorter = theirs(case, tokens_CU, exclude)[0], theirs(case, tokens_CU[:, :-1], exclude)[0]
  assert_equal(found, longer, LOSSES)
  assert_equal(found, shorter, OTHERS)
  ce_CT, kl_CT = per_position(case, tokens_CU, wiped(case))
  undone = scores(found, ce_CT[kept_CT].mean(), kl_CT[kept_CT].mean())
  assert_equal(undone, longer, ABLATED_LOSSES)
  assert_equal(undone, shorter, ABLATED_OTHERS)
  assert abs(found["kl_zero"] / undone["kl_zero"] - 1) > 1e-3  # so that there is something to undo


@each_case
def test_tokens_that_do_not_count(case):
  assert_equal_but_for_the_ablation(case, case.tokens_CU, Kept(0, (BOS, MARK)), [BOS, MARK])


@pytest.mark.parametrize("case", CASES[2:3], ids=["neox"], indirect=True)
def test_a_first_position_that_does_not_count(case):
  tokens_CU = np.where((case.tokens_CU == BOS) & (np.arange(T + 1) > 0), 1, case.tokens_CU)
  assert_equal_but_for_the_ablation(case, tokens_CU, Kept(1), [BOS])


@one_case
def test_special_tokens_by_the_tokenizer(case, monkeypatch):
  """BOS and EOS, and not the further special tokens."""
  monkeypatch.setattr(case.model, "tokenizer", types.SimpleNamespace(
      bos_token_id=BOS, eos_token_id=MARK, pad_token_id=None, additional_special_tokens_ids=[3], padding_side="right"))
  assert_equal_but_for_the_ablation(case, case.tokens_CU, Kept(0, (BOS, MARK)), True)


@one_case
def test_their_losses_and_other_figures_are_of_different_text(case):
  """The first 16 contexts give the losses and the 8 after them the rest, although SAELens resets its data set."""
  figures, _ = theirs(case, case.tokens_CU, loss_batches=2, other_batches=1)
  assert_equal(ours(case, case.tokens_CU[:16]), figures, LOSSES + ABLATED_LOSSES)
  figures, _ = theirs(case, case.tokens_CU[:, :-1], loss_batches=2, other_batches=1)
  assert_equal(ours(case, case.tokens_CU[16:]), figures, ROWS)
  assert_equal(ours(case, case.tokens_CU[:16]), figures, ABLATED_OTHERS)


@one_case
def test_their_score_is_a_number_where_wiping_helps(case):
  tokens_CU = written_by(case.subject, C, temperature=-0.5)
  found, figures = ours(case, tokens_CU), theirs(case, tokens_CU)[0]
  assert found["ce_zero"] < found["ce_clean"] and found["ce_recovered_zero"] is None
  assert figures["ce_loss_score"] == pytest.approx(scores(found, found["ce_zero"], 1.0)["ce_recovered_zero"], rel=1e-4)


@one_case
def test_their_legacy_explained_variance_is_another_formula(case):
  x = rows_of(case.subject, case.tokens_CU[:, :-1], case.sae.sites[0]).astype(np.float64)
  error_N = np.square(x - case.sae.decode(case.sae.encode(np.float32(x)))).sum(1)
  figures, _ = theirs(case, case.tokens_CU[:, :-1], batch=C)
  legacy = (1 - error_N / np.square(x - x.mean(0)).sum(1)).mean()
  assert figures["explained_variance_legacy"] == pytest.approx(legacy, rel=1e-4)
  assert abs(legacy - figures["explained_variance"]) > 1e-3


def test_rows_of_zeros(tmp_path):
  """SAELens takes |x_hat| itself where x is 0; ours leaves these rows out of the ratio."""
  folder, zero = tmp_path / "model", 5
  pretrained_models.write(folder, pretrained_models.CONFIGS["gpt2"])
  arrays = load_file(folder / "model.safetensors")
  arrays["transformer.wpe.weight"][:] = 0
  arrays["transformer.wte.weight"][zero] = 0
  save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
  subject = subject_of(folder)
  tokens_CU = written_by(subject, C, temperature=2.0)
  tokens_CU[:, 3::7] = zero
  x = rows_of(subject, tokens_CU[:, :-1], "embed")
  sae = dataclasses.replace(monojax.train(x, "tm2023", n_features=96, n_steps=100), sites=("embed",))
  case = Case(subject, sae, hooked(folder), for_sae_lens(sae, tmp_path / "sae"), tokens_CU)
  found, figures = ours(case, tokens_CU), theirs(case, tokens_CU[:, :-1])[0]
  assert_equal(found, figures, [pair for pair in OTHERS if pair[0] != "l2_ratio"])
  is_zero_N = ~x.any(1)
  assert is_zero_N.sum() == (tokens_CU[:, :-1] == zero).sum() > 0
  at_zeros = np.linalg.norm(sae.decode(sae.encode(x))[is_zero_N], axis=1).sum()
  undone = (found["l2_ratio"] * (~is_zero_N).sum() + at_zeros) / len(x)
  assert figures["l2_ratio"] == pytest.approx(undone, rel=1e-4) and abs(undone - found["l2_ratio"]) > 1e-3


@pytest.mark.parametrize("mean, theirs_within", [(3.0, 1e-5), (3000.0, None)])
def test_their_explained_variance_loses_digits_where_the_mean_is_large(mean, theirs_within):
  from sae_lens.evals import ExplainedVarianceCalculator
  rng = np.random.default_rng(0)
  x = (mean + rng.standard_normal((4096, 64))).astype(np.float32)
  y = (x + 0.5 * rng.standard_normal(x.shape)).astype(np.float32)
  error = np.square(x.astype(np.float64) - y).sum()
  truth = 1 - error / np.square(x - x.mean(0, dtype=np.float64)).sum()
  calculator, rows = ExplainedVarianceCalculator(), None
  for first in range(0, len(x), 512):
    part = slice(first, first + 512)
    calculator.add_batch(torch.from_numpy(y[part]), torch.from_numpy(x[part]))
    rows = joined(rows, spread(jnp.asarray(x[part])))
  assert 1 - share_unexplained(error, rows) == pytest.approx(truth, abs=1e-5)
  if theirs_within:
    assert calculator.compute() == pytest.approx(truth, abs=theirs_within)
  else:
    assert abs(calculator.compute() - truth) > 1e-3




def test_their_transcoders_are_measured_where_they_read(model_of, tmp_path):
  """Their output takes the place of the activation that they read, and is compared with it."""
  subject, model, text_CU = model_of("gpt2")
  reads, tokens_CU = "layer.0.resid", text_CU[:C]
  config = SAEConfig("tm2023", n_features=80)
  made = make_recipe(config, Wiring((64, 64), (0,), (1,)), np.float32).model
  params = made.init(jax.random.key(0), np.zeros((1, 64), np.float32))["params"]
  sae = monojax.SAE(config, made, params, (reads, "layer.1.mlp.out"))
  case = Case(subject, sae, model, for_sae_lens(sae, tmp_path / "sae"), tokens_CU)
  x = rows_of(subject, tokens_CU[:, :-1], reads)
  y = sae.decode(sae.encode(x))
  splice = {reads: lambda x_BTM: jnp.asarray(y).reshape(x_BTM.shape)}
  undone = {"ce_spliced": per_position(case, tokens_CU, splice)[0].mean(),
            "kl_spliced": per_position(case, tokens_CU, splice)[1].mean(),
            "explained_variance": 1 - np.square(x - y).sum() / np.square(x - x.mean(0)).sum()}
  found, shorter = ours(case, tokens_CU), theirs(case, tokens_CU[:, :-1])[0]
  assert_equal(undone, theirs(case, tokens_CU)[0], LOSSES[1:])
  assert_equal(undone, shorter, [pair for pair in OTHERS if pair[0] in undone])
  assert_equal(found, shorter, ROWS[:2])
  assert all(abs(found[name] - undone[name]) > 1e-3 for name in undone)
