"""The pages of the site of a run's features, in a real browser."""

import html
import json
import re

import browser_fixture
import numpy as np
import pytest
from browser_fixture import find, listed, press, shown, texts, visit, wait, wait_for_feature

from monojax.analysis import tables as feature_tables
from monojax.analysis.columns import STATUSES
from monojax.browser.build import build_browser
from monojax.browser.contents import group_headings
from monojax.browser.single import feature_html
from monojax.config import InputError
from monojax.pipeline.answers import FeaturePage

N_FEATURES = 300
AS_SHOWN = {"\t": "⇥", "\r\n": "↵", "\u2028": "U+2028", "\u05b7": "\u25cc\u05b7"}  # what is not its own text


@pytest.fixture(scope="module")
def tables():
  return browser_fixture.make_tables(N_FEATURES)


@pytest.fixture(scope="module")
def site(tables, tmp_path_factory):
  """The folder of a built site, with a title that is hostile to HTML."""
  return build_browser(tables, tmp_path_factory.mktemp("browser") / "site", "A <b>run</b> & more").parent


def assert_rounded(got, want):
  """Equal to four significant digits."""
  np.testing.assert_allclose(np.array(got, float), np.asarray(want, float), rtol=6e-4, atol=0)


# Each test opens the pages it needs; none leaves anything behind but the address.

@pytest.fixture
def page(driver, site):
  """A function that opens a route of the site anew; afterwards the console must be empty."""
  driver.get_log("browser")

  def open_route(route):
    visit(driver, (site / "index.html").as_uri() + route)
    return driver
  yield open_route
  assert driver.get_log("browser") == []


def regular(tables):
  return np.flatnonzero(tables.status_F == feature_tables.REGULAR)


def test_index_lists_each_status_apart(page, tables):
  driver = page("#/")
  assert find(driver, ".brand").text == "A <b>run</b> & more"
  for name, status in (("regular", feature_tables.REGULAR), ("ultralow", feature_tables.ULTRALOW),
                       ("dead", feature_tables.DEAD), ("faint", feature_tables.FAINT)):
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
  ids = regular(tables)
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
  ids = regular(tables)
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
  find(driver, "#filter-density-max").send_keys("-3")
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
  ids = regular(tables)
  rounded = np.array([float(f"{value:.4g}") for value in tables.max_act_F])
  i = int(ids[np.lexsort((ids, -rounded[ids]))][1])
  find(driver, f"tr[data-id='{i}'] a").click()
  wait_for_feature(driver, i)
  assert find(driver, "h1").text == f"Feature {i}"
  assert not [text for text in texts(driver, "main") if "[object" in text]
  panels = {panel.find_element("css selector", "h2").get_attribute("textContent"): panel
            for panel in driver.find_elements("css selector", ".numbers .panel")}
  assert panels["Activations"].find_elements("css selector", "svg.chart")
  (sources,) = panels["Where it comes from"].find_elements("css selector", "table.bars")
  rows = [row.text for row in sources.find_elements("css selector", "tr")]
  there = tables.source_ids_FS[i] >= 0
  assert len(rows) == there.sum() + 1 and f"{tables.source_back_FS[i][0]} before" in rows[0]
  find(driver, ".examples button.more").click()
  assert len(driver.find_elements("css selector", ".examples .longer .token")) == (
      tables.longer_tokens_FLU[i, 0] >= 0).sum()
  find(driver, ".examples button.more").click()
  values = dict(zip(texts(driver, ".statistics dt"), texts(driver, ".statistics dd"), strict=True))
  assert values["Fires"] == f"{tables.n_fires_F[i]:,}"
  assert float(values["Max activation"]) == pytest.approx(tables.max_act_F[i], rel=1e-3)
  assert float(values["Encoder bias"].replace("−", "-")) == pytest.approx(tables.encoder_bias_F[i], rel=1e-3)
  assert texts(driver, ".group h3") == group_headings()
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
    assert {bidi for _, _, bidi, _ in example} == {"normal"}
    for token, _, _, text in example:
      assert text == AS_SHOWN.get(token, token.replace("\n", "↵"))


