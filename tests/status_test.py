"""The status of features against firings sorted one by one, and what each kind carries against dense products."""

import dataclasses

import numpy as np
import pytest
from analysis_test import fake_tokens, pair, sae_of, useful  # noqa: F401  (pair is a fixture)

from monojax.analysis import fidelity, status
from monojax.analysis.analyze import analyze
from monojax.analysis.codes import Codes
from monojax.analysis.config import AnalysisConfig
from monojax.analysis.tables import DEAD, FAINT, REGULAR, ULTRALOW

N, F, O = 5000, 80, 6


def planted():
  """(codes, dense f_NF, directions): features 0-9 fire weakly, 10 is rare but strong, 11 rare and weak, 12 dead."""
  rng = np.random.default_rng(0)
  f_NF = (rng.gamma(2, 1, (N, F)) * (rng.random((N, F)) < 0.05)).astype(np.float32)
  f_NF[:, :10] *= 0.01
  f_NF[:, 10:13] = 0
  f_NF[17, 10:12] = 3, 0.01
  direction_FO = rng.normal(size=(F, O)).astype(np.float32)
  direction_FO *= (rng.uniform(1, 2, F) / np.linalg.norm(direction_FO, axis=1))[:, None]
  feature_P, row_P = np.nonzero(f_NF.T)
  start_F = np.concatenate([[0], np.cumsum((f_NF > 0).sum(0))])
  return Codes(N, start_F, row_P.astype(np.int32), f_NF[row_P, feature_P]), f_NF, direction_FO


def test_planted_statuses():
  codes, _, direction_FO = planted()
  found_F = status.status_of(codes, direction_FO, AnalysisConfig(ultralow_density=1.0001 / N))
  assert found_F.dtype == np.int8
  np.testing.assert_array_equal(found_F, [FAINT] * 10 + [ULTRALOW, ULTRALOW, DEAD] + [REGULAR] * (F - 13))
  found_F = status.status_of(codes, direction_FO, AnalysisConfig(ultralow_density=0.9999 / N))
  assert found_F[10:13].tolist() == [REGULAR, FAINT, DEAD]  # rare is not faint


@pytest.mark.parametrize("part", (100, 1 << 20))
@pytest.mark.parametrize("share", (0.0, 1e-4, 0.01, 0.3, 0.9, 1.0))
def test_faint_features_have_weak_firings_alone(share, part, monkeypatch):
  monkeypatch.setattr(status, "_PART", part)
  codes, f_NF, direction_FO = planted()
  found_F = status.status_of(codes, direction_FO, AnalysisConfig(ultralow_density=0, faint_share=share))
  size_NF = f_NF.astype(np.float64) * np.linalg.norm(direction_FO, axis=1)
  upto, weak, bound = 0.0, 0.0, share * np.square(size_NF).sum() * (1 + 1e-9)
  for size in np.sort(size_NF[size_NF > 0]):
    upto += size**2
    if upto > bound:
      break
    weak = size
  np.testing.assert_array_equal(found_F == FAINT, (size_NF.max(0) <= weak * (1 + 1e-6)) & (size_NF.max(0) > 0))
  assert (found_F == FAINT).sum() >= {0.01: 10, 1.0: 79}.get(share, 0)
  variance_F = status.variance_share(codes, direction_FO)
  np.testing.assert_allclose(variance_F, np.square(size_NF).sum(0) / np.square(size_NF).sum(), rtol=1e-5)
  assert variance_F[found_F == FAINT].sum() <= share + 1e-6


def test_without_any_firing_all_are_dead():
  codes = Codes(9, np.zeros(4, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
  assert (status.status_of(codes, np.ones((3, 2)), AnalysisConfig()) == DEAD).all()
  assert (status.variance_share(codes, np.ones((3, 2))) == 0).all()


@pytest.fixture
def faithful(pair):  # noqa: F811
  """A subject, and a dictionary with one feature for each of its 24 neurons and 16 weak ones beside them."""
  subject, sae = useful(pair)
  rng = np.random.default_rng(5)
  params = {**sae.params, "b_dec_O": np.zeros(24, np.float32),
            "W_enc_MF": np.concatenate([np.eye(24), 0.02 * rng.normal(size=(24, 16))], axis=1).astype(np.float32),
            "W_dec_FO": np.concatenate([np.eye(24), np.eye(16, 24)]).astype(np.float32)}
  return subject, sae_of(sae.model, params)


def test_the_loss_share_of_each_kind(faithful):
  """Kinds of features by themselves, in another way: dictionaries whose other features have no directions."""
  subject, sae = faithful
  tokens = fake_tokens()
  status_F = np.where(np.arange(40) % 3 == 0, FAINT, np.where(np.arange(40) == 4, DEAD, REGULAR)).astype(np.int8)

  def loss(keep_F):
    params = {**sae.params, "W_dec_FO": sae.params["W_dec_FO"] * keep_F[:, None]}
    return fidelity.fidelity(subject, dataclasses.replace(sae, params=params), np.zeros(24), tokens, 500)["ce_spliced"]
  none, everything = loss(status_F < 0), loss(status_F >= 0)
  expected = {name: (none - loss(status_F == code)) / (none - everything)
              for name, code in (("regular", REGULAR), ("faint", FAINT))}
  config = AnalysisConfig(n_share_tokens=500)
  found, whole = status.loss_share(config, subject, sae, status_F, tokens)
  assert whole == pytest.approx(none - everything, rel=1e-3)
  assert none > everything and set(found) == set(expected)
  np.testing.assert_allclose([found[name] for name in expected], list(expected.values()), rtol=2e-3)
  assert status.loss_share(AnalysisConfig(n_share_tokens=0), subject, sae, status_F, tokens) == ({}, None)


def test_a_whole_analysis_says_what_each_kind_carries(faithful):
  subject, sae = faithful
  config = AnalysisConfig(n_tokens=500, batch_contexts=8, min_token_count=1, detectors=(), n_share_tokens=300)
  tables = analyze(config, subject, sae, fake_tokens(), fake_tokens(), [str(i) for i in range(31)])
  rows = {row["status"]: row for row in tables.summary["statuses"]}
  assert {"regular", "faint"} <= set(rows) and sum(row["features"] for row in rows.values()) == 40
  assert sum(row["variance_share"] for row in rows.values()) == pytest.approx(1)
  assert (tables.status_F[24:] != REGULAR).all() and 0 < rows["faint"]["variance_share"] < 0.01
  assert rows["faint"]["max_act"] < rows["regular"]["max_act"]
  figures = tables.summary["figures"]
  for name, code in (("regular", REGULAR), ("faint", FAINT)):
    assert figures[f"{name}_variance_share"] == rows[name]["variance_share"]
    assert figures[f"{name}_ce_share"] == rows[name]["ce_share"]
    assert rows[name]["encoder_bias"] == np.median(tables.encoder_bias_F[tables.status_F == code])
  assert figures["faint_fraction"] == rows["faint"]["features"] / 40
  of_neurons_F, of_faint_F = np.abs(tables.ce_share_F[:24]), np.abs(tables.ce_share_F[24:])
  assert of_neurons_F.mean() > 5 * of_faint_F.mean() > 0
