"""End-to-end training: the divergence of the subject that a reconstruction is spliced into, in the loss of any recipe."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
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
HIDDEN, STREAM = "layer.1.mlp.hidden", "layer.1.resid"
SMALL = dict(n_features=40, n_steps=12, scan_steps=3, checkpoint_every_steps=6, start_rows=128, learning_rate=3e-3,
             dead_window_steps=50, code="dense")


def tokens_of(seed, prefix=()):
  ids_N = np.random.default_rng(seed).integers(0, V, N_CONTEXTS * T).astype(np.uint16)
  return Tokens("train", ids_N, np.arange(0, len(ids_N), 37), np.zeros(30, np.int32), ("a",), V, 0, len(ids_N), prefix,
                (5, 6, 7))


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
  """{name: subject}: one that is trained here, with sharper predictions than random weights give, and pretrained ones."""
  model = Transformer(TransformerConfig(n_layers=3, d_model=16, n_heads=2, d_mlp=24, vocab_size=V))
  params = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
  params = jax.tree.map(lambda leaf: 2 * leaf if leaf.ndim == 2 else leaf, params)
  found = {"own": LoadedSubject(model, params, T)}
  for name in ("gemma2", "gpt2"):
    folder = tmp_path_factory.mktemp(name)
    pretrained_models.write(folder, pretrained_models.CONFIGS[name])
    found[name] = load_pretrained(SubjectConfig(weights=str(folder), n_context=T))
  return found


def contexts_of(subject, writes, n_contexts=4, sites=None, n_devices=1, n_parts=1, seed=0, tokens=None, **settings):
  """`Contexts` of a subject, with batches of some contexts."""
  tokens = tokens or tokens_of(1)
  config = HarvestConfig(source="stream", **{"first_position": 0, **settings})
  origin = Origin(config, "", "", lambda sites, mesh: subject, lambda: tokens)
  rows = n_contexts * (T - max(config.first_position, len(tokens.prefix)))
  return Contexts(origin, sites or writes, writes, Order(rows, 100, seed), n_parts,
                  meshes.make_mesh(meshes.MeshConfig(data=n_devices)))


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
    ("own", (HIDDEN,), 0, ()), ("own", (STREAM, "layer.2.attn.out"), 3, ()), ("own", ("final.in",), 0, ()),
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
  _, sites = subject.model.apply({"params": subject.params}, tokens_CT)
  clean_CTO = np.concatenate([sites[site] for site in writes], axis=-1)
  np.testing.assert_allclose(x_BO.reshape(6, len(counted), -1), clean_CTO[:, counted.start:], atol=1e-5)
  assert float(contexts.divergence(contexts.params, x_BO, (tokens_CT, at_CR, last))) < 1e-6

  y_BO = x_BO + 0.7 * np.random.default_rng(0).normal(size=x_BO.shape) * x_BO.std()
  found, gradient_BO = jax.jit(jax.value_and_grad(contexts.divergence, argnums=1))(
      contexts.params, y_BO, (tokens_CT, at_CR, last))
  counts_CT = jnp.broadcast_to(jnp.arange(T) >= counted.start, tokens_CT.shape)
  whole = lambda y_BO: jnp.pad(y_BO.reshape(6, len(counted), -1), ((0, 0), (counted.start, 0), (0, 0)))
  expected, expected_BO = jax.value_and_grad(
      lambda y_BO: by_hand(subject, writes, tokens_CT, counts_CT, whole(y_BO)))(y_BO)
  assert expected > 0.01
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  np.testing.assert_allclose(gradient_BO, expected_BO, atol=1e-4 * np.abs(expected_BO).max())


def test_special_tokens_stay_as_they_are(subjects):
  contexts = contexts_of(subjects["own"], (HIDDEN,), 1, skip_special=True)
