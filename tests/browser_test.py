"""The static site of a run's features: its data files read back, and the pages in a real browser."""

import dataclasses
import json
import re

import browser_fixture
import numpy as np
import pytest
from browser_fixture import find, listed, press, shown, texts, wait, wait_for_feature

from monojax.analysis import tables as feature_tables
from monojax.browser.build import build_browser
from monojax.browser.config import BrowserConfig
from monojax.config import InputError

N_FEATURES = 300
AS_SHOWN = {"\t": "⇥", "\r\n": "↵", "\u2028": "U+2028", "\u05b7": "\u25cc\u05b7"}  # what is not its own text


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


def contents(directory):
  return {str(path.relative_to(directory)): path.read_bytes()
          for path in sorted(directory.rglob("*")) if path.is_file()}


def assert_rounded(got, want):
  """Equal to four significant digits."""
  np.testing.assert_allclose(np.array(got, float), np.asarray(want, float), rtol=6e-4, atol=0)


def test_index_equals_the_tables(site, tables):
  function, (index,) = arguments(site / "data" / "index.js")
  assert function == "data.registerIndex"
  columns = index["columns"]
  assert index["n_features"] == N_FEATURES
  assert all(len(column) == N_FEATURES for column in columns.values())
  assert columns["status"] == tables.status_F.tolist()
  assert columns["fires"] == tables.n_fires_F.tolist()
  for name, want in (("density", tables.density_F), ("max", tables.max_act_F), ("mean", tables.mean_act_F),
                     ("logit", tables.top_logit_values_FK[:, 0]), ("share", tables.domain_share_FD.max(1))):
    assert_rounded(columns[name], want)
  for i in range(N_FEATURES):
    fired = tables.n_fires_F[i] > 0
    assert columns["domain"][i] == (tables.domain_share_FD[i].argmax() if fired else -1)
    strings = [index["strings"][place] for place in columns["tokens"][i]]
    assert strings[:1] == ([tables.token_strings[tables.example_tokens_FEW[i, 0, 4]]] if fired else [])
    assert len(set(strings)) == len(strings)
    assert [index["strings"][place] for place in columns["logits"][i]] == [
        tables.token_strings[token] for token in tables.top_logit_ids_FK[i]]
  assert index["summary"]["figures"]["not_measured"] is None
  assert index["summary"]["config"] == tables.summary["config"]


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


def assert_feature(feature, strings, tables):
  """A feature of a data file is what the tables hold of it."""
  i = feature["id"]
  assert_rounded(feature["bias"], tables.encoder_bias_F[i])
  assert_rounded(feature["cosine"], tables.encoder_decoder_cosine_F[i])
  assert feature["act_counts"] == tables.act_counts_FH[i].tolist()
  assert feature["logit_counts"] == tables.logit_counts_FH[i].tolist()
  assert_rounded(feature["logit_range"], tables.logit_range_F2[i])
  assert_rounded(feature["domain_share"], tables.domain_share_FD[i])
  assert [row[0] for row in feature["neurons"]] == tables.top_neuron_ids_FN[i].tolist()
  assert_rounded([row[1] for row in feature["neurons"]], tables.top_neuron_weights_FN[i])
  assert_rounded([row[2] for row in feature["neurons"]], tables.top_neuron_l1_share_FN[i])
  for name, ids_FK, values_FK in (
      ("top_logits", tables.top_logit_ids_FK, tables.top_logit_values_FK),
      ("bottom_logits", tables.bottom_logit_ids_FK, tables.bottom_logit_values_FK)):
    assert [strings[row[0]] for row in feature[name]] == [tables.token_strings[t] for t in ids_FK[i]]
    assert_rounded([row[1] for row in feature[name]], values_FK[i])
  start = 0
  for (_, size), group in zip(feature_tables.EXAMPLE_GROUPS, feature["groups"], strict=True):
    rows = [e for e in range(start, start + size) if tables.example_document_FE[i, e] >= 0]
    start += size
    assert [example[0] for example in group] == tables.example_document_FE[i, rows].tolist()
    assert [example[1] for example in group] == tables.example_domain_FE[i, rows].tolist()
    for example, tokens_W in zip(group, tables.example_tokens_FEW[i, rows], strict=True):
      assert [strings[place] if place >= 0 else None for place in example[2]] == [
          tables.token_strings[token] if token >= 0 else None for token in tokens_W]
    if rows:
      assert_rounded([example[3] for example in group], tables.example_acts_FEW[i, rows])


