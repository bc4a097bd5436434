"""What the pages draw in a real browser where text is awkward: narrow screens, long words, tokens within characters."""

import dataclasses
import json

import browser_fixture
import numpy as np
import pytest
from browser_fixture import find, texts, visit, wait, wait_for_feature, without

from monojax.analysis import tables as feature_tables
from monojax.browser.build import build_browser

N_FEATURES = 5
LONG = "w" * 120


def made(n_features=N_FEATURES):
  """Tables with long names, long tokens, long figures: whatever could widen a page."""
  tables = browser_fixture.make_tables(n_features, seed=2)
  strings = [(text + LONG, " " * 150, text)[i % 3] for i, text in enumerate(tables.token_strings)]
  domains = [f"a_domain_with_a_long_name_and_no_space_number_{i}" for i in range(len(tables.domains))]
  summary = {**tables.summary, "figures": {**tables.summary["figures"], f"detectors/{LONG}/f1": 0.5, "recipe": LONG},
             "detectors": [{**row, "class": LONG} for row in tables.summary["detectors"]]}
  return dataclasses.replace(tables, token_strings=strings, domains=domains, summary=summary)


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
  folder = tmp_path_factory.mktemp("sites")
  return [build_browser(browser_fixture.make_tables(N_FEATURES, seed=1), folder / "usual", "a run"),
          build_browser(made(), folder / "long", LONG)]


@pytest.mark.parametrize("width", (320, 390, 1280))
def test_no_page_is_wider_than_the_screen(driver, sites, width):
  driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                         {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False})
  for site in sites:
    visit(driver, site.as_uri())
    for route in ("#/home", "#/?status=all", "#/?status=dead", "#/map", "#/compare/0", "#/about", "#/nothing",
                  f"#/feature/{LONG}", *(f"#/feature/{i}" for i in range(N_FEATURES))):
      driver.execute_script("location.hash = arguments[0]", route)
      if route.startswith("#/feature/") and LONG not in route:
        wait_for_feature(driver, route.rpartition("/")[2])
      else:
        wait(driver, lambda: driver.execute_script("return !document.getElementById('main').dataset.feature"))
      reaches = driver.execute_script("return document.scrollingElement.scrollWidth")
      assert reaches <= driver.execute_script("return innerWidth"), (site.parent.name, route)
    # Nothing of an example is cut off by its box: tokens wrap within it.
    assert driver.execute_script(
        "return [...document.querySelectorAll('.examples li')].every((row) => row.scrollWidth <= row.clientWidth &&"
        " row.querySelector('.text').clientWidth > 0.4 * row.clientWidth)")


def of_bytes(tables):
  """The tables with other tokens: Korean and Japanese text, cut into tokens of one or two bytes.

  Returns:
    (the tables, the bytes of each token): feature 0's examples are windows of such text.
  """
  text = "전화를 끊이지 않고 하늘을 걷다, 食べる、飲む。𠮷野家 e\u0301 \\xeb".encode()
  tokens, place = [], 0
  while place < len(text):
    size = 1 + place % 2
    tokens.append(text[place:place + size])
    place += size
  tokens += [rb"\xeb", rb"\x81", rb"\x8a"]  # tokens that are written like bytes, and are text
  n_strings = len(tables.token_strings)
  rng = np.random.default_rng(0)
  tokens_FEW, acts_FEW = tables.example_tokens_FEW.copy(), tables.example_acts_FEW.copy()
  n_examples, width = tokens_FEW.shape[1:]
  start_E = rng.integers(0, len(tokens) - width + 1, n_examples)
  start_E[0], start_E[1] = 0, len(tokens) - width
  tokens_FEW[0] = n_strings + start_E[:, None] + np.arange(width)
  acts_FEW[0] = rng.uniform(0, tables.max_act_F[0], (n_examples, width)) * (rng.random((n_examples, width)) < 0.6)
  tokens_FEW[0, 2, :3] = -1  # a window that leaves its context
  acts_FEW[0, 2, :3] = 0
  strings = [*tables.token_strings, *(token.decode(errors="backslashreplace") for token in tokens)]
  columns = {**tables.columns, "example_tokens_FEW": tokens_FEW, "example_acts_FEW": acts_FEW}
  known = {n_strings + i: token for i, token in enumerate(tokens) if token.decode(errors="ignore").encode() != token}
  return dataclasses.replace(tables, columns=columns, token_strings=strings, token_bytes=known), {
      n_strings + i: token for i, token in enumerate(tokens)}


