"""Five things that a person wants of the demo's pages, each in one search or at most four clicks, in a real browser."""

import collections

import browser_fixture
import pytest
from browser_fixture import find, listed, texts, visit, wait
from tiny_run import run

import monojax

pytestmark = pytest.mark.slow  # it makes the demo


class Person:
  """Somebody in front of a page, whose clicks and searches are counted."""

  def __init__(self, driver, site):
    self.driver, self.site, self.did = driver, site, collections.Counter()

  def opens(self, route=""):
    """Opens the site anew; what is done from here on counts."""
    visit(self.driver, self.site.as_uri() + route)
    self.did.clear()

  def clicks(self, selector):
    self.did["clicks"] += 1
    find(self.driver, selector).click()

  def types(self, selector, text):
    self.did["searches"] += 1
    field = find(self.driver, selector)
    field.clear()
    field.send_keys(text)

  def listed(self):
    """The features of the list's first page, and how many there are on all."""
    return listed(self.driver)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("demo") / "demo"
  result = run("monosemanticity", workdir, "--preset=demo", timeout=1800)
  assert result.returncode == 0, result.stderr[-3000:]
  return monojax.load(workdir)


@pytest.fixture
def person(demo, driver):
  browser_fixture.require_browser()
  return Person(driver, demo.directory / "browser" / "site" / "index.html")


def test_the_arabic_feature_is_one_search_away(person, demo):
  person.opens()
  person.types("#home-search", "arabic\n")
  wait(person.driver, lambda: person.driver.find_elements("css selector", "#features"))
  wait(person.driver, lambda: 0 < person.listed()[1] < 100)
  features = demo.features
  arabic = [i for i, name in enumerate(features.domains) if name.startswith("ar_")]
  assert max(features.domain_share_FD[person.listed()[0]][:, arabic].sum(1)) > 0.5
  assert person.did == {"searches": 1}


def test_what_fires_on_def_is_one_search_away(person, demo):
  person.opens()
  person.types("#home-search", '"def"\n')
  wait(person.driver, lambda: person.driver.find_elements("css selector", "#features"))
  wait(person.driver, lambda: 0 < person.listed()[1] < 100)
  f_TF = demo.encode("def main(x):\n  return x").f_TF
  assert set(person.listed()[0]) & set((f_TF[1] > 0).nonzero()[0].tolist())
  assert person.did == {"searches": 1}


def test_two_features_are_compared_in_two_clicks(person):
  person.opens()
  person.clicks("main .plain a[href*='#/feature/']")
  person.clicks(".steps a[href^='#/compare/']")
  wait(person.driver, lambda: len(person.driver.find_elements("css selector", ".columns.two [data-feature]")) == 2)
  assert person.did == {"clicks": 2}


def test_what_a_feature_does_to_a_text_takes_three_clicks(person):
  person.opens()
  person.clicks("#pages a[href='#/try']")
  wait(person.driver, lambda: find(person.driver, "#own-status").get_attribute("data-ready"))
  person.clicks("#in-text button.choose")
  wait(person.driver, lambda: person.driver.find_elements("css selector", "#own-tokens .helps, #own-tokens .hurts"))
  assert person.did["clicks"] <= 4


def test_the_dna_feature_is_steered_in_two_clicks(person):
  person.opens()
  rows = dict(zip(texts(person.driver, "main .plain td:first-child"), texts(person.driver, "main .plain td:last-child"),
                  strict=True))
  person.clicks(f"main .plain a[href='#/feature/{rows['dna']}']")  # one of the ten features to begin with
  person.clicks("#steering #write")
  wait(person.driver, lambda: find(person.driver, "#steering [data-written]"))
  steered = texts(person.driver, "#steering .written")[1]
  assert sum(letter in "ACGT\n" for letter in steered) > 0.6 * len(steered), steered
  assert person.did == {"clicks": 2}
