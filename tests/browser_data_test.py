"""The data files of the site of a run's features, read back."""

import dataclasses
import functools
import json
import pathlib
import re

import browser_fixture
import numpy as np
import pytest

from monojax.analysis import tables as feature_tables
from monojax.analysis.columns import COLUMNS
from monojax.browser import contents
from monojax.browser.build import build_browser
from monojax.browser.config import BrowserConfig
from monojax.config import InputError

N_FEATURES = 300
NEIGHBOURS = ("Best neuron", "Nearest by direction", "Fire together")


@pytest.fixture(scope="module")
def tables():
  return browser_fixture.make_tables(N_FEATURES)


@pytest.fixture(scope="module")
def site(tables, tmp_path_factory):
  """The folder of a built site, with a title that is hostile to HTML."""
  directory = tmp_path_factory.mktemp("browser") / "site"
  assert build_browser(tables, directory, "A <b>run</b> & more") == directory / "index.html"
  return directory


def arguments(path):
  """The JSON arguments of the one call in a data file."""
  text = path.read_text("ascii")  # nothing but ASCII, so no U+2028
  assert "<" not in text
  function, inner = re.fullmatch(r"(data\.\w+)\((.*)\);\n", text, re.DOTALL).groups()
  return function, json.loads(f"[{inner}]")


def files_of(directory):
  return {str(path.relative_to(directory)): path.read_bytes()
          for path in sorted(directory.rglob("*")) if path.is_file()}


def assert_rounded(got, want):
  """Equal to four significant digits."""
  np.testing.assert_allclose(np.array(got, float), np.asarray(want, float), rtol=6e-4, atol=0)


def listed_values(index):
  """The list's columns by key: a value for each feature."""
  return {cell["key"]: cell["values"] for cell in index["cells"]}


def test_index_equals_the_tables(site, tables):
  function, (index,) = arguments(site / "data" / "index.js")
  assert function == "data.registerIndex"
  values = listed_values(index)
  assert index["n_features"] == N_FEATURES
  assert all(len(column) == N_FEATURES for column in values.values())
  assert values["status"] == tables.status_F.tolist()
  fired_F = tables.n_fires_F > 0
  for key, want in (("density", tables.density_F), ("max", tables.max_act_F), ("mean", tables.mean_act_F),
                    ("share", np.where(fired_F, tables.domain_share_FD.max(1), np.nan))):
    assert_rounded(values[key], want)
  cells = {cell["key"]: cell for cell in index["cells"]}
  assert [index["strings"][place] if place >= 0 else "" for place in values["label"]] == tables.labels
  assert_rounded(values["score"], tables.label_score_F)
  assert_rounded(cells["logit"]["order"], tables.top_logit_values_FK[:, 0])
  assert cells["density"]["hover"] == {"label": "fires", "values": tables.n_fires_F.tolist()}
  for i in range(N_FEATURES):
    assert values["domain"][i] == (tables.domain_share_FD[i].argmax() if fired_F[i] else -1)
    strings = [index["strings"][place] for place in values["token"][i]]
    assert strings[:1] == ([tables.token_strings[tables.example_tokens_FEW[i, 0, 4]]] if fired_F[i] else [])
    assert len(set(strings)) == len(strings)
    assert [index["strings"][place] for place in values["logit"][i]] == [
        tables.token_strings[token] for token in tables.top_logit_ids_FK[i]]
  assert index["summary"]["figures"]["not_measured"] is None
  assert index["summary"]["config"] == tables.summary["config"]


def test_every_described_column_reaches_the_site(site):
  """Headings, help texts and panels are those of the table, and each is a sentence."""
  _, (index,) = arguments(site / "data" / "index.js")
  assert [cell["heading"] for cell in index["cells"]] == [cell.heading for column in COLUMNS for cell in column.cells]
  assert [(entry["name"], entry["panel"], entry["label"]) for entry in index["entries"]] == [
      (column.stem, column.entry.panel, column.entry.label) for column in COLUMNS if column.entry]
  for described in (*index["cells"], *index["entries"]):
    assert re.fullmatch(r"[A-Z].*\.", described["help"])


