"""What the pages are made from: a made-up column, a made-up page, and analyses that lack columns, in a real browser."""

import dataclasses

import browser_fixture
import numpy as np
import pytest
from browser_fixture import find, listed, texts, wait, wait_for_feature, without

from monojax.analysis.columns import CELL_KINDS, COLUMNS, ENTRY_KINDS, Cell, Column, Entry, Kind
from monojax.browser.build import build_browser
from monojax.config import InputError

N_FEATURES = 60
SPREAD = Column("spread_F", "float32", "The entropy of the shares of the domains, in nats.",
                 cells=(Cell("Spread", Kind.NUMBER, filterable=True),),
                 entry=Entry("Statistics", "Spread", Kind.NUMBER), absent_where="the text has no domain labels")
VISITED = ("", "#/?status=all", "#/feature/0", "#/feature/1", "#/about")


@pytest.fixture(scope="module")
def tables():
  return browser_fixture.make_tables(N_FEATURES, seed=1)


@pytest.fixture
def visit(driver):
  """A function that opens a route of a site anew; afterwards the console must be empty."""
  driver.get_log("browser")

  def open_route(index_html, route):
    browser_fixture.visit(driver, index_html.as_uri() + route)
    return driver
  yield open_route
  assert driver.get_log("browser") == []


