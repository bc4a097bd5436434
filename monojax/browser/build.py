"""Writes a run's features as a static site that opens from disk: no server, no network.

A page opened as file:// may not fetch its data, but it may load scripts. So each data file is a script
with one call, `data.registerIndex(JSON)` or `data.registerBlock(NUMBER, JSON)`: the index is loaded at
once, a block of features when one of them is shown. The layout:

  index.html  assets/*.css *.js  data/index.js  data/features-00000.js ...
"""

import html
import importlib.resources
import json
import math
import os
import pathlib
import shutil

import numpy as np

from monojax import files
from monojax.analysis import tables as feature_tables
from monojax.browser.config import BrowserConfig
from monojax.config import InputError, require

# What the index needs to know of a feature beyond its numbers.
N_SPARK_BINS = 20       # bins of the small activation histogram
N_LISTED_TOKENS = 8     # distinct top activating tokens that a search looks at
SUMMARY_KEYS = ("figures", "density_histogram", "detectors", "frontier", "config")


def build_browser(tables, directory, title, features_per_file=BrowserConfig.features_per_file):
  """Writes the site of `tables` into `directory`, which appears, or is replaced, as a whole.

  The same tables give the same bytes. The site is written into `<directory>.partial` first.

  Args:
    tables: a `FeatureTables`.
    directory: where the site goes; a site that is already there is replaced.
    title: heading of the pages.
    features_per_file: features in one data file.

  Returns:
    The path of the site's index.html.

  Raises:
    InputError: the tables contradict themselves, or `directory` holds something that is no such site.
  """
  config = BrowserConfig(features_per_file=features_per_file, title=title)
  directory = pathlib.Path(directory)
  _check(tables)
  _check_replaceable(directory)
  partial = directory.with_name(directory.name + ".partial")
  shutil.rmtree(partial, ignore_errors=True)
  for folder in (partial / "assets", partial / "data"):
    folder.mkdir(parents=True)
  _write_static(partial, config.title)
  _write(partial / "data" / "index.js", _call("data.registerIndex", _index(tables, config)))
  for number, start in enumerate(range(0, len(tables.status_F), config.features_per_file)):
    block = _block(tables, range(start, min(start + config.features_per_file, len(tables.status_F))))
    _write(partial / "data" / f"features-{number:05d}.js", _call("data.registerBlock", number, block))
  for folder in (partial / "assets", partial / "data", partial):
    files.sync_directory(folder)
  old = directory.with_name(directory.name + ".old")
  shutil.rmtree(old, ignore_errors=True)
  if directory.exists():
    os.rename(directory, old)
  os.rename(partial, directory)
  files.sync_directory(directory.parent)
  shutil.rmtree(old, ignore_errors=True)
  return directory / "index.html"


def _check(tables):
  """Raises `InputError` where a list of the tables is too short for what refers to it."""
  n_tokens, n_domains = len(tables.token_strings), len(tables.domains)
  for name in ("example_tokens_FEW", "top_logit_ids_FK", "bottom_logit_ids_FK"):
    largest = int(getattr(tables, name).max(initial=-1))
    require(largest < n_tokens, name, largest, f"must be below the {n_tokens} token_strings")
  largest = int(tables.example_domain_FE.max(initial=-1))
  require(largest < n_domains, "example_domain_FE", largest, f"must be below the {n_domains} domains")
  n_examples = tables.example_tokens_FEW.shape[1]
  require(n_examples == feature_tables.N_EXAMPLES, "example_tokens_FEW.shape[1]", n_examples,
          f"must be the {feature_tables.N_EXAMPLES} examples of EXAMPLE_GROUPS")


def _check_replaceable(directory):
  """Raises `InputError` if `directory` holds something other than an older site."""
  if directory.exists() and not (directory / "data" / "index.js").is_file():
    if not directory.is_dir() or any(directory.iterdir()):
      raise InputError(f"{directory} exists and is no feature browser: give another directory or "
                       "remove it")


def _write(path, text):
  """Writes `text` and makes it durable; the folder takes its final name later."""
  with open(path, "wb") as file:
    file.write(text.encode())
    file.flush()
    os.fsync(file.fileno())


def _write_static(directory, title):
  """Copies the page, its style and its scripts."""
  for asset in sorted(importlib.resources.files("monojax.browser").joinpath("static").iterdir(),
                      key=lambda asset: asset.name):
    if asset.name == "index.html":
      _write(directory / asset.name, asset.read_text("utf-8").replace("{{title}}", html.escape(title)))
    elif asset.name.endswith((".css", ".js")):
      _write(directory / "assets" / asset.name, asset.read_text("utf-8"))


def _call(function, *arguments):
  """A script that calls `function`; ASCII, and without "<", whatever the strings hold."""
  texts = [json.dumps(argument, separators=(",", ":"), allow_nan=False) for argument in arguments]
  return f"{function}({','.join(texts)});\n".replace("<", "\\u003c")


def _rounded(values):
  """An array (any shape) as nested lists at four significant digits, None where not finite."""
  def rounded(value):
    if isinstance(value, list):
      return [rounded(item) for item in value]
    return float(f"{value:.4g}") if math.isfinite(value) else None
  if values.ndim == 1:  # most by far, and most of it zeros
    return [rounded(value) if value else 0 for value in values.tolist()]
  return rounded(values.tolist())


