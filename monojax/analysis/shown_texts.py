"""Pieces of the analysed text with all features that fire on each token, for people to look at.

Letters: N rows of the text, R rows of one piece, P firings, F features.
"""

import typing

import numpy as np

from monojax.analysis.codes import Codes
from monojax.analysis.text import AnalysedText

_N_TOKENS = 64  # of a piece at most
_N_PIECES = 8   # where the text has no domains; otherwise one of each


def shown_texts(codes: Codes, text: AnalysedText, domains: list[str]) -> list[dict[str, typing.Any]]:
  """One piece of text of each domain that has two tokens in a row; some pieces where there are no domains.

  Args:
    codes: the activations of all features.
    text: what they are of.
    domains: names of the domains.

  Returns:
    [{"name": the domain; "tokens": ids of the piece's R tokens, one after the other in one context; "features": for
    each of these [numbers of the features that fire, rising, their activations]}].
  """
  pieces = {name: _longest(text, text.domain_N == d) for d, name in enumerate(domains)}
  if not domains:
    contexts = np.unique(text.context_N)[:_N_PIECES]
    pieces = {f"text {i + 1}": np.flatnonzero(text.context_N == context)[:_N_TOKENS]
              for i, context in enumerate(contexts.tolist())}
  pieces = {name: row_R for name, row_R in pieces.items() if len(row_R) > 1}
  if not pieces:
    return []
  shown_N = np.zeros(text.n_rows, bool)
  shown_N[np.concatenate(list(pieces.values()))] = True
  number_N, here = np.cumsum(shown_N) - 1, codes.on_rows(shown_N)
  order_P = np.argsort(here.row_P, kind="stable")  # features rise within each row
  row_P, value_P = here.row_P[order_P], here.value_P[order_P]
  feature_P = np.repeat(np.arange(len(here.start_F) - 1), np.diff(here.start_F))[order_P]

  def on_row(row):
    entries = slice(*np.searchsorted(row_P, [number_N[row], number_N[row] + 1]))
    return [feature_P[entries].tolist(), [float(f"{value:.4g}") for value in value_P[entries].tolist()]]
  return [{"name": name, "tokens": text.token_N[row_R].tolist(), "features": [on_row(row) for row in row_R.tolist()]}
          for name, row_R in pieces.items()]


def _longest(text: AnalysedText, chosen_N: np.ndarray) -> np.ndarray:
  """The longest stretch of chosen rows that follow one another in one context, at most `_N_TOKENS` of it.

  For instance, of the chosen rows 0, 1, 5, 6 and 7, of which 6 begins a context, it is 0 and 1, the first of two
  stretches of two rows. Rows that do not count are passed over.
  """
  row_P = np.flatnonzero(chosen_N)
  if not len(row_P):
    return row_P
  place_N = np.arange(text.n_rows) if text.counts_N is None else np.cumsum(text.counts_N)
  begins_P = np.ones(len(row_P), bool)
  begins_P[1:] = (np.diff(place_N[row_P]) != 1) | (np.diff(text.context_N[row_P]) != 0)
  first_S = np.flatnonzero(begins_P)
  length_S = np.minimum(np.diff(first_S, append=len(row_P)), _N_TOKENS)
  longest = length_S.argmax()
  return row_P[first_S[longest]:][:length_S[longest]]