def test_a_new_column_is_one_row_of_the_table(tables, tmp_path, visit):
  share_FD = tables.domain_share_FD.astype(np.float64)
  entropy_F = -(share_FD * np.log(np.maximum(share_FD, 1e-30))).sum(1).astype(np.float32)
  entropy_F[3] = np.nan  # shown as a dash, sorted last and filtered out
  longer = dataclasses.replace(tables, columns={**tables.columns, "spread_F": entropy_F})
  site = build_browser(longer, tmp_path / "site", "x", described=(*COLUMNS, SPREAD))
  rounded_F = np.array([float(f"{value:.4g}") for value in entropy_F])
  ids = np.arange(N_FEATURES)
  falling = ids[np.lexsort((ids, -rounded_F))].tolist()

  driver = visit(site, "#/?status=all")
  heading = find(driver, "th[data-sort=spread]")
  assert heading.text.startswith("Spread") and heading.get_attribute("title") == SPREAD.what
  find(driver, "th[data-sort=spread] button").click()
  wait(driver, lambda: listed(driver) == [falling, N_FEATURES])
  assert falling[-1] == 3 and texts(driver, "tr[data-id='3'] td:last-child") == ["–"]
  assert float(texts(driver, f"tr[data-id='{falling[0]}'] td:last-child")[0]) == rounded_F[falling[0]]

  low, high = np.sort(rounded_F[np.isfinite(rounded_F)])[[N_FEATURES // 3, 2 * N_FEATURES // 3]]
  for side, value in (("min", low), ("max", high)):
    field = find(driver, f"#filter-spread-{side}")
    assert field.get_attribute("aria-label") == f"{side} spread"
    field.send_keys(str(value))
  between = [i for i in falling if low <= rounded_F[i] <= high]
  assert 0 < len(between) < N_FEATURES - 1
  wait(driver, lambda: listed(driver) == [between, len(between)])
  driver.refresh()  # the address holds the filter
  wait(driver, lambda: listed(driver) == [between, len(between)])

  driver = visit(site, f"#/feature/{falling[0]}")
  wait_for_feature(driver, falling[0])
  assert texts(driver, ".statistics div:last-child")[0] == f"Spread{rounded_F[falling[0]]:g}"
  assert find(driver, ".statistics div:last-child").get_attribute("title") == SPREAD.what


def test_names_that_are_taken_are_refused(tables, tmp_path):
  twice = (*COLUMNS, dataclasses.replace(SPREAD, cells=(Cell("Max", Kind.NUMBER, key="max"),)))
  with pytest.raises(InputError, match="names max are used twice"):
    build_browser(tables, tmp_path / "site", "x", described=twice)
  reserved = (*COLUMNS, dataclasses.replace(SPREAD, cells=(Cell("Page", Kind.NUMBER, key="page"),)))
  with pytest.raises(InputError, match="keys page .* used by the list itself"):
    build_browser(tables, tmp_path / "site", "x", described=reserved)


def test_each_kind_has_a_drawing(tables, tmp_path, visit):
  driver = visit(build_browser(tables, tmp_path / "site", "x"), "#/")
  in_list, on_page = driver.execute_script(
      "const having = (part) => Object.keys(kinds).filter((name) => kinds[name][part]);"
      "return [having('cell'), [...Object.keys(panels), ...having('line')]]")
  assert CELL_KINDS == set(in_list) and CELL_KINDS | ENTRY_KINDS == set(Kind)
  assert ENTRY_KINDS <= set(on_page)


def test_neighbours_lead_to_their_pages(tables, tmp_path, visit):
  ids_F10 = tables.together_ids_F10.copy()
  ids_F10[0, :3], ids_F10[0, 3:], ids_F10[4] = (9, 4, 30), -1, -1
  changes = {"together_ids_F10": ids_F10, "best_neuron_F": np.full(N_FEATURES, 1234, np.int32)}
  site = build_browser(dataclasses.replace(tables, columns={**tables.columns, **changes}), tmp_path / "site", "x")
  driver = visit(site, "#/feature/0")
  wait_for_feature(driver, 0)
  panels = {panel.find_element("css selector", "h2").text: panel
            for panel in driver.find_elements("css selector", ".panel")}
  assert {"Nearest by direction", "Fire together", "Best neuron"} <= set(panels)
  assert panels["Best neuron"].find_element("css selector", "dd").text == "1234"
  together = panels["Fire together"]
  assert [cell.text for cell in together.find_elements("css selector", "th")] == ["Feature", "Correlation"]
  links = together.find_elements("css selector", "a")
  assert [link.text for link in links] == ["9", "4", "30"]
  values = [float(cell.text) for cell in together.find_elements("css selector", "td.numeric")]
  np.testing.assert_allclose(values, tables.together_correlations_F10[0, :3], atol=1e-3)
  links[1].click()
  wait_for_feature(driver, 4)
  assert "Fire together" not in texts(driver, ".panel h2")  # as there are none


def test_a_new_page_is_one_file(tables, tmp_path, visit):
  page = tmp_path / "page_domains.js"
  page.write_text("""
    app.page({
      path: "domains", nav: "Domains", order: 10,
      show(main, route) {
        main.replaceChildren(dom.element("h1", {}, "Domains"), dom.element("ul", {}, data.index.domains.map((name) =>
          dom.element("li", {}, dom.link(`#/?domain=${name}`, name)))));
        return "Domains";
      },
    });
    app.page({path: "never", nav: "Never", isAvailable: () => false, show: () => "Never"});""")
  site = build_browser(tables, tmp_path / "site", "a site", pages=[page])
  driver = visit(site, "#/")
  assert texts(driver, "#pages a") == ["Home", "Features", "Map", "Domains", "About the run"]
  find(driver, "#pages a[href='#/domains']").click()
  wait(driver, lambda: texts(driver, "main li") == tables.domains)
  assert driver.title == "Domains – a site"
  assert texts(driver, "#pages a[aria-current=page]") == ["Domains"]
  find(driver, "main li:nth-child(2) a").click()
  home = [i for i in np.flatnonzero(tables.status_F == 0) if tables.domain_share_FD[i].argmax() == 1]
  wait(driver, lambda: listed(driver) == [home, len(home)])
  driver = visit(site, "#/never")
  assert "There is no such page" in find(driver, ".message").text


LACKING = {
    "logits": (("logit", "top_logit", "bottom_logit"), {}, "Logit weights"),
    "domains": (("domain",), {}, "Domains"),
    "examples": (("example",), {}, None),
    "sources": (("source",), {}, "Where it comes from"),
    "everything": (("logit", "top_logit", "bottom_logit", "domain", "example", "longer", "source", "encoder_decoder"),
                   {"token_strings": [], "summary": {}}, "Domains"),
}


@pytest.mark.parametrize("case", LACKING)
def test_an_analysis_that_lacks_columns_gives_whole_pages(tables, tmp_path, visit, case):
  names, changes, panel = LACKING[case]
  has_examples = case not in ("examples", "everything")
  site = build_browser(without(tables, *names, **changes), tmp_path / "site", "x")
  for route in VISITED:
    driver = visit(site, route)
    assert find(driver, "main h1").get_attribute("textContent")
    if route.startswith("#/feature/"):
      wait_for_feature(driver, route.rpartition("/")[2])
      titles = texts(driver, ".panel h2")
      assert titles[0] == "Statistics" and panel not in titles
      assert len(texts(driver, ".evidence")) == has_examples
  driver = visit(site, "#/?status=all")
  assert listed(driver)[1] == N_FEATURES
  assert not {"undefined", "null", "NaN"} & set(texts(driver, "#features td"))
  placeholder = {"logits": "label, token or domain", "domains": "label, token or logit",
                 "examples": "label, logit or domain", "sources": "label, token, logit or domain",
                 "everything": "label "}[case]
  assert find(driver, "#filter-q").get_attribute("placeholder").startswith(placeholder)
  find(driver, "#filter-q").send_keys("17")
  wait(driver, lambda: 17 in listed(driver)[0] and listed(driver)[1] < N_FEATURES)


def test_an_analysis_without_labels_has_no_column_of_them(tables, tmp_path, visit):
  site = build_browser(without(tables, "label", labels=[]), tmp_path / "site", "x")
  driver = visit(site, "#/")
  assert "Label" not in [text.rstrip("↕") for text in texts(driver, "#features thead th")]
  driver = visit(site, "#/feature/0")
  wait_for_feature(driver, 0)
  assert not driver.find_elements("css selector", ".feature-label")


def test_every_control_has_a_name(tables, tmp_path, visit):
  """What a screen reader calls each field, menu, button and link; the menu of domains once had none."""
  driver = visit(build_browser(tables, tmp_path / "site", "x"), "#/")
  controls = driver.find_elements("css selector", "input, select, button, a")
  assert len(controls) > 20 and all(control.accessible_name for control in controls if control.is_displayed())
  assert find(driver, "#filter-domain").accessible_name == "Top domain"


def test_tokens_stay_out_of_the_domain_on_a_narrow_screen(tables, tmp_path):
  """A token of nothing but spaces at the end of a line once reached into the name beside it."""
  tokens = without(tables, token_strings=[" " * 30 if token == " river" else token for token in tables.token_strings])
  english = tables.domains.index("english")
  i = int(np.flatnonzero((tables.domain_share_FD.argmax(1) == english) & (tables.status_F == 0))[0])
  site = build_browser(tokens, tmp_path / "site", "x")
  browser_fixture.require_browser()
  with browser_fixture.chromium(width=390) as driver:
    browser_fixture.visit(driver, site.as_uri() + f"#/feature/{i}")
    wait_for_feature(driver, i)
    rows = driver.execute_script(
        "return [...document.querySelectorAll('.examples li')].map((row) => ["
        "Math.max(...[...row.querySelectorAll('.text .token')].flatMap((token) =>"
        " [...token.getClientRects()].map((box) => box.right))),"
        "row.querySelector('.source').getBoundingClientRect().left])")
    assert len(rows) > 50 and all(right <= left for right, left in rows)