def test_labels_are_listed_found_and_lead_a_page(page, tables):
  driver = page("#/?sort=score")
  ids = regular(tables)
  rounded = np.array([float(f"{value:.4g}") for value in tables.label_score_F])
  falling = ids[np.lexsort((ids, -rounded[ids]))].tolist()
  wait(driver, lambda: listed(driver)[0] == falling[:100])
  assert texts(driver, f"tr[data-id='{falling[0]}'] .feature-label") == [tables.labels[falling[0]]]
  find(driver, "#filter-q").send_keys(f"tokens of {tables.domains[0]}")
  want = [i for i in falling if tables.labels[i].startswith(f"the tokens of {tables.domains[0]};")]
  wait(driver, lambda: listed(driver) == [want[:100], len(want)])
  driver = page(f"#/feature/{falling[0]}")
  wait_for_feature(driver, falling[0])
  shown_label = find(driver, ".heading .feature-label").text
  assert find(driver, ".heading .other-labels").text == "Next best: the next <b>best</b> (0.41) · numbers (0.20)"
  assert shown_label.startswith(tables.labels[falling[0]]) and "<img src=x" in shown_label
  assert shown_label.endswith(f"score {rounded[falling[0]]:.2f}")
  assert not driver.find_elements("css selector", "main img")


def test_effects_are_underlined_and_told_by_the_tooltip(page, tables):
  driver = page("#/feature/0")
  wait_for_feature(driver, 0)
  found = driver.execute_script(
      "return [...document.querySelectorAll('.examples .text')].map((text) => [...text.children]"
      ".map((token) => [Number(token.dataset.effect || 0), token.classList.contains('helps')]))")
  for e, example in enumerate(found):
    effects_W = tables.example_effects_FEW[0, e][tables.example_tokens_FEW[0, e] >= 0]
    np.testing.assert_allclose([effect for effect, _ in example], effects_W, atol=0.006)
    assert [helps for _, helps in example] == (np.abs(effects_W) >= 0.005).tolist()
  driver.execute_script("document.querySelector('.examples .centre').dispatchEvent("
                        "new MouseEvent('mouseover', {bubbles: true}))")
  tooltip = wait(driver, lambda: find(driver, "#tooltip").text)
  assert "loss without the feature +" in tooltip and "next tokens fall" in tooltip and "and rise" in tooltip


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


def test_tokens_run_as_their_script_is_written(page, tables):
  hebrew = tables.domains.index("hebrew")
  i = int(next(i for i in regular(tables) if tables.domain_share_FD[i].argmax() == hebrew))
  driver = page(f"#/feature/{i}")
  wait_for_feature(driver, i)
  rows = driver.execute_script(
      "return [...document.querySelectorAll('.examples .text')].map((text) => [...text.children].map((token) => {"
      "  const letters = [...token.childNodes].find((node) => /[\\u05d0-\\u05ea]/.test(node.textContent));"
      "  if (!letters) return [0, 0, false];"
      "  const range = document.createRange();"
      "  range.selectNode(letters);"
      "  const {left, top} = range.getBoundingClientRect();"
      "  return [left, top, true];}))")
  pairs = [(one, two) for row in rows for one, two in zip(row, row[1:], strict=False)
           if one[2] and two[2] and one[1] == two[1]]
  assert len(pairs) > 100 and all(two[0] < one[0] for one, two in pairs)
  driver = page("#/feature/0")  # code
  wait_for_feature(driver, 0)
  lefts = driver.execute_script(
      "return [...document.querySelectorAll('.examples .text')].map((text) => [...text.children]"
      ".map((token) => token.getClientRects()[0]).map(({top, left}) => [top, left]))")
  assert all(two[0] > one[0] + 5 or two[1] >= one[1]  # line by line, of a token in two lines where it begins
             for row in lefts for one, two in zip(row, row[1:], strict=False))


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


