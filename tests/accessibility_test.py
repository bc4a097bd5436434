"""Every page of a site, checked by the accessibility engine axe-core, wide and light, narrow and dark."""

import dataclasses

import browser_fixture
import pytest
from browser_fixture import find, visit, wait

from monojax.browser.build import build_browser

TEXTS = [{"name": "one", "tokens": [3, 4, 5], "features": [[[2, 30], [0.5, 2.0]], [[], []], [[2], [1.5]]]}]
DICTIONARIES = {"own": "one", "matches": {"two": [[5] * 120, [0.8] * 120]}, "all": [
    {"name": folder, "folder": folder, "recipe": "topk", "n_features": 120, "writes": ["layer.0.resid"], "l0": 4.0 + i,
     "explained_variance": 0.8, "ce_recovered_zero": 0.9 + i / 100} for i, folder in enumerate(("one", "two"))]}
PAGES = ("", "#/", "#/feature/3", "#/feature/1", "#/compare/3", "#/map", "#/try/2", "#/about", "#/nowhere",
         "#/dictionaries", "?embed#/feature/3")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  tables = browser_fixture.make_tables(120)
  tables = dataclasses.replace(tables, summary={**tables.summary, "texts": TEXTS, "dictionaries": DICTIONARIES})
  return build_browser(tables, tmp_path_factory.mktemp("accessible") / "site", "A run")


def violations(driver):
  """What axe-core calls wrong on the page, of weight "serious" or "critical"."""
  axe = pytest.importorskip("selenium_axe_python").Axe(driver)
  axe.inject()
  found = axe.run()
  assert found["passes"]  # it has looked
  return [(one["id"], one["help"], [node["html"] for node in one["nodes"]][:3]) for one in found["violations"]
          if one["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("width, dark", [pytest.param(1360, False, marks=pytest.mark.slow), (390, True)])
def test_no_page_has_a_serious_violation(site, finished, width, dark):
  browser_fixture.require_browser()
  found = {}
  with browser_fixture.chromium(width, dark=dark) as driver:
    driver.set_script_timeout(60)
    running = (finished[0] / "browser" / "site" / "index.html").as_uri()  # a site that runs its model
    for page in (*(site.as_uri() + page for page in PAGES), f"{running}#/try", f"{running}#/feature/0"):
      visit(driver, page)
      if "try" in page:
        wait(driver, lambda: find(driver, "#own-status").get_attribute("data-ready"))
      if page == f"{running}#/try":
        find(driver, "#own-tokens [data-position='3']").click()
        find(driver, "#on-token button.choose").click()
        wait(driver, lambda: driver.find_elements("css selector", "#comes-from table"))
      if wrong := violations(driver):
        found[page] = wrong
  assert not found
