"""What the data files of a feature browser hold: feature tables as values for JSON.

The index has what the list of features shows, with a description of its columns; a block has what the pages of some
features show. Both are made from the rows of `monojax.analysis.columns`, so that the pages' scripts show a column
because it is described, not because they know it.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from monojax.analysis import columns as feature_columns
from monojax.analysis import tables as feature_tables
from monojax.analysis.columns import Cell, Column, Kind
from monojax.analysis.tables import FeatureTables
from monojax.config import require

N_SPARK_BINS = 20       # bins of the small activation histogram
N_LISTED_TOKENS = 8     # distinct top activating tokens that a search looks at
# What examples show besides, where an analysis has it.
EFFECT_COLUMNS = ("example_effects_FEW", "example_lowered_ids_FE5", "example_lowered_values_FE5",
                  "example_raised_ids_FE5", "example_raised_values_FE5")
# What the drawings of columns show besides those columns, where an analysis has it.
EXTRA_COLUMNS = (*EFFECT_COLUMNS, "longer_tokens_FLU", "longer_acts_FLU", "act_domain_share_FH")
N_CHANGED_TOKENS = 3    # tokens whose logits a removal lowers most, and raises most, that an example lists
# Characters that neither JSON nor `scripts.call` writes in another way.
DIGITS = "".join(chr(code) for code in range(35, 127) if chr(code) not in "\\<")
BASE = len(DIGITS)
SMALLEST_EFFECT = 0.005  # nats; what changes the loss by less is shown as no effect
N_LISTED_DOMAINS = 20   # domains that a feature's page lists; the others are summed up
SUMMARY_KEYS = ("figures", "statuses", "detectors", "proxies", "frontier", "config")


class Strings:
  """The strings that one data file needs of tokens, each once; the file names a string by its place among them."""

  def __init__(self, token_strings: Sequence[str]):
    self.used: list[str] = []
    self._token_strings = token_strings
    self._places: dict[str, int] = {}

  def place(self, string: str) -> int:
    """Where the string is in `used`."""
    if string not in self._places:
      self._places[string] = len(self.used)
      self.used.append(string)
    return self._places[string]

  def packed(self, places: Iterable[int]) -> str:
    """Places as one string, which takes half the room: p + 1 as two digits of `DIGITS`, or as "!" and three.

    A place can be -1.
    """
    digits = lambda number, n: "".join(DIGITS[number // BASE ** i % BASE] for i in reversed(range(n)))
    numbers = [place + 1 for place in places]
    return "".join(digits(number, 2) if number < BASE ** 2 else "!" + digits(number, 3) for number in numbers)

  def places(self, token_ids: np.ndarray) -> list[int]:
    """Where the string of each of a vector of token ids is in `used`; -1 for token -1, which is none."""
    return [self.place(self._token_strings[token]) if token >= 0 else -1 for token in token_ids.tolist()]


def shown_columns(tables: FeatureTables, described: Iterable[Column]) -> list[Column]:
  """The described columns that `tables` has something of: an array, and none of its axes empty."""
  return [column for column in described if tables.has(column.name) and 0 not in getattr(tables, column.name).shape[1:]]


def check(tables: FeatureTables, described: Iterable[Column]) -> None:
  """Raises `InputError` where a list of the tables is too short for what the columns refer to."""
  lists = {"token": ("token_strings", tables.token_strings), "domain": ("domains", tables.domains),
           "feature": ("features", range(tables.n_features))}
  for column in described:
    if column.refers_to and tables.has(column.name):
      name, values = lists[column.refers_to]
      largest = int(getattr(tables, column.name).max(initial=-1))
      require(largest < len(values), column.name, largest, f"must be below the {len(values)} {name}")
  if tables.has("example_tokens_FEW"):
    n_examples = tables.example_tokens_FEW.shape[1]
    require(n_examples == feature_tables.N_EXAMPLES, "example_tokens_FEW.shape[1]", n_examples,
            f"must be the {feature_tables.N_EXAMPLES} examples of EXAMPLE_GROUPS")


def index(tables: FeatureTables, described: Iterable[Column], title: str, features_per_file: int) -> dict[str, Any]:
  """What the site loads first: the run, the columns' descriptions, and the values of the list of features."""
  strings = Strings(tables.token_strings)
  columns = shown_columns(tables, described)
  labels = {column.name: column.entry.label.lower() for column in columns if column.entry}
  return {
      "title": title,
      "n_features": tables.n_features,
      "features_per_file": features_per_file,
      "domains": list(tables.domains),
      "statuses": list(feature_columns.STATUSES),
      "groups": group_headings(),
      "cells": [_cell(tables, column, cell, labels, strings) for column in columns for cell in column.cells
                if cell.kind != Kind.LABEL or tables.labels],
      "entries": [{"name": column.stem, "panel": column.entry.panel, "label": column.entry.label,
                   "kind": column.entry.kind, "help": column.entry.help or column.what,
                   "beside": [_stem(name) for name in column.beside]}
                  for column in columns if column.entry],
      "strings": strings.used,
      "map": tables.summary.get("map"),
      "summary": {key: _finite(tables.summary[key]) for key in SUMMARY_KEYS if tables.summary.get(key)},
  }