def test_home_says_what_the_run_is_and_where_to_begin(page, tables):
  driver = page("")
  assert find(driver, "h1").text == "A <b>run</b> & more" and find(driver, "nav a[aria-current]").text == "Home"
  assert find(driver, "h1 + p").text == f"{N_FEATURES} features, learned by the recipe paper."
  assert texts(driver, "main h2") == ["Ten features to begin with", "Map", "In figures", "Densities",
                                      "Sparsity against fidelity"]
  assert texts(driver, ".figures dt")[:3] == ["4.4", "71.2 %", "81.0 %"]
  assert len(driver.find_elements("css selector", ".point.run")) == len(tables.summary["frontier"])
  for status, name in enumerate(STATUSES):
    bars = texts(driver, f".chart rect.{name} title")
    assert sum(int(bar.split(": ")[1]) for bar in bars) == ((tables.status_F == status) & (tables.n_fires_F > 0)).sum()
  drawn = np.isfinite(tables.label_score_F) & (tables.n_fires_F > 0)
  assert int(find(driver, "canvas").get_attribute("data-drawn")) == drawn.sum()
  best = int(texts(driver, "main .plain td.numeric a")[0])
  assert tables.status_F[best] == feature_tables.REGULAR
  find(driver, "#home-search").send_keys("שלום\n")
  wait(driver, lambda: find(driver, "#filter-q").get_property("value") == "שלום")
  page("")
  find(driver, f".tiles a[href='#/?status={STATUSES[1]}']").click()
  ultralow = np.flatnonzero(tables.status_F == feature_tables.ULTRALOW).tolist()
  wait(driver, lambda: listed(driver) == [ultralow[:100], len(ultralow)])


def test_about_page(page, tables):
  driver = page("#/about")
  assert texts(driver, "main h2") == [
      "Figures", "Kinds of features", "Detectors of a class of text", "Configuration", "Terms"]
  assert json.loads(texts(driver, "pre")[0]) == tables.summary["config"]
  first = tables.summary["detectors"][0]["feature"]
  find(driver, f".about a[href='#/feature/{first}']").click()
  wait_for_feature(driver, first)


def test_two_features_stand_side_by_side(page, tables):
  driver = page("#/compare/0,6")
  wait(driver, lambda: find(driver, "#main").get_attribute("data-compared") == "0,6")
  assert texts(driver, ".columns.two h2 a") == ["Feature 0", "Feature 6"]
  assert [text.split("  ")[0] for text in texts(driver, ".columns.two .heading .feature-label")] == [
      tables.labels[0], tables.labels[6]]
  assert len(driver.find_elements("css selector", "[data-feature='6'] .examples")) >= 2
  fields = driver.find_elements("css selector", "#compare input")
  fields[1].clear()
  fields[1].send_keys("7\n")
  wait(driver, lambda: find(driver, "#main").get_attribute("data-compared") == "0,7")
  driver = page("#/feature/4")
  wait_for_feature(driver, 4)
  find(driver, ".steps a[href='#/compare/4']").click()
  nearest = next(i for i in tables.nearest_ids_F10[4] if tables.status_F[i] == feature_tables.REGULAR)
  wait(driver, lambda: find(driver, "#main").get_attribute("data-compared") == f"4,{nearest}")
  assert f"cosine {tables.nearest_cosines_F10[4][list(tables.nearest_ids_F10[4]).index(nearest)]:.2f}" in find(
      driver, "#alike").text
  for route in ("#/compare/1,2,3", "#/compare/%3Cb%3E", f"#/compare/0,{N_FEATURES}"):
    assert "Two features are needed" in find(page(route), ".message h1").text


