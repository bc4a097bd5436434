"""Fidelity by document against full forward passes in NumPy, and intervals against what theory says of them."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analysis_test import SITE, fake_tokens, pair, useful  # noqa: F401  (pair is a fixture)
from tiny_run import run

from monojax.activations.kept import Kept
from monojax.analysis import by_document
from monojax.analysis.config import FidelityConfig
from monojax.subjects.sample import sample

KEPT = Kept(first_position=2)
CONFIG = FidelityConfig(n_tokens=600, n_samples=3, prompt_tokens=4, sample_tokens=20, seed=3)


def log_softmax(logits):
  z = np.asarray(logits, np.float64)
  z = z - z.max(-1, keepdims=True)
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.mark.parametrize("kept", [Kept(), KEPT])
def test_sums_agree_with_whole_passes_document_by_document(pair, kept, monkeypatch):  # noqa: F811
  subject, sae = useful(pair)
  rng = np.random.default_rng(0)
  mean_O, sample_RO = rng.random(24).astype(np.float32), rng.random((50, 24)).astype(np.float32)
  tokens = fake_tokens()
  monkeypatch.setattr(by_document, "contexts_per_batch", lambda _: 7)  # the last batch is not full
  found = by_document.document_losses(subject, sae, mean_O, sample_RO, tokens, CONFIG, kept)

  context_C = tokens.choose(11, 600, 3)
  row_CT = np.random.default_rng([3, 1]).integers(50, size=(len(context_C), 10))
  tokens_CU = tokens.context(context_C, 11)
  apply = lambda edit: subject.model.apply({"params": subject.params}, tokens_CU[:, :-1], edit)
  clean_CTV, sites = apply(None)
  x_hat, _ = sae.model.apply({"params": sae.params}, np.asarray(sites[SITE]).reshape(-1, 24))
  kept_CT1 = np.broadcast_to((np.arange(10) >= kept.first_position)[None, :, None], (len(context_C), 10, 1))
  values = {"spliced": np.asarray(x_hat).reshape(-1, 10, 24), "zero": np.zeros((1, 1, 24), np.float32),
            "mean": mean_O[None, None], "resample": sample_RO[row_CT]}
  log_p = log_softmax(clean_CTV)
  loss = lambda log_q: -np.take_along_axis(log_q, tokens_CU[:, 1:, None], 2)[..., 0]
  position_CT = np.asarray(context_C)[:, None] * 11 + np.arange(10)  # contexts of 11 tokens lie side by side
  np.testing.assert_array_equal(tokens.tokens_N[position_CT], tokens_CU[:, :-1])
  document_CT, counted_CT = np.searchsorted(tokens.start_D, position_CT, side="right") - 1, kept_CT1[..., 0]
  documents = sorted(set(document_CT[counted_CT].tolist()))
  by = lambda loss_CT: [loss_CT[(document_CT == d) & counted_CT].sum() for d in documents]
  assert found.document_J.tolist() == documents
  assert found.n_tokens_J.tolist() == by(np.ones(counted_CT.shape)) and found.n_tokens_J.sum() == counted_CT.sum()
  assert found.domain_J.tolist() == [d % 2 for d in documents]
  np.testing.assert_allclose(found.ce_J["clean"], by(loss(log_p)), rtol=1e-4)
  for name, value in values.items():
    edit = {SITE: lambda a, value=value: jnp.where(kept_CT1, jnp.broadcast_to(jnp.asarray(value), a.shape), a)}
    log_q = log_softmax(apply(edit)[0])
    np.testing.assert_allclose(found.ce_J[name], by(loss(log_q)), rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(found.kl_J[name], by((np.exp(log_p) * (log_p - log_q)).sum(-1)), rtol=1e-3, atol=1e-4,
                               err_msg=name)


def made_losses(n_documents=400, seed=0):
  """Documents of 100 tokens whose mean losses are drawn: 2 + noise clean, 3 + noise zeroed, and so on."""
  rng = np.random.default_rng(seed)
  draw = lambda mean: 100 * (mean + rng.normal(size=n_documents) * 0.5)
  return by_document.DocumentLosses(
      np.arange(n_documents), np.arange(n_documents) % 3 - 1, np.full(n_documents, 100),
      {"clean": draw(2), "spliced": draw(2.2), "zero": draw(6), "mean": draw(4), "resample": draw(5)},
      {"spliced": draw(1), "zero": draw(4), "mean": draw(2), "resample": draw(3)})


def test_intervals_are_as_wide_as_theory_says():
  losses = made_losses()
  figures = by_document.with_intervals(losses, 2000)
  standard_error = np.std(losses.ce_J["clean"] / 100) / 20
  assert figures["ce_clean"] == pytest.approx((losses.ce_J["clean"] / 100).mean())
  assert figures["ce_clean_high"] - figures["ce_clean_low"] == pytest.approx(2 * 1.96 * standard_error, rel=0.1)
  assert figures["ce_clean_low"] < figures["ce_clean"] < figures["ce_clean_high"]
  assert figures["ce_recovered_zero"] == pytest.approx((6 - 2.2) / 4, abs=0.05)
  assert figures["ce_recovered_resample_low"] < 2.8 / 3 < figures["ce_recovered_resample_high"]
  assert figures["kl_recovered_mean"] == pytest.approx(0.5, abs=0.05)
  again = by_document.with_intervals(losses, 2000)
  assert again == figures and by_document.with_intervals(losses, 2000, seed=1) != figures
  for few in (by_document.with_intervals(losses.of(np.array([5])), 100), by_document.with_intervals(losses, 0)):
    assert list(few) == list(figures)  # rows of one table have the same columns
    assert {name for name, value in few.items() if value is None} == {
        name for name in figures if name.endswith(("_low", "_high"))}


def test_a_domain_has_the_figures_of_its_documents_alone():
  losses = made_losses()
  rows = by_document.by_domain(losses, ["one", "two"], 100)
  assert [(row["domain"], row["documents"], row["tokens"]) for row in rows] == [
      ("", 134, 13400), ("one", 133, 13300), ("two", 133, 13300)]
  assert rows[1]["ce_clean"] == pytest.approx(losses.ce_J["clean"][1::3].sum() / 13300)
  harmless = dataclasses.replace(losses, ce_J={**losses.ce_J, "zero": losses.ce_J["clean"]})
  found = by_document.with_intervals(harmless, 50)
  assert found["ce_recovered_zero"] is None and found["ce_recovered_zero_low"] is None
  assert found["ce_recovered_mean_low"] <= found["ce_recovered_mean"] <= found["ce_recovered_mean_high"]


def test_continuations_are_drawn_from_the_spliced_subject(pair):  # noqa: F811
  subject, sae = useful(pair)
  tokens = fake_tokens()
  found = by_document.continuations(subject, sae, tokens, dataclasses.replace(CONFIG, temperature=0.0))
  assert [text.by for text in found] == ["text", "subject", "spliced"] * 3
  for whole, own, spliced in zip(found[::3], found[1::3], found[2::3], strict=True):
    assert whole.prompt == own.prompt == spliced.prompt and len(whole.prompt) == 4
    assert len(whole.ids) == len(own.ids) == len(spliced.ids) == 6  # the context has ten
    inputs_1T = np.asarray([[*spliced.prompt, *spliced.ids]])  # causal: one pass tells what came after each beginning
    clean_1TV, sites = subject.model.apply({"params": subject.params}, inputs_1T)
    x_hat, _ = sae.model.apply({"params": sae.params}, sites[SITE][0])
    logits, _ = subject.model.apply({"params": subject.params}, inputs_1T, {SITE: lambda a, v=x_hat: v[None]})
    assert np.asarray(logits[0, 3:-1].argmax(-1)).tolist() == spliced.ids  # greedily
    assert own.ids == sample(subject, own.prompt, 6, jax.random.key(0), 0.0)[4:]
    log_p = log_softmax(clean_1TV)[0]
    assert spliced.loss == pytest.approx(-np.mean([log_p[3 + i, t] for i, t in enumerate(spliced.ids)]), rel=1e-4)


def test_the_command_leaves_tables_that_agree_with_the_stage(finished, tmp_path):
  workdir = shutil.copytree(finished[0], tmp_path / "run")
  done = run("fidelity", workdir, "--n_tokens=3000", "--n_draws=50", "--n_samples=2", "--sample_tokens=5")
  assert done.returncode == 0, done.stderr
  assert "cross-entropy" in done.stdout and "by domain" in done.stdout and "sampled, spliced" in done.stdout
  found = json.loads((workdir / "fidelity" / "fidelity.json").read_text())
  figures = found["figures"]
  assert sum(row["tokens"] for row in found["domains"]) == figures["tokens"]
  assert figures["ce_clean_low"] <= figures["ce_clean"] <= figures["ce_clean_high"]
  assert figures["kl_spliced"] < figures["kl_zero"] and len(found["continuations"]) == 6
  assert (workdir / "fidelity" / "domains.csv").read_text().startswith("domain,documents,tokens,ce_clean")