def group_headings() -> list[str]:
  """What stands above each of `EXAMPLE_GROUPS`: of intervals, the share of the maximum that they are around."""
  names = [name for name, _ in feature_tables.EXAMPLE_GROUPS]
  n = len(names) - 2
  shares = [(n - 1 - i) / n for i in range(n)]
  return [names[0], *(f"Around {100 * share:.0f} % of the max" for share in shares[:-1]),
          f"Below {50 / n:.0f} % of the max",
          names[-1]]


def block(tables: FeatureTables, described: Iterable[Column], features: Iterable[int]) -> dict[str, Any]:
  """What the pages of the features whose numbers are in `features` show beyond the index."""
  strings = Strings(tables.token_strings)
  refers_to = {column.name: column.refers_to for column in described}
  entries = [column for column in shown_columns(tables, described) if column.entry]
  return {"features": [_feature(tables, i, entries, refers_to, strings) for i in features], "strings": strings.used}


def _stem(name: str) -> str:
  """An array's name without its axes, which is its name in the data files."""
  return name.rpartition("_")[0]


def rounded(values: np.ndarray, digits: int = 4) -> Any:
  """An array of any shape as nested lists, at some significant digits; None where not finite, the integer 0 where 0."""
  values = np.asarray(values, np.float64)
  there = np.isfinite(values) & (values != 0)
  # A whole number over, or times, a power of ten is the double that is written with these digits.
  shift = digits - 1 - np.floor(np.log10(np.abs(np.where(there, values, 1)))).astype(int)
  up, down = 10.0 ** np.clip(shift, 0, 300), 10.0 ** np.clip(-shift, 0, 300)
  cut = np.array(np.rint(np.where(there, values, 1) * up / down) / up * down, object)
  cut[values == 0] = 0
  cut[~np.isfinite(values)] = None
  return cut.tolist()


def _plain(values: np.ndarray) -> Any:
  """Integers as they are, other numbers rounded."""
  return values.tolist() if values.dtype.kind in "iub" else rounded(values)