def test_same_tables_give_the_same_bytes(site, tables, tmp_path):
  again = tmp_path / "again"
  tables.save(tmp_path / "tables")
  loaded = feature_tables.FeatureTables.load(tmp_path / "tables")
  build_browser(loaded, again, "A <b>run</b> & more")
  assert contents(again) == contents(site)
  assert "A &lt;b&gt;run&lt;/b&gt; &amp; more" in (again / "index.html").read_text()


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
  before = contents(site)
  broken = dataclasses.replace(tables, summary={"config": {"not JSON": object()}})
  with pytest.raises(TypeError):
    build_browser(broken, site, "broken")
  assert contents(site) == before


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


def test_text_without_domains_or_summary(tables, tmp_path):
  bare = dataclasses.replace(tables, domains=[], summary={}, domain_share_FD=np.zeros((N_FEATURES, 0)),
                             example_domain_FE=np.full_like(tables.example_domain_FE, -1))
  _, (index,) = arguments(build_browser(bare, tmp_path / "site", "x").parent / "data" / "index.js")
  assert index["summary"] == {}
  assert set(index["columns"]["domain"]) == {-1}


# In the browser. Each test opens the pages it needs; none leaves anything behind but the address.

@pytest.fixture(scope="module")
def driver():
  missing = browser_fixture.missing_browser()
  if missing:
    pytest.skip(missing)
  pytest.importorskip("selenium")
  with browser_fixture.chromium() as driver:
    driver.implicitly_wait(5)
    yield driver


@pytest.fixture
def page(driver, site):
  """A function that opens a route of the site anew; afterwards the console must be empty."""
  driver.get_log("browser")

  def open_route(route):
    driver.get("about:blank")
    driver.get((site / "index.html").as_uri() + route)
    return driver
  yield open_route
  assert driver.get_log("browser") == []


def alive(tables):
  return np.flatnonzero(tables.status_F == feature_tables.ALIVE)


def test_index_lists_each_status_apart(page, tables):
  driver = page("")
  assert find(driver, ".brand").text == "A <b>run</b> & more"
  for name, status in (("alive", feature_tables.ALIVE), ("ultralow", feature_tables.ULTRALOW),
                       ("dead", feature_tables.DEAD)):
    find(driver, f"button[data-status={name}]").click()
    want = np.flatnonzero(tables.status_F == status).tolist()
    wait(driver, lambda: listed(driver) == [want[:100], len(want)])
  find(driver, "button[data-status=all]").click()
  wait(driver, lambda: listed(driver) == [list(range(100)), N_FEATURES])
  find(driver, ".pager button[title='Last page']").click()
  wait(driver, lambda: listed(driver) == [list(range(200, 300)), N_FEATURES])


def test_index_sorts_both_ways(page, tables):
  driver = page("#/")
  find(driver, "th[data-sort=density] button").click()
  ids = alive(tables)
  rounded = np.array([float(f"{value:.4g}") for value in tables.density_F])
  falling = ids[np.lexsort((ids, -rounded[ids]))].tolist()
  wait(driver, lambda: listed(driver)[0] == falling[:100])
  assert texts(driver, ".log")[0] == f"{np.log10(rounded[falling[0]]):.2f}".replace("-", "−")
  assert find(driver, "th[data-sort=density]").get_attribute("aria-sort") == "descending"
  find(driver, "th[data-sort=density] button").click()
  rising = ids[np.lexsort((ids, rounded[ids]))].tolist()
  wait(driver, lambda: listed(driver)[0] == rising[:100])
  assert find(driver, "th[data-sort=density]").get_attribute("aria-sort") == "ascending"
  driver.refresh()
  assert listed(driver)[0] == rising[:100]