def test_points_of_the_map_lead_to_features(page, tables):
  driver = page("#/map")
  scored = int((np.isfinite(tables.label_score_F) & (tables.n_fires_F > 0)).sum())
  wait(driver, lambda: int(find(driver, "canvas").get_attribute("data-drawn")) == scored)
  for value in "12":
    find(driver, f"#map-colour option[value='{value}']").click()
  assert "0.5" in find(driver, "#map-legend").text
  at = driver.execute_script(
      "const canvas = document.querySelector('canvas');"
      "const {data, width, height} = canvas.getContext('2d').getImageData(60, 20, 800, 500);"
      "for (let i = 3; i < data.length; i += 4) if (data[i] === 255) {"
      "  const [x, y] = [60 + (i >> 2) % width, 20 + Math.floor((i >> 2) / width)];"
      "  const box = canvas.getBoundingClientRect();"
      "  return [box.left + x * box.width / canvas.width, box.top + y * box.height / canvas.height];}")
  for kind in ("mousemove", "click"):
    driver.execute_script("document.querySelector('canvas').dispatchEvent(new MouseEvent(arguments[0],"
                          " {clientX: arguments[1], clientY: arguments[2], bubbles: true}))", kind, *at)
    if kind == "mousemove":
      named = re.match(r"Feature (\d+): (.+)", find(driver, "#map-note").text)
      assert tables.labels[int(named[1])] == named[2]
  wait_for_feature(driver, int(named[1]))


def test_arrow_keys_go_from_point_to_point_of_the_map(page):
  from selenium.webdriver.common.keys import Keys
  driver = page("#/map")
  canvas = find(driver, "canvas")
  canvas.send_keys(Keys.ENTER)  # nothing is chosen yet
  note = lambda: find(driver, "#map-note").text
  assert "arrow keys" in note()
  visited = []
  for key in (Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_UP):
    canvas.send_keys(key)
    visited.append(int(re.match(r"Feature (\d+)", note())[1]))
  density, score = (driver.execute_script(
      f"return data.cells.find(({{key}}) => key === '{key}').values") for key in ("density", "score"))
  x, y = [[values[i] for i in visited] for values in (density, score)]
  assert x[0] < x[1] < x[2] and y[3] > y[2] and "#/map" in driver.current_url
  canvas.send_keys(Keys.ENTER)
  wait_for_feature(driver, visited[-1])


def test_a_feature_alone_is_one_file(driver, tables, tmp_path):
  driver.get_log("browser")
  page = FeaturePage(feature_html(tables, np.int64(0), "A <b>run</b> & more"))
  page.save(tmp_path / "one.html")
  assert len(repr(page)) < 50 and html.unescape(page._repr_html_()).count(page.html) == 1
  visit(driver, (tmp_path / "one.html").as_uri())
  assert find(driver, "h1").text == "Feature 0" and find(driver, ".place").text == "A <b>run</b> & more"
  assert find(driver, ".feature-label").text.startswith(tables.labels[0])
  largest = [float(text) for text in texts(driver, "[data-group='Top activations'] .act")]
  np.testing.assert_allclose(largest, tables.example_acts_FEW[0, :20, 4], atol=0.006)
  neighbours = tables.nearest_ids_F10[0][tables.nearest_ids_F10[0] >= 0]
  assert {tables.labels[i] for i in neighbours} - {""} <= set(texts(driver, ".feature-label"))
  assert not [link for link in driver.find_elements("css selector", "a[href*='#/']") if link.is_displayed()]
  assert driver.get_log("browser") == []
  with pytest.raises(InputError, match="0 to 299"):
    feature_html(tables, 300, "x")


def test_a_feature_of_a_site_is_embedded_without_what_is_around_it(page, site):
  driver = page("?embed#/feature/3")
  wait_for_feature(driver, 3)
  assert not find(driver, "header.site").is_displayed() and not find(driver, ".steps").is_displayed()
  press(driver, "j")
  assert find(driver, "h1").text == "Feature 3"
  link = find(driver, "#main .plain a[href*='#/feature/']")
  assert link.get_attribute("target") == "_blank" and "?" not in link.get_attribute("href")