def test_tokens_of_one_character_are_drawn_as_that_character(driver, tmp_path):
  tables, token_bytes = of_bytes(browser_fixture.make_tables(5))
  tables.save(tmp_path / "tables")
  loaded = feature_tables.FeatureTables.load(tmp_path / "tables")
  assert loaded.token_bytes == tables.token_bytes
  visit(driver, build_browser(loaded, tmp_path / "site", "x").as_uri() + "#/feature/0")
  wait_for_feature(driver, 0)
  rows = driver.execute_script(
      "return [...document.querySelectorAll('.examples .text')].map((row) => [...row.children].map((span) =>"
      " [span.dataset.token, Number(span.dataset.act), span.dataset.parts || null,"
      "  span.classList.contains('centre'), span.textContent]))")
  assert len(rows) == feature_tables.N_EXAMPLES
  joined = 0
  for e, row in enumerate(rows):
    inside_W = tables.example_tokens_FEW[0, e] >= 0
    ids, acts = tables.example_tokens_FEW[0, e][inside_W].tolist(), tables.example_acts_FEW[0, e][inside_W]
    whole = b"".join(token_bytes[token] for token in ids)
    assert "".join(text for text, *_ in row) == whole.decode(errors="backslashreplace")
    assert [centre for *_, centre, _ in row].count(True) == 1
    place = 0
    for text, act, parts, _, drawn in row:
      parts = json.loads(parts) if parts else [[text, acts[place], 0]]
      assert [string for string, *_ in parts] == [tables.token_strings[i] for i in ids[place:place + len(parts)]]
      np.testing.assert_allclose([value for _, value, _ in parts], acts[place:place + len(parts)], rtol=1e-3)
      np.testing.assert_allclose(act, max(value for _, value, _ in parts), rtol=1e-3)
      assert drawn == text or text.startswith("\u0301")
      joined += len(parts) > 1
      place += len(parts)
    assert place == len(ids)
  assert joined > 100
  assert [text for text, *_ in rows[1]][-3:] == [r"\xeb", r"\x81", r"\x8a"]  # text, not bytes
  # The tooltip has a line for each token of the character that the pointer is on.
  span = find(driver, ".examples [data-parts]")
  parts = json.loads(span.get_attribute("data-parts"))
  driver.execute_script("arguments[0].dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))", span)
  assert texts(driver, "#tooltip tr td:first-child") == [text for text, *_ in parts]
  assert find(driver, "#tooltip").text.startswith(span.text)
  # The list names the feature by the whole character, which a search finds.
  visit(driver, (tmp_path / "site" / "index.html").as_uri() + "#/?status=all&q=" + rows[0][2][0])
  top = [text for row in rows[:20] for text, _, _, centre, _ in row if centre]
  heads = texts(driver, "#features thead th")
  assert texts(driver, f"tr[data-id='0'] > :nth-child({heads.index('Top token') + 1}) .token") == top[:1]


def test_the_frontier_names_what_its_points_differ_in(driver, tmp_path):
  tables = browser_fixture.make_tables(5)
  for knobs, heading, shown in ((["sparsity_coefficient"], "Sparsity coefficient", "sparsity coefficient 0.002"),
                                (["k"], "k", "k 0.002"), (["k", "sparsity_coefficient"], "Sparsity", "sparsity 0.002"),
                                ([None], "Sparsity", "sparsity 0.002")):
    rows = [{**row, "knob": knobs[i % len(knobs)]} for i, row in enumerate(tables.summary["frontier"])]
    rows = [{name: value for name, value in row.items() if value is not None} for row in rows]
    changed = without(tables, summary={**tables.summary, "frontier": rows})
    visit(driver, build_browser(changed, tmp_path / heading, "x").as_uri())
    assert heading in texts(driver, "main th")
    assert texts(driver, ".point.run title")[0].startswith(f"{shown}:")
    assert "L1 coefficient" not in find(driver, "main").text
