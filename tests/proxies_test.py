"""Proxies against a loop over all beginnings of the text, correlations against NumPy's, and texts that lack scripts."""

import dataclasses

import numpy as np
import pytest

import monojax
from monojax.analysis import proxies, proxy_rows, scripts
from monojax.analysis.codes import Codes
from monojax.analysis.text import AnalysedText
from monojax.config import InputError

STRINGS = ["<|endoftext|>", " the", "the", "AC", "GT", "A", "Zm9v", "0f", "1", "سلام", " ال", "\\xd8", "\\xa7", "\n",
           "שלום", ".", "的", "\\xd9", "q"]
VALUES = scripts.bytes_of_tokens(STRINGS, (0,))


def text_of(token_N, n_context, domain_N=None, counts_N=None):
  token_N = np.asarray(token_N, np.int32)
  context_N = (np.arange(len(token_N)) // n_context).astype(np.int32)
  domain_N = np.zeros(len(token_N), np.int32) if domain_N is None else domain_N
  return AnalysedText(token_N, context_N, context_N.astype(np.int64), domain_N, counts_N)


def codes_of(f_NF):
  rows = [np.flatnonzero(f_N) for f_N in f_NF.T]
  return Codes(len(f_NF), np.concatenate([[0], np.cumsum([len(row_P) for row_P in rows])]),
               np.concatenate(rows).astype(np.int32),
               np.concatenate([f_N[row_P] for f_N, row_P in zip(f_NF.T, rows, strict=True)]).astype(np.float32))


def class_by_loops(text, name):
  """The score of a class at every token, from the definition: the sums from all beginnings are tried."""
  n_V = np.bincount(text.token_N, minlength=len(VALUES))
  allowed = {"base64": ("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", 64),
             "DNA": ("ACGT", 4)}[name]

  def ratio(v):
    characters = "\0" if v == 0 else STRINGS[v] if v not in (11, 12, 17) else "?"
    return (sum(np.log(1 / allowed[1] if c in allowed[0] else 1e-10) for c in characters)
            - np.log(max(n_V[v], 1) / n_V.sum()))
  ratios, found = [ratio(v) for v in range(len(VALUES))], []
  for n in range(text.n_rows):
    begin = np.flatnonzero(text.context_N == text.context_N[n])[0]
    sums = [sum(ratios[v] for v in text.token_N[k:n + 1]) for k in range(begin, n + (name != "DNA"))]
    found.append(float(bool(sums) and max(sums) > 0) if name == "DNA" else max(sums))
  return np.array(found)


def script_by_loops(text, wholes):
  """The score of a script by the definition. Of the tokens d8, a7 and d9, whose characters are Arabic, d8 a7 and d9 a7
  are whole characters; d8 and d9 end within one."""
  arabic = 9 in wholes
  follows = lambda n, first, second: (
      0 <= n < text.n_rows - 1 and text.token_N[n] in first and text.token_N[n + 1] in second
      and text.context_N[n] == text.context_N[n + 1])
  p_N = np.zeros(text.n_rows)
  for v in range(len(VALUES)):
    seen = np.flatnonzero(text.token_N == v)
    if v in (11, 17):
      p_N[seen] = arabic * np.mean([follows(n, (v,), (12,)) for n in seen] or [0])
    elif v == 12:
      joined = np.array([follows(n - 1, (11, 17), (12,)) for n in seen])
      p_N[seen] = arabic * np.where(joined, 1.0, joined.mean())
    else:
      p_N[seen] = v in wholes
  return np.maximum(np.log(np.maximum(p_N, 1e-10) / p_N.mean()), 0)


@pytest.fixture(scope="module")
def text():
  rng = np.random.default_rng(0)
  token_N = rng.integers(0, len(STRINGS) - 3, 600)  # no Han; the token \xd9 is always a part of a character
  token_N[[50, 51, 300, 303]] = 18  # so rare that it is likelier in base64
  token_N[::37], token_N[1::37] = 17, 12
  for start in range(10, 600, 60):
    token_N[start:start + 8] = rng.choice([3, 4, 5], 8)
    token_N[start + 20:start + 25] = rng.choice([6, 7, 8], 5)
  return text_of(token_N, 24, (np.arange(600) // 24 % 3).astype(np.int32))


def test_scores_are_the_largest_over_all_beginnings(text):
  made = proxies.make(text, VALUES, ["a", "b", "never", "c"])
  assert made.names[:6] == ("base64", "DNA", "hexadecimal", "binary", "Arabic", "Hebrew")
  assert made.names[-3:] == ("a", "b", "never") and {"c", "Thai", "Han"} <= set(made.left_out)
  found = np.concatenate([made.scores(text, *part) for part in proxies.whole_contexts(text, 100)])
  assert len(found) == 600
  for name in ("base64", "DNA", "Arabic", "Hebrew"):
    expected = (script_by_loops(text, {"Arabic": (9, 10), "Hebrew": (14,)}[name]) if name in ("Arabic", "Hebrew") else
                class_by_loops(text, name))
    np.testing.assert_allclose(found[:, made.names.index(name)], expected, rtol=1e-4, atol=1e-4, err_msg=name)
    assert 0 < (expected > 0).mean() < 0.5
  np.testing.assert_array_equal(found[:, -2], np.arange(600) // 24 % 3 == 1)


def test_a_script_at_the_end_of_a_long_text_is_not_missed(monkeypatch):
  monkeypatch.setattr(proxies, "_SAMPLE_TOKENS", 200)
  token_N = np.repeat([0, 1], [500, 100])
  found = text_of(token_N, 20, np.repeat([0, 1], [500, 100]).astype(np.int32))
  sample_N = found.sample(100)
  assert np.unique(found.context_N[sample_N]).tolist() == [0, 6, 12, 18, 24] and len(sample_N) == 100
  assert found.sample(600).tolist() == list(range(600))
  made = proxies.make(found, [b"a", "漢".encode()], ["a", "b"])
  assert "Han" in made.names and "Han" not in made.left_out


def test_the_scripts_of_tokens_by_their_characters():
  values = [" ال".encode(), "،".encode(), b".", "א1".encode(), b" ", "é".encode(), "カナ".encode(), "漢".encode(), b""]
  names = list(scripts.SCRIPTS)
  found = [names[i] if i >= 0 else None for i in scripts.scripts_of(values)[0]]
  assert found == ["Arabic", "Arabic", None, None, None, None, "Kana", "Han", None]
  values = [b"", b" THE", b"X", b" the", b"the", b"The", b"\n ", b"42", b"a1", b"(!", b"\xd8", "的".encode(),
            b"don't", b" "]
  share_VL = scripts.script_shares(values, np.zeros(0, int), np.zeros(0, int))
  kinds, kind_names = scripts.kinds_of(values, share_VL)
  assert [kind_names[i] for i in kinds] == [
      "special tokens", "words in capitals", "single capital letters", "words in lower case",
      "parts of words in lower case", "capitalised words", "line breaks", "numbers", "letters with digits",
      "punctuation", "parts of characters", "Han script", "words with punctuation", "white space"]


def test_correlations_are_numpys_and_rows_that_do_not_count_are_left_out(text):
  rng = np.random.default_rng(1)
  f_NF = (rng.exponential(size=(600, 7)) * (rng.random((600, 7)) < 0.2)).astype(np.float32)
  f_NF[:, 3] = np.isin(text.token_N, (9, 10)) * (1 + rng.random(600))
  f_NF[:, 6] = 0
  x_NM = (rng.normal(size=(600, 5)) + 1000).astype(np.float32)
  x_NM[:, 4] = 2 * f_NF[:, 3] - 5
  counts_N = np.arange(600) % 24 > 0
  f_NF[~counts_N], x_NM[~counts_N] = 0, 0
  text = dataclasses.replace(text, counts_N=counts_N)
  meter = proxy_rows.Meter(text, VALUES, ["a", "b", "base64"], 7, 5)
  for start in range(0, 600, 96):
    part = slice(start, start + 96)
    row_P, feature_P = np.nonzero(f_NF[part])
    meter.add(row_P, feature_P, f_NF[part][row_P, feature_P], x_NM[part])
  score_NL = meter.proxies.scores(text, 0, 600)
  with np.errstate(invalid="ignore"):
    both = np.corrcoef(np.concatenate([f_NF, x_NM, score_NL, score_NL > 0], axis=1)[counts_N].astype(np.float64).T)
  n = score_NL.shape[1]
  np.testing.assert_allclose(meter.sums.of_features(), both[:7, 12:12 + n], atol=1e-6)
  np.testing.assert_allclose(meter.sums.of_features(above=True), both[:7, 12 + n:], atol=1e-6)
  np.testing.assert_allclose(meter.sums.of_neurons(), both[7:12, 12:12 + n], atol=1e-4)
  rows = {row["proxy"]: row for row in reversed(meter.rows(codes_of(f_NF)))}  # of equal names the first, the class
  row, is_arabic_N = rows["Arabic"], score_NL[:, meter.proxies.names.index("Arabic")] > 0
  fires_N = f_NF[:, 3] > 0
  assert row["feature"] == 3 and row["neuron"] == 4
  assert row["specificity"] == pytest.approx(is_arabic_N[fires_N].mean()) == 1
  specific = [f for f in range(7) if f_NF[:, f].any() and f_NF[is_arabic_N, f].sum() >= 0.5 * f_NF[:, f].sum()]
  together_N = f_NF[:, specific].sum(1)[counts_N].astype(np.float64)
  arabic = meter.proxies.names.index("Arabic")
  assert row["n_specific"] == len(specific) >= 1
  assert row["pearson_together"] == pytest.approx(np.corrcoef(together_N, score_NL[counts_N, arabic])[0, 1], abs=1e-6)
  assert "n_specific" not in rows["a"]
  domain = next(row for row in meter.rows(codes_of(f_NF)) if row["kind"] == "domain" and row["proxy"] == "base64")
  assert "n_specific" not in domain  # a domain of a class's name is a domain
  assert row["recall"] == pytest.approx(fires_N[is_arabic_N & counts_N].mean()) and row["recall"] < 1
  assert row["tokens"] == (is_arabic_N & counts_N).sum()
  assert sum(bin["tokens"] for bin in row["bins"]) == fires_N.sum()
  assert sum(bin["mass"] for bin in row["bins"]) == pytest.approx(1)
  bins, edges = rows["base64"]["bins"], [0.0, *(bin["to"] for bin in rows["base64"]["bins"])]
  value_N = f_NF[:, rows["base64"]["feature"]].astype(np.float64)
  is_base64_N = score_NL[:, 0] > 0
  for i, bin in enumerate(bins):  # by hand
    here_N = (value_N > edges[i]) & (value_N <= edges[i + 1]) if i else (value_N > 0) & (value_N < edges[1])
    assert abs(bin["tokens"] - here_N.sum()) <= 1
    if bin["tokens"] == here_N.sum() and here_N.any():
      assert bin["share"] == pytest.approx(is_base64_N[here_N].mean())
  printed = "\n".join(proxy_rows.lines(meter.rows(codes_of(f_NF)), meter.proxies.left_out))
  assert "Arabic" in printed and "domain: a" in printed and "left out" in printed and "Thai" in printed


def test_correlations_where_no_neuron_is_active_on_some_rows(text):
  rng = np.random.default_rng(3)
  f_NF = (rng.exponential(size=(600, 3)) * (rng.random((600, 3)) < 0.3)).astype(np.float32)
  x_NM = rng.exponential(size=(600, 4)).astype(np.float32)
  x_NM[rng.random(600) < 0.3] = 0
  meter = proxy_rows.Meter(text, VALUES, ["a", "b", "base64"], 3, 4, every=True)
  row_P, feature_P = np.nonzero(f_NF)
  meter.add(row_P, feature_P, f_NF[row_P, feature_P], x_NM)
  score_NL = meter.proxies.scores(text, 0, 600)
  with np.errstate(invalid="ignore"):
    both = np.corrcoef(np.concatenate([f_NF, x_NM, score_NL], axis=1).astype(np.float64).T)
  np.testing.assert_allclose(meter.sums.of_features(), both[:3, 7:], atol=1e-6)
  np.testing.assert_allclose(meter.sums.of_neurons(), both[3:7, 7:], atol=1e-4)


def test_a_text_without_scripts_and_domains_has_proxies_left_out_and_no_error():
  """As in a tiny run: one of all kinds, and tokens that are not known."""
  text = text_of([1, 2, 15, -1] * 10, 4, np.full(40, -1, np.int32))
  meter = proxy_rows.Meter(text, VALUES, ["a"], 2, 3)
  f_NF = np.zeros((40, 2), np.float32)
  f_NF[::4, 0] = 1
  row_P, feature_P = np.nonzero(f_NF)
  meter.add(row_P, feature_P, f_NF[row_P, feature_P], np.ones((40, 3), np.float32))
  rows = meter.rows(codes_of(f_NF))
  assert {row["kind"] for row in rows} <= {"characters"} and all(row["neuron"] is None for row in rows)
  assert set(meter.proxies.left_out) == {*scripts.SCRIPTS, "a"}
  assert proxy_rows.lines([])[0].startswith("no proxies")


def test_rows_in_another_order_give_the_same(text):
  """As those of a store, which are shuffled: row i of the store is row order[i] of the text."""
  rng = np.random.default_rng(2)
  f_NF = (rng.random((600, 3)) * (rng.random((600, 3)) < 0.3)).astype(np.float32)
  x_NM = rng.normal(size=(600, 2)).astype(np.float32)
  found = []
  for order in (None, rng.permutation(600)):
    meter = proxy_rows.Meter(text, VALUES, ["a", "b", "c"], 3, 2, order)
    for start in range(0, 600, 120):
      part = np.arange(600)[start:start + 120] if order is None else order[start:start + 120]
      row_P, feature_P = np.nonzero(f_NF[part])
      meter.add(row_P, feature_P, f_NF[part][row_P, feature_P], x_NM[part])
    found.append(meter.sums)
  np.testing.assert_allclose(found[0].of_features(), found[1].of_features(), atol=1e-6)
  np.testing.assert_allclose(found[0].of_neurons(), found[1].of_neurons(), atol=1e-5)


def test_proxies_of_a_run(finished):
  run = monojax.load(finished[0])
  rows = run.proxies()
  assert rows == run.features.summary["proxies"] and rows and "DNA" in finished[1]
  measured = {row["proxy"]: row for row in run.proxies(n_tokens=4000)}
  assert measured and all(0 <= row["specificity"] <= 1 and -1 <= row["pearson"] <= 1 for row in measured.values())
  with pytest.raises(InputError, match="n_tokens=-1"):
    run.proxies(n_tokens=-1)