def _finite(value):
  """A JSON-able value with None in place of infinities and NaN, which JSON lacks."""
  if isinstance(value, dict):
    return {str(key): _finite(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(item) for item in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


class _Strings:
  """The strings that one data file needs, each once; a token is given by its place among them."""

  def __init__(self, token_strings):
    self.used = []
    self._token_strings = token_strings
    self._places = {}

  def place(self, token_id):
    """Where the token's string is in `used`; -1 for token -1."""
    if token_id < 0:
      return -1
    if token_id not in self._places:
      self._places[token_id] = len(self.used)
      self.used.append(self._token_strings[token_id])
    return self._places[token_id]

  def places(self, token_ids):
    """`place` of each of an array of token ids."""
    return [self.place(token_id) for token_id in token_ids.tolist()]


def _index(tables, config):
  """What the page loads first: the run, and for each feature what the table shows and sorts by."""
  strings = _Strings(tables.token_strings)
  n_features, n_domains = tables.domain_share_FD.shape
  fired_F = tables.n_fires_F > 0
  domain_F = np.full(n_features, -1)
  share_F = np.zeros(n_features)
  if n_domains:
    domain_F = np.where(fired_F, tables.domain_share_FD.argmax(axis=1), -1)
    share_F = np.where(fired_F, tables.domain_share_FD.max(axis=1), 0)
  centre = tables.example_tokens_FEW.shape[2] // 2
  n_top = feature_tables.EXAMPLE_GROUPS[0][1]
  tokens = [strings.places(np.array(_distinct(row_E.tolist()), int))
            for row_E in tables.example_tokens_FEW[:, :n_top, centre]]
  return {
      "title": config.title,
      "n_features": n_features,
      "features_per_file": config.features_per_file,
      "domains": list(tables.domains),
      "groups": [name for name, _ in feature_tables.EXAMPLE_GROUPS],
      "columns": {
          "status": tables.status_F.tolist(),
          "density": _rounded(tables.density_F),
          "fires": tables.n_fires_F.tolist(),
          "max": _rounded(tables.max_act_F),
          "mean": _rounded(tables.mean_act_F),
          "domain": domain_F.tolist(),
          "share": _rounded(share_F),
          "tokens": tokens,
          "logits": [strings.places(ids_K) for ids_K in tables.top_logit_ids_FK],
          "logit": _rounded(tables.top_logit_values_FK.max(axis=1, initial=0)),
          "spark": _sparks(tables.act_counts_FH),
      },
      "strings": strings.used,
      "summary": {key: _finite(tables.summary[key]) for key in SUMMARY_KEYS if tables.summary.get(key)},
  }


def _distinct(token_ids):
  """The first `N_LISTED_TOKENS` distinct ids, in order, without -1."""
  return list(dict.fromkeys(token_id for token_id in token_ids if token_id >= 0))[:N_LISTED_TOKENS]


def _sparks(counts_FH):
  """For each feature a digit 0 to 9 for each of `N_SPARK_BINS` bins: the logarithm of its count."""
  n_features, n_bins = counts_FH.shape
  starts = np.unique(np.arange(N_SPARK_BINS) * n_bins // N_SPARK_BINS)
  log_FS = np.log1p(np.add.reduceat(counts_FH, starts, axis=1, dtype=np.float64))
  levels_FS = np.ceil(9 * log_FS / np.maximum(log_FS.max(axis=1, keepdims=True), 1e-9)).astype(int)
  return ["".join(map(str, row_S)) if any(row_S) else "" for row_S in levels_FS.tolist()]


def _block(tables, features):
  """A data file's content: the pages of the features whose numbers are in the range `features`."""
  strings = _Strings(tables.token_strings)
  return {"features": [_feature(tables, i, strings) for i in features], "strings": strings.used}


def _feature(tables, i, strings):
  """What feature i's page shows beyond the index; lists of pairs where the page has a table."""
  def weighted(ids_K, values_K):
    return [list(pair) for pair in zip(strings.places(ids_K), _rounded(values_K), strict=True)]

  return {
      "id": i,
      "bias": _rounded(tables.encoder_bias_F[i]),
      "cosine": _rounded(tables.encoder_decoder_cosine_F[i]),
      "neurons": [list(row) for row in zip(tables.top_neuron_ids_FN[i].tolist(),
                                           _rounded(tables.top_neuron_weights_FN[i]),
                                           _rounded(tables.top_neuron_l1_share_FN[i]), strict=True)],
      "act_counts": tables.act_counts_FH[i].tolist(),
      "logit_counts": tables.logit_counts_FH[i].tolist(),
      "logit_range": _rounded(tables.logit_range_F2[i]),
      "top_logits": weighted(tables.top_logit_ids_FK[i], tables.top_logit_values_FK[i]),
      "bottom_logits": weighted(tables.bottom_logit_ids_FK[i], tables.bottom_logit_values_FK[i]),
      "domain_share": _rounded(tables.domain_share_FD[i]),
      "groups": _groups(tables, i, strings),
  }


def _groups(tables, i, strings):
  """For each of `EXAMPLE_GROUPS` its examples: [document, domain, tokens, activations]."""
  centre = tables.example_tokens_FEW.shape[2] // 2
  groups, start = [], 0
  for _, size in feature_tables.EXAMPLE_GROUPS:
    groups.append([[int(tables.example_document_FE[i, e]), int(tables.example_domain_FE[i, e]),
                    strings.places(tables.example_tokens_FEW[i, e]),
                    _rounded(tables.example_acts_FEW[i, e])]
                   for e in range(start, start + size) if tables.example_tokens_FEW[i, e, centre] >= 0])
    start += size
  return groups