def _finite(value: Any) -> Any:
  """A value for JSON with None in place of infinities and NaN, which JSON lacks."""
  if isinstance(value, dict):
    return {str(key): _finite(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(item) for item in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(tables: FeatureTables, column: Column, cell: Cell, labels: dict[str, str],
          strings: Strings) -> dict[str, Any]:
  """A column of the list: its description and a value for each feature; `labels` are by array."""
  description = {"key": cell.key or column.stem, "heading": cell.heading, "kind": cell.kind,
                 "help": cell.help or column.what, "sortable": cell.sortable, "filterable": cell.filterable,
                 "wide_only": cell.wide_only, "values": _cell_values(tables, column, cell.kind, strings)}
  if cell.kind == Kind.WEIGHTED_TOKENS:
    description["order"] = rounded(getattr(tables, column.beside[0]).max(axis=1, initial=0))
  if cell.hover and tables.has(cell.hover):
    description["hover"] = {"label": labels.get(cell.hover, ""), "values": _plain(getattr(tables, cell.hover))}
  return description


def _cell_values(tables: FeatureTables, column: Column, kind: Kind, strings: Strings) -> list[Any]:
  """The list's value of each feature, as the drawing of `kind` in `static/kinds.js` takes it."""
  array = getattr(tables, column.name)
  if kind == Kind.SPARKLINE:
    return _sparks(array)
  if kind == Kind.LABEL:
    return [strings.place(text) if text else -1 for text in tables.labels]
  if kind == Kind.TOP_TOKENS:
    return [_top_tokens(tables, tokens_EW, strings) for tokens_EW in array[:, :feature_tables.EXAMPLE_GROUPS[0][1]]]
  if kind == Kind.WEIGHTED_TOKENS:
    return [strings.places(ids_K) for ids_K in array]
  if kind == Kind.TOP_DOMAIN:
    return np.where(array.max(axis=1) > 0, array.argmax(axis=1), -1).tolist()
  if kind == Kind.TOP_SHARE:
    return [share or None for share in rounded(array.max(axis=1))]
  return _plain(array)


def _top_tokens(tables: FeatureTables, tokens_EW: np.ndarray, strings: Strings) -> list[int]:
  """The places of the first `N_LISTED_TOKENS` distinct texts that examples were chosen for."""
  centre = tokens_EW.shape[1] // 2
  texts = [piece.text for ids_W in tokens_EW for piece in tables.pieces(ids_W) if piece.start <= centre < piece.stop]
  return [strings.place(text) for text in list(dict.fromkeys(texts))[:N_LISTED_TOKENS]]


def _domains(share_D: np.ndarray) -> dict[str, Any]:
  """The largest shares that are not 0, at most `N_LISTED_DOMAINS` of them; how many others there are, and their sum."""
  order_D = np.argsort(-share_D, kind="stable")[:np.count_nonzero(share_D > 0)]
  listed, others = order_D[:N_LISTED_DOMAINS], order_D[N_LISTED_DOMAINS:]
  return {"domains": listed.tolist(), "shares": rounded(share_D[listed]), "n_others": len(others),
          "others": float(f"{share_D[others].sum():.4g}")}


def _sparks(counts_FH: np.ndarray) -> list[str]:
  """For each feature a digit 0 to 9 for each of `N_SPARK_BINS` bins: the logarithm of its count."""
  n_bins = counts_FH.shape[1]
  starts = np.unique(np.arange(N_SPARK_BINS) * n_bins // N_SPARK_BINS)
  log_FS = np.log1p(np.add.reduceat(counts_FH, starts, axis=1, dtype=np.float64))
  levels_FS = np.ceil(9 * log_FS / np.maximum(log_FS.max(axis=1, keepdims=True), 1e-9)).astype(int)
  levels_FS = np.minimum(levels_FS, 9)  # 9 * x / x can be a little above 9
  return ["".join(map(str, row_S)) if any(row_S) else "" for row_S in levels_FS.tolist()]


def _feature(tables: FeatureTables, i: int, entries: Sequence[Column], refers_to: dict[str, str],
             strings: Strings) -> dict[str, Any]:
  """Feature i's entries by the names of their columns, each with the columns beside it."""
  values: dict[str, Any] = {"id": i}
  if tables.other_labels:
    values["other_labels"] = [[strings.place(text), _finite(score)] for text, score in tables.other_labels[i]]
  for column in entries:
    if column.entry and column.entry.kind == Kind.EXAMPLES:
      values[column.stem] = _groups(tables, i, column, strings)
      values["longer"] = _longer(tables, i, strings)
      continue
    if column.entry and column.entry.kind == Kind.DOMAINS:
      values[column.stem] = _domains(getattr(tables, column.name)[i])
      continue
    if column.name == "act_counts_FH" and tables.has("act_domain_share_FH") and tables.domains:
      values["act_domain_share"] = rounded(tables.act_domain_share_FH[i], 2)
    for name in (column.name, *column.beside):
      array = getattr(tables, name)[i]
      values[_stem(name)] = strings.places(array) if refers_to.get(name) == "token" else _plain(array)
  return values


def _effects(tables: FeatureTables, i: int, strings: Strings) -> tuple[list[Any], list[Any]]:
  """(effects, changes) of feature i for each of its examples; 0 in the place of either where there is nothing to say.

  Effects has a number for each token, changes the next token's logits that removing the feature changes most.
  """
  n_examples = tables.example_tokens_FEW.shape[1]
  if not all(map(tables.has, EFFECT_COLUMNS)):
    return [0] * n_examples, [0] * n_examples
  effect_EW = np.nan_to_num(tables.example_effects_FEW[i])
  effect_EW = np.where(np.abs(effect_EW) < SMALLEST_EFFECT, 0, effect_EW)
  effects = [row if any(row) else 0 for row in rounded(effect_EW, 2)]
  changes: list[Any] = [0] * n_examples
  listed = {name: (getattr(tables, f"example_{name}_ids_FE5")[i], rounded(getattr(tables, f"example_{name}_values_FE5")
                                                                         [i], 2)) for name in ("lowered", "raised")}
  for e in np.flatnonzero(listed["lowered"][0][:feature_tables.EXAMPLE_GROUPS[0][1], 0] >= 0).tolist():
    changes[e] = []
    for ids_E5, values in listed.values():
      ids = ids_E5[e][ids_E5[e] >= 0][:N_CHANGED_TOKENS]
      changes[e] += [strings.places(ids), values[e][:len(ids)]]
  return effects, changes


def _longer(tables: FeatureTables, i: int, strings: Strings) -> list[Any]:
  """[texts, {place of a text: its activation, where that is not 0}] of the longer window of each of the first examples
  that has one. A text is of a token, or of several that share a character; they are `Strings.packed`."""
  if not tables.has("longer_tokens_FLU"):
    return []
  found = []
  for tokens_U, acts_U in zip(tables.longer_tokens_FLU[i], tables.longer_acts_FLU[i], strict=True):
    there_U = tokens_U >= 0
    pieces = tables.pieces(tokens_U[there_U])
    acts = rounded(np.array([acts_U[there_U][piece.start:piece.stop].max() for piece in pieces]), 3)
    found.append([strings.packed(strings.place(piece.text) for piece in pieces),
                  {place: act for place, act in enumerate(acts) if act}])
  return [one for one in found if one[0]]


def _groups(tables: FeatureTables, i: int, column: Column, strings: Strings) -> list[list[list[Any]]]:
  """For each of `EXAMPLE_GROUPS` feature i's examples.

  An example is [document, domain, tokens, activations, joined, effects, changes]. The tokens are `Strings.packed`. The
  last three are 0 where there is nothing to say, and left out where nothing follows. "Joined" has [first token,
  number of tokens, their text] for each run of tokens that share a character. "Effects" has a number for each token;
  "changes", of the strongest examples alone, [lowered tokens, by how much, raised tokens, by how much].
  """
  tokens_EW = getattr(tables, column.name)[i]
  acts_EW, domain_E, document_E = (getattr(tables, name)[i] for name in column.beside[:3])
  there_E = tokens_EW[:, tokens_EW.shape[1] // 2] >= 0
  tokens, acts = [strings.packed(strings.places(tokens_W)) for tokens_W in tokens_EW], rounded(acts_EW)
  effects, changes = _effects(tables, i, strings)

  partial_E = np.isin(tokens_EW, list(tables.partial_tokens)).sum(1)  # two such tokens may share a character

  def example(e: int) -> list[Any]:
    joined = [[start, stop - start, strings.place(text)] for start, stop, text in tables.pieces(tokens_EW[e])
              if stop - start > 1] if partial_E[e] > 1 else []
    found = [int(document_E[e]), int(domain_E[e]), tokens[e], acts[e], joined or 0, effects[e], changes[e]]
    while found[-1] == 0:
      found.pop()
    return found
  groups, start = [], 0
  for _, size in feature_tables.EXAMPLE_GROUPS:
    groups.append([example(e) for e in range(start, start + size) if there_E[e]])
    start += size
  return groups