def test_index_filters(page, tables):
  driver = page("#/")
  ids = alive(tables)
  find(driver, "#filter-q").send_keys("שלום")
  strings = np.array(tables.token_strings)
  seen = [list(strings[tables.top_logit_ids_FK[i]]) + list(strings[tables.example_tokens_FEW[i, :20, 4]])
          for i in ids]
  want = [i for i, tokens in zip(ids.tolist(), seen, strict=True) if any("שלום" in t for t in tokens)]
  assert 0 < len(want) < len(ids)
  wait(driver, lambda: listed(driver) == [want[:100], len(want)])
  find(driver, "#filter-domain").send_keys("hebrew")
  hebrew = [i for i in want if tables.domain_share_FD[i].argmax() == tables.domains.index("hebrew")]
  wait(driver, lambda: listed(driver) == [hebrew[:100], len(hebrew)])
  find(driver, "#filter-max").send_keys("-3")
  rare = [i for i in hebrew if tables.density_F[i] <= 1e-3]
  assert 0 < len(rare) < len(hebrew)
  wait(driver, lambda: listed(driver) == [rare[:100], len(rare)])
  find(driver, "#filter-q").send_keys(" no such token")
  wait(driver, lambda: listed(driver) == [[], 0])
  find(driver, "#reset").click()
  wait(driver, lambda: listed(driver)[1] == len(ids))
  assert find(driver, "#filter-q").get_attribute("value") == ""


def test_feature_page_shows_the_tables(page, tables):
  driver = page("#/?sort=max")
  ids = alive(tables)
  rounded = np.array([float(f"{value:.4g}") for value in tables.max_act_F])
  i = int(ids[np.lexsort((ids, -rounded[ids]))][1])
  find(driver, f"tr[data-id='{i}'] a").click()
  wait_for_feature(driver, i)
  assert find(driver, "h1").text == f"Feature {i}"
  values = texts(driver, ".statistics dd")
  assert values[1] == f"{tables.n_fires_F[i]:,}"
  assert float(values[2]) == pytest.approx(tables.max_act_F[i], rel=1e-3)
  assert float(values[4].replace("−", "-")) == pytest.approx(tables.encoder_bias_F[i], rel=1e-3)
  assert texts(driver, ".group h3") == [name for name, _ in feature_tables.EXAMPLE_GROUPS]
  tokens = driver.execute_script(
      "return [...document.querySelectorAll('.examples .text')].map((text) => [...text.children]"
      ".map((token) => [token.dataset.token, Number(token.dataset.act),"
      " getComputedStyle(token).unicodeBidi, token.textContent]))")
  assert len(tokens) == feature_tables.N_EXAMPLES
  for e, example in enumerate(tokens):
    here_W = tables.example_tokens_FEW[i, e] >= 0
    assert [token for token, _, _, _ in example] == [
        tables.token_strings[t] for t in tables.example_tokens_FEW[i, e][here_W]]
    assert_rounded([act for _, act, _, _ in example], tables.example_acts_FEW[i, e][here_W])
    assert {bidi for _, _, bidi, _ in example} == {"isolate"}
    for token, _, _, text in example:
      assert text == AS_SHOWN.get(token, token.replace("\n", "↵"))


def test_activation_is_the_background(page, tables):
  driver = page("#/feature/0")
  wait_for_feature(driver, 0)
  opacities = driver.execute_script(
      "return [...document.querySelectorAll('.examples .text')].map((text) => [...text.children]"
      ".map((token) => {"
      "  const parts = getComputedStyle(token).backgroundColor.match(/[\\d.]+/g).map(Number);"
      "  return parts.length === 4 ? parts[3] : 1;}))")
  for e, example in enumerate(opacities):
    acts_W = tables.example_acts_FEW[0, e][tables.example_tokens_FEW[0, e] >= 0]
    np.testing.assert_allclose(example, 0.92 * acts_W / tables.max_act_F[0], atol=0.01)


def test_tokens_run_left_to_right_in_every_script(page, tables):
  hebrew = tables.domains.index("hebrew")
  i = int(next(i for i in alive(tables) if tables.domain_share_FD[i].argmax() == hebrew))
  driver = page(f"#/feature/{i}")
  wait_for_feature(driver, i)
  lefts = driver.execute_script(
      "return [...document.querySelectorAll('.examples .text')].map((text) => [...text.children]"
      ".map((token) => token.getBoundingClientRect().left))")
  assert all(np.all(np.diff(row) >= 0) for row in lefts)


def test_hostile_tokens_are_text(page, tables):
  driver = page("#/feature/0")
  wait_for_feature(driver, 0)
  assert tables.token_strings[tables.example_tokens_FEW[0, 0, 4]] == "<script>alert(1)</script>"
  assert texts(driver, ".examples li:first-child .centre")[0] == "<script>alert(1)</script>"
  assert driver.execute_script("return document.querySelectorAll('main script').length") == 0
  driver = page("#/?q=%3Cscript%3E&status=all")
  assert "<script>alert(1)</script>" in texts(driver, "#features .token")
  driver = page("#/feature/%3Cimg src=x onerror=alert(1)%3E")
  assert "There is no feature <img src=x onerror=alert(1)>" in find(driver, ".message h1").text


