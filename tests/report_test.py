"""A study's page: what is written, and what a real browser makes of it."""

import re

import browser_fixture
import numpy as np
import pytest

from monojax.browser.report import Picture, Table, Text, shown, write_report

SECTIONS = {
    "Figures & <tables>": [
        Table(("what", "ours", "paper"), [("a <b>", 0.123456, None), ("b", 12345, "≥ 1")], "A note.")],
    "Pictures": [
        Text("Two of them; </script> is no end."),
        Picture([{"type": "heatmap", "z": np.eye(3)}], {"title": {"text": "</script>"}}, "The first."),
        Picture([{"type": "scatter", "x": np.arange(3), "y": np.array([0.5, np.nan, 2.0], np.float32)}], {})]}


def test_numbers_are_shown_shortly():
  assert [shown(value) for value in (None, "x", True, 12345, 0.00012345, 123456.78, np.float32(0.5), np.int64(7))] == [
      "–", "x", "True", "12,345", "0.0001234", "123,456.8", "0.5", "7"]


def test_the_page_holds_everything_and_fetches_nothing(tmp_path):
  path = write_report(tmp_path, "A study & more", SECTIONS)
  page = path.read_text()
  assert path == tmp_path / "index.html" and (tmp_path / "plotly.min.js").stat().st_size > 1e6
  assert "a &lt;b&gt;" in page and "12,345" in page and "A note." in page and "<\\/script>" in page
  assert re.findall(r'(?:src|href)="([^#"]*)"', page) == ["plotly.min.js"]
  assert "null" in page  # what is not a number is a gap


def test_without_plotly_the_page_says_so(tmp_path, monkeypatch):
  monkeypatch.setattr("monojax.browser.report._plotly", lambda: None)
  page = write_report(tmp_path, "A study", SECTIONS).read_text()
  assert "monojax[report]" in page and "The first." in page and not (tmp_path / "plotly.min.js").exists()


def test_in_a_browser_all_pictures_are_drawn(tmp_path):
  if missing := browser_fixture.missing_browser():
    pytest.skip(missing)
  pytest.importorskip("selenium")
  path = write_report(tmp_path, "A study & more", SECTIONS)
  with browser_fixture.chromium() as driver:
    assert_drawn(driver, path, 2)
    assert driver.title == "A study & more"
    assert [cell.text for cell in driver.find_elements("css selector", "td")][:2] == ["a <b>", "0.1235"]


def assert_drawn(driver, path, n_pictures):
  """The page opens from disk without an error, and each of its pictures has been drawn."""
  driver.get(path.as_uri())
  browser_fixture.wait(driver, lambda: driver.execute_script("return document.body.dataset.drawn") is not None)
  assert driver.execute_script("return document.body.dataset.drawn") == str(n_pictures)
  assert len(driver.find_elements("css selector", ".picture .main-svg")) >= n_pictures
  assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