def test_every_feature_is_in_its_file(site, tables):
  per_file = BrowserConfig.features_per_file
  paths = sorted((site / "data").glob("features-*.js"))
  assert len(paths) == -(-N_FEATURES // per_file)
  seen = []
  for number, path in enumerate(paths):
    function, (got_number, block) = arguments(path)
    assert (function, got_number) == ("data.registerBlock", number)
    for feature in block["features"]:
      assert_feature(feature, block["strings"], tables)
      seen.append(feature["id"])
  assert seen == list(range(N_FEATURES))


def unpacked(packed):
  """The places that `Strings.packed` has written."""
  numbers = re.findall("!(...)|(..)", packed)
  value = lambda digits: functools.reduce(lambda sum, digit: 90 * sum + contents.DIGITS.index(digit), digits, 0)
  return [value(long or short) - 1 for long, short in numbers]


def test_places_are_packed_into_ascii():
  places = [-1, 0, 88, 89, 8098, 8099, 70_000]
  packed = contents.Strings([]).packed(places)
  assert unpacked(packed) == places and len(packed) == 5 * 2 + 2 * 4
  assert json.dumps(contents.DIGITS) == f'"{contents.DIGITS}"' and "!" not in contents.DIGITS


def assert_feature(feature, strings, tables):
  """A feature of a data file is what the tables hold of it."""
  i = feature["id"]
  for name in ("density", "max_act", "mean_act", "encoder_bias", "encoder_decoder_cosine"):
    assert_rounded(feature[name], getattr(tables, f"{name}_F")[i])
  assert feature["n_fires"] == tables.n_fires_F[i]
  assert feature["act_counts"] == tables.act_counts_FH[i].tolist()
  assert feature["logit_counts"] == tables.logit_counts_FH[i].tolist()
  assert_rounded(feature["logit_range"], tables.logit_range_F2[i])
  assert_domains(feature["domain_share"], tables.domain_share_FD[i])
  assert feature["top_neuron_ids"] == tables.top_neuron_ids_FN[i].tolist()
  assert_rounded(feature["top_neuron_weights"], tables.top_neuron_weights_FN[i])
  assert_rounded(feature["top_neuron_l1_share"], tables.top_neuron_l1_share_FN[i])
  for name, ids_FK, values_FK in (
      ("top_logit", tables.top_logit_ids_FK, tables.top_logit_values_FK),
      ("bottom_logit", tables.bottom_logit_ids_FK, tables.bottom_logit_values_FK)):
    assert [strings[place] for place in feature[f"{name}_ids"]] == [tables.token_strings[t] for t in ids_FK[i]]
    assert_rounded(feature[f"{name}_values"], values_FK[i])
  start = 0
  for (_, size), group in zip(feature_tables.EXAMPLE_GROUPS, feature["example_tokens"], strict=True):
    rows = [e for e in range(start, start + size) if tables.example_document_FE[i, e] >= 0]
    start += size
    assert [example[0] for example in group] == tables.example_document_FE[i, rows].tolist()
    assert [example[1] for example in group] == tables.example_domain_FE[i, rows].tolist()
    for example, tokens_W in zip(group, tables.example_tokens_FEW[i, rows], strict=True):
      assert [strings[place] if place >= 0 else None for place in unpacked(example[2])] == [
          tables.token_strings[token] if token >= 0 else None for token in tokens_W]
    if rows:
      assert_rounded([example[3] for example in group], tables.example_acts_FEW[i, rows])
    for e, example in zip(rows, group, strict=True):
      _, effects, changes = [*example[4:], 0, 0, 0][:3]
      effect_W = tables.example_effects_FEW[i, e]
      np.testing.assert_allclose(effects, np.where(np.abs(effect_W) < contents.SMALLEST_EFFECT, 0, effect_W), rtol=0.06)
      assert (changes != 0) == (e < feature_tables.EXAMPLE_GROUPS[0][1])
      if changes:
        for (places, values), name in ((changes[:2], "lowered"), (changes[2:], "raised")):
          ids_5, values_5 = (getattr(tables, f"example_{name}_{what}_FE5")[i, e] for what in ("ids", "values"))
          assert [strings[place] for place in places] == [tables.token_strings[t] for t in ids_5[:len(places)]]
          np.testing.assert_allclose(values, values_5[:len(places)], rtol=0.06)


def assert_domains(got, share_D):
  """The domains listed are the largest shares, in falling order; the rest is summed up."""
  assert got["shares"] == sorted(got["shares"], reverse=True) and len(got["shares"]) <= contents.N_LISTED_DOMAINS
  assert_rounded(got["shares"], share_D[got["domains"]])
  assert_rounded(got["shares"], np.sort(share_D)[::-1][:len(got["shares"])])
  assert got["n_others"] == np.count_nonzero(share_D) - len(got["shares"])
  rest_D = np.delete(share_D, got["domains"])
  assert_rounded(got["others"], rest_D.sum())


def labelled(tables, n_features, n_domains):
  """Tables of some of the features, each with a share in every one of many domains: `tables` without examples."""
  share_FD = np.random.default_rng(n_domains).dirichlet(np.ones(n_domains), n_features).astype(np.float32)
  columns = {name: array[:n_features] for name, array in tables.columns.items() if not name.startswith("example")}
  columns |= {column.name: columns[column.name] % n_features for column in COLUMNS if column.refers_to == "feature"}
  return dataclasses.replace(tables, domains=[f"domain_{i:05d}" for i in range(n_domains)],
                             columns={**columns, "domain_share_FD": share_FD}, labels=tables.labels[:n_features],
                             other_labels=tables.other_labels[:n_features])


def test_the_size_of_a_site_grows_with_labels_and_with_features_but_not_with_their_product(tmp_path):
  many = browser_fixture.make_tables(2000)
  sizes = {}
  for n_features in (1000, 2000):
    for n_domains in (10, 1000, 2000):
      made = labelled(many, n_features, n_domains)
      site = build_browser(made, tmp_path / f"{n_features}-{n_domains}", "x").parent
      sizes[n_features, n_domains] = sum(len(text) for text in files_of(site).values())
      _, (_, block) = arguments(site / "data" / "features-00000.js")
      for i, feature in enumerate(block["features"]):
        assert_domains(feature["domain_share"], made.domain_share_FD[i])
  # A thousand more labels cost their names, for a thousand features as for two thousand.
  for n_features in (1000, 2000):
    assert sizes[n_features, 2000] - sizes[n_features, 1000] < 25 * 1000 + 25 * n_features
  # So the size is a sum of two: what labels and features have in common is a small part of it.
  both = sizes[2000, 2000] - sizes[1000, 2000] - sizes[2000, 1000] + sizes[1000, 1000]
  assert abs(both) < 0.02 * sizes[2000, 2000]
  assert sizes[2000, 2000] < 1.3 * sizes[2000, 10]


def test_same_tables_give_the_same_bytes(site, tables, tmp_path):
  again = tmp_path / "again"
  tables.save(tmp_path / "tables")
  loaded = feature_tables.FeatureTables.load(tmp_path / "tables")
  build_browser(loaded, again, "A <b>run</b> & more")
  assert files_of(again) == files_of(site)
  assert "A &lt;b&gt;run&lt;/b&gt; &amp; more" in (again / "index.html").read_text()


def test_columns_that_no_page_shows_are_not_in_the_data(tables, site, tmp_path):
  shown = [column for column in COLUMNS if column.entry or column.cells]
  named = {column.name for column in shown} | {name for column in shown for name in column.beside}
  unseen = [column.name for column in COLUMNS if column.name not in named | set(contents.EXTRA_COLUMNS)]
  assert "example_position_FE" in unseen
  build_browser(browser_fixture.without(tables, *unseen), tmp_path / "site", "A <b>run</b> & more")
  assert files_of(tmp_path / "site") == files_of(site)


def test_replaces_an_older_site_as_a_whole(tmp_path):
  directory = tmp_path / "site"
  build_browser(browser_fixture.make_tables(100), directory, "old", features_per_file=10)
  stale = tmp_path / "site.partial"  # as a build that was killed leaves it
  stale.mkdir()
  (stale / "left.over").touch()
  build_browser(browser_fixture.make_tables(20), directory, "new", features_per_file=10)
  assert [path.name for path in tmp_path.iterdir()] == ["site"]
  assert sorted(path.name for path in (directory / "data").iterdir()) == [
      "features-00000.js", "features-00001.js", "index.js"]
  assert not (directory / "left.over").exists()


def test_an_error_leaves_the_older_site(site, tables):
  before = files_of(site)
  broken = dataclasses.replace(tables, summary={"config": {"not JSON": object()}})
  with pytest.raises(TypeError):
    build_browser(broken, site, "broken")
  assert files_of(site) == before


def test_keeps_a_folder_that_is_no_site(tables, tmp_path):
  (tmp_path / "thesis.tex").touch()
  with pytest.raises(InputError, match="no feature browser"):
    build_browser(tables, tmp_path, "x")
  assert (tmp_path / "thesis.tex").exists()


def test_names_what_contradicts_itself(tables, tmp_path):
  short = dataclasses.replace(tables, token_strings=tables.token_strings[:5])
  with pytest.raises(InputError, match="5 token_strings"):
    build_browser(short, tmp_path / "site", "x")
  with pytest.raises(InputError, match="browser.features_per_file=0"):
    build_browser(tables, tmp_path / "site", "x", features_per_file=0)


def test_what_an_analysis_lacks_is_left_out(tables, tmp_path):
  removed = ("domain", "example", "longer", "source", "top_logit", "bottom_logit", "logit", "encoder_decoder")
  bare = browser_fixture.without(tables, *removed, token_strings=[], domains=[], summary={})
  unlabelled = dataclasses.replace(tables, domains=[], columns={
      **tables.columns, "domain_share_FD": np.zeros((N_FEATURES, 0), np.float32),
      "example_domain_FE": np.full_like(tables.example_domain_FE, -1)})
  keys_of = lambda columns: {cell.key or column.stem for column in columns for cell in column.cells}
  for name, given, keys, panels in (
      ("bare", bare, keys_of(column for column in COLUMNS if not column.name.startswith(removed)),
       {"Statistics", "Activations", "Largest neurons", *NEIGHBOURS}),
      ("unlabelled", unlabelled, keys_of(COLUMNS) - {"domain", "share"},
       {"Statistics", "Activations", "Examples", "Where it comes from", "Logit weights", "Largest neurons",
        *NEIGHBOURS})):
    _, (index,) = arguments(build_browser(given, tmp_path / name, "x").parent / "data" / "index.js")
    assert set(listed_values(index)) == keys
    assert {entry["panel"] for entry in index["entries"]} == panels
    assert index["domains"] == [] and bool(index["summary"]) == (name == "unlabelled")


def test_a_site_is_made_of_an_analysis_of_version_0_1(tmp_path):
  old = pathlib.Path(__file__).parent / "data" / "run-0.1"
  loaded = feature_tables.FeatureTables.load(old / "analysis")
  _, (index,) = arguments(build_browser(loaded, tmp_path / "site", "x").parent / "data" / "index.js")
  _, (then,) = arguments(old / "browser" / "site" / "data" / "index.js")
  values = listed_values(index)
  for key in ("status", "density", "max", "mean", "domain"):
    assert values[key] == then["columns"][key]
  assert [index["strings"][places[0]] for places in values["logit"]] == [
      then["strings"][places[0]] for places in then["columns"]["logits"]]


def test_a_sparkline_has_a_digit_for_each_bin():
  """The tallest bar is 9, whatever the count: 9 * x / x is above 9 for some x in floating point."""
  counts_FH = np.zeros((3000, 40), np.int32)
  counts_FH[:, 0] = np.arange(1, 3001)
  counts_FH[:, 39] = 1
  heights = [[int(digit) for digit in spark] for spark in contents._sparks(counts_FH)]
  assert all(len(row) == 20 and row[0] == 9 and not any(row[1:-1]) for row in heights)
  assert [row[-1] for row in heights[:100]] == [int(np.ceil(9 * np.log(2) / np.log(2 + n) - 1e-9)) for n in range(100)]


def test_a_page_needs_a_name_of_its_own(tables, tmp_path):
  for name in ("page_list.js", "style.css", "hello.js", "page_missing.js"):
    path = tmp_path / name
    if name != "page_missing.js":
      path.touch()
    with pytest.raises(InputError, match="pages="):
      build_browser(tables, tmp_path / "site", "x", pages=[path])