def test_keys_follow_the_filtered_order(page, tables):
  from selenium.webdriver.common.keys import Keys
  driver = page("#/?sort=mean&domain=base64")
  order, _ = listed(driver)
  assert len(order) > 5
  find(driver, f"tr[data-id='{order[0]}'] a").click()
  wait_for_feature(driver, order[0])
  for key, place in (("j", 1), (Keys.ARROW_RIGHT, 2), ("k", 1), (Keys.ARROW_LEFT, 0), ("k", len(order) - 1)):
    press(driver, key)
    wait_for_feature(driver, order[place])
  find(driver, "#previous").click()
  wait_for_feature(driver, order[-2])
  press(driver, "r")
  wait(driver, lambda: shown(driver) not in (None, str(order[-2])))
  assert int(find(driver, "h1").text.split()[1]) in order
  press(driver, "?")
  wait(driver, lambda: find(driver, "#help").is_displayed())
  press(driver, Keys.ESCAPE)
  wait(driver, lambda: not find(driver, "#help").is_displayed())
  press(driver, "u")
  wait(driver, lambda: listed(driver)[0] == order)
  press(driver, "/")
  wait(driver, lambda: driver.switch_to.active_element.get_attribute("id") == "filter-q")


def test_a_permalink_comes_back_to_its_page(page, tables):
  driver = page("#/feature/0?sort=max&domain=code")
  wait_for_feature(driver, 0)
  place = find(driver, ".place").text
  assert re.fullmatch(r"\d+ of \d+ in the list", place)
  driver.refresh()
  wait_for_feature(driver, 0)
  assert find(driver, ".place").text == place
  find(driver, "#jump-id").send_keys("299\n")
  wait_for_feature(driver, 299)
  driver.back()
  wait_for_feature(driver, 0)


def test_dead_and_unknown_features_say_so(page):
  driver = page("#/feature/1")
  wait_for_feature(driver, 1)
  assert "never fired" in find(driver, ".evidence").text
  assert find(driver, ".place").text == "not in the list"
  for route in (f"#/feature/{N_FEATURES}", "#/feature/x", "#/feature/-1", "#/feature/"):
    driver = page(route)
    assert "There is no feature" in find(driver, ".message").text
    assert f"0 to {N_FEATURES - 1}" in find(driver, ".message").text


def test_about_page(page, tables):
  driver = page("#/about")
  assert texts(driver, "main h2") == [
      "Figures", "Densities", "Sparsity against fidelity", "Detectors of a class of text", "Configuration",
      "Terms"]
  assert len(driver.find_elements("css selector", ".point.run")) == len(tables.summary["frontier"])
  assert json.loads(texts(driver, "pre")[0]) == tables.summary["config"]
  first = tables.summary["detectors"][0]["feature"]
  find(driver, f".about a[href='#/feature/{first}']").click()
  wait_for_feature(driver, first)


def test_site_without_domains_or_summary_opens(driver, tables, tmp_path):
  bare = dataclasses.replace(tables, domains=[], summary={}, domain_share_FD=np.zeros((N_FEATURES, 0)),
                             example_domain_FE=np.full_like(tables.example_domain_FE, -1))
  address = build_browser(bare, tmp_path / "site", "bare").as_uri()
  for route, selector in (("#/", "#features tbody tr"), ("#/feature/0", ".examples li"),
                          ("#/about", ".terms")):
    driver.get("about:blank")
    driver.get(address + route)
    assert find(driver, selector).is_displayed()
  assert driver.get_log("browser") == []


def test_missing_data_says_so(driver, tmp_path):
  index = build_browser(browser_fixture.make_tables(20), tmp_path / "site", "x", features_per_file=10)
  (tmp_path / "site" / "data" / "features-00001.js").unlink()
  driver.get(index.as_uri() + "#/feature/15")
  assert "data/features-00001.js could not be read" in find(driver, ".message").text
  (tmp_path / "site" / "data" / "index.js").unlink()
  driver.refresh()
  assert "data/index.js could not be read" in find(driver, ".message").text
  driver.get_log("browser")  # the missing files are reported there