def test_own_labels_are_kept_listed_and_saved(page, tmp_path):
  driver = page("#/feature/3")
  wait_for_feature(driver, 3)
  find(driver, ".own-label input").send_keys("<b>mine</b>\t")
  page("#/feature/4")
  wait_for_feature(driver, 4)
  assert find(driver, ".own-label input").get_property("value") == ""
  page("#/about")
  wait(driver, lambda: find(driver, "#own-labels dt").text == "3")
  assert find(driver, "#own-labels dd").text == "<b>mine</b>"
  driver.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
  find(driver, "#save-labels").click()
  wait(driver, lambda: (tmp_path / "labels.json").is_file())
  saved = json.loads((tmp_path / "labels.json").read_text())
  assert saved == {"title": "A <b>run</b> & more", "labels": {"3": "<b>mine</b>"}}
  page("#/feature/3")
  wait_for_feature(driver, 3)
  find(driver, ".own-label input").clear()
  press(driver, "\t")
  page("#/about")
  assert not driver.find_elements("css selector", "#own-labels")


def test_sites_of_several_dictionaries_lead_to_one_another(driver, tmp_path):
  driver.get_log("browser")
  listed = [{"name": f"<b>{folder}", "folder": folder, "recipe": "topk", "n_features": 40, "writes": ["layer.0.resid"],
             "l0": 4.0 + i, "explained_variance": 0.8, "ce_recovered_zero": 0.9 + i / 100}
            for i, folder in enumerate(("one & a", "two"))]
  for own, other in (("one & a", "two"), ("two", "one & a")):
    tables = browser_fixture.make_tables(40)
    tables.summary["dictionaries"] = {"own": own, "all": listed, "matches": {
        other: [[(i + 1) % 40 for i in range(40)], [0.9 if i < 10 else 0.3 for i in range(40)]]}}
    build_browser(tables, tmp_path / own, own)
  visit(driver, (tmp_path / "one & a" / "index.html").as_uri() + "#/dictionaries")
  assert texts(driver, "#dictionary option") == ["<b>one & a", "<b>two"]
  assert "<b>two" in find(driver, "#main").text and "25 %" in find(driver, "#main").text
  assert len(driver.find_elements("css selector", ".point.run")) == 2
  driver.find_elements("css selector", "#dictionary option")[1].click()
  wait(driver, lambda: find(driver, ".brand").text == "two")
  assert find(driver, "#dictionary").get_property("value") == "two"
  visit(driver, (tmp_path / "two" / "index.html").as_uri() + "#/feature/7")
  wait_for_feature(driver, 7)
  find(driver, "#main a[href*='one']").click()
  wait_for_feature(driver, 8)
  assert find(driver, ".brand").text == "one & a" and driver.get_log("browser") == []
  visit(driver, (tmp_path / "two" / "index.html").as_uri() + "?embed#/feature/7")
  wait_for_feature(driver, 7)
  assert find(driver, "#main a[href*='one']").get_attribute("href") == (
      (tmp_path / "one & a" / "index.html").as_uri().replace("&", "%26") + "#/feature/8")


def test_missing_data_says_so(driver, tmp_path):
  index = build_browser(browser_fixture.make_tables(20), tmp_path / "site", "x", features_per_file=10)
  (tmp_path / "site" / "data" / "features-00001.js").unlink()
  visit(driver, index.as_uri() + "#/feature/15")
  assert "data/features-00001.js could not be read" in find(driver, ".message").text
  (tmp_path / "site" / "data" / "index.js").unlink()
  visit(driver, index.as_uri() + "#/feature/15")
  assert "data/index.js could not be read" in find(driver, ".message").text
  driver.get_log("browser")  # the missing files are reported there
