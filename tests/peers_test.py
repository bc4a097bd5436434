"""Recipes against the peers' own modules, where those implement the same formula (pip install 'monojax[peers]')."""

import jax.numpy as jnp
import numpy as np
import pytest
from recipes_test import B, F, M, example, graded

from monojax.sae.config import SAEConfig
from monojax.sae.model import Wiring
from monojax.sae.recipes import make_recipe

pytestmark = pytest.mark.slow


def transplanted(module, names, params):
  """Our parameters in a torch module: {their name: (ours, whether transposed)}."""
  import torch
  own = dict(module.named_parameters())
  for theirs, (ours, transposed) in names.items():
    value = np.asarray(params[ours])
    with torch.no_grad():
      own[theirs].copy_(torch.from_numpy(np.array(value.T if transposed else value)))


def assert_gradients_agree(module, names, gradients, factor=1.0):
  """`factor` times our gradients are theirs, for every parameter that theirs has."""
  own = dict(module.named_parameters())
  for theirs, (ours, transposed) in names.items():
    expected = own[theirs].grad.numpy()
    found = factor * np.asarray(gradients[ours])
    np.testing.assert_allclose(found.T if transposed else found, expected,
                               atol=1e-5 * max(1.0, np.abs(expected).max()), err_msg=ours)


def recipe_and_rows(name, **settings):
  """(recipe, parameters that are no special case, rows)."""
  _, params, x_BM = example(name)
  config = SAEConfig(recipe=name, n_features=F, batch_rows=B, **settings)
  return make_recipe(config, Wiring((M,)), jnp.float32), params, x_BM


SAE_LENS = {"W_enc": ("W_enc_MF", False), "W_dec": ("W_dec_FO", False), "b_enc": ("b_enc_F", False),
            "b_dec": ("b_dec_O", False)}
TOPK = {"encoder.weight": ("W_enc_MF", True), "encoder.bias": ("b_enc_F", False), "decoder.weight": ("W_dec_FO", True),
        "b_dec": ("b_dec_O", False)}
GATED = {"encoder.weight": ("W_enc_MF", True), "decoder.weight": ("W_dec_FO", True), "decoder_bias": ("b_dec_O", False),
         "r_mag": ("r_F", False), "gate_bias": ("b_enc_F", False), "mag_bias": ("b_mag_F", False)}


def sae_lens_loss(sae, x_BM, coefficients):
  """The loss of one of SAELens' training modules, differentiated."""
  import torch
  from sae_lens.saes.sae import TrainStepInput
  output = sae.training_forward_pass(TrainStepInput(
      sae_in=torch.from_numpy(x_BM), coefficients=coefficients, dead_neuron_mask=None, n_training_steps=0,
      is_logging_step=False))
  output.loss.backward()
  return float(output.loss)


def test_apr2024_is_sae_lens_standard():
  saes = pytest.importorskip("sae_lens").saes
  recipe, params, x_BM = recipe_and_rows("apr2024", sparsity_coefficient=0.7)
  sae = saes.StandardTrainingSAE(saes.StandardTrainingSAEConfig(d_in=M, d_sae=F, apply_b_dec_to_input=False))
  transplanted(sae, SAE_LENS, params)
  (loss, _), gradients = graded(recipe, params, x_BM)
  np.testing.assert_allclose(loss, sae_lens_loss(sae, x_BM, {"l1": 0.7 * 0.7}), rtol=1e-5)
  assert_gradients_agree(sae, SAE_LENS, gradients)


def test_jumprelu_is_sae_lens_jumprelu_with_the_step_penalty():
  import torch
  saes = pytest.importorskip("sae_lens").saes
  recipe, params, x_BM = recipe_and_rows("jumprelu", sparsity_coefficient=0.3, bandwidth=0.6, threshold=0.4)
  sae = saes.JumpReLUTrainingSAE(saes.JumpReLUTrainingSAEConfig(
      d_in=M, d_sae=F, apply_b_dec_to_input=True, jumprelu_bandwidth=0.6, jumprelu_sparsity_loss_mode="step",
      pre_act_loss_coefficient=None))
  transplanted(sae, SAE_LENS, params)
  theta_F = np.exp(params["log_threshold_F"])
  with torch.no_grad():
    sae.threshold.copy_(torch.from_numpy(theta_F))
  (loss, _), gradients = graded(recipe, params, x_BM)
  np.testing.assert_allclose(loss, sae_lens_loss(sae, x_BM, {"l0": 0.7 * 0.3}), rtol=1e-5)
  assert_gradients_agree(sae, SAE_LENS, gradients)
  expected_F = theta_F * sae.threshold.grad.numpy()  # theirs learns the threshold itself, ours its logarithm
  np.testing.assert_allclose(gradients["log_threshold_F"], expected_F, atol=1e-5 * np.abs(expected_F).max())


@pytest.mark.parametrize("name", ["topk", "batchtopk"])
def test_the_topk_family_is_dictionary_learnings_but_for_a_constant(name):
  """Theirs divides the squared error by the rows, ours by the batch's variance."""
  import torch
  pytest.importorskip("dictionary_learning")
  from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
  from dictionary_learning.trainers.top_k import TopKTrainer
  recipe, params, x_BM = recipe_and_rows(name, k=4, aux_coefficient=0.0)
  trainer = {"topk": TopKTrainer, "batchtopk": BatchTopKTrainer}[name](
      steps=10**4, activation_dim=M, dict_size=F, k=4, layer=0, lm_name="none", device="cpu")
  transplanted(trainer.ae, TOPK, params)
  expected = trainer.loss(torch.from_numpy(x_BM), step=0)
  expected.backward()
  (loss, _), gradients = graded(recipe, params, x_BM)
  factor = np.square(x_BM - x_BM.mean(0)).sum() / B
  np.testing.assert_allclose(factor * loss, float(expected), rtol=1e-5)
  assert_gradients_agree(trainer.ae, TOPK, gradients, factor)


def test_gated_is_dictionary_learnings():
  import torch
  pytest.importorskip("dictionary_learning")
  from dictionary_learning.trainers.gdm import GatedSAETrainer
  recipe, params, x_BM = recipe_and_rows("gated", sparsity_coefficient=0.6)
  trainer = GatedSAETrainer(steps=10**4, activation_dim=M, dict_size=F, layer=0, lm_name="none", device="cpu",
                            l1_penalty=0.7 * 0.6, warmup_steps=0, sparsity_warmup_steps=None)
  transplanted(trainer.ae, GATED, params)
  expected = trainer.loss(torch.from_numpy(x_BM), step=0)
  expected.backward()
  (loss, _), gradients = graded(recipe, params, x_BM)
  np.testing.assert_allclose(loss, float(expected), rtol=1e-5)
  assert_gradients_agree(trainer.ae, GATED, gradients)
