"""Made-up feature tables for the browser's tests, a headless Chromium, and screenshots of any site.

  python tests/browser_fixture.py SITE IMAGE [ROUTE] [--dark] [--width=1360] [--height=900]

writes a picture of a site (the folder with its index.html), for instance of a run's:
`python tests/browser_fixture.py runs/demo/browser/site docs/pictures/browser.png '#/feature/12'`.
"""

import argparse
import contextlib
import dataclasses
import pathlib
import shutil
import tempfile
import time

import numpy as np

from monojax.analysis import tables as feature_tables
from monojax.analysis.columns import COLUMNS, STATUSES, axes_of

HOSTILE = ["<script>alert(1)</script>", "<", "&amp;", '"', "'", "</script>", "\u2028", "\\", "`${x}`"]
WORDS = {
    "english": [" the", " of", " and", " river", " water", ".", ",", "\n", " council", " said", "ing"],
    "code": ["(", ")", "self", "def", " return", "\n    ", " =", "=\"", "[i", "]", ":", "_name", *HOSTILE],
    "hebrew": [" של", " את", " שלום", "ים", " ה", "ות", " על", "\\xd7", "\u05b7"],
    "chinese": ["的", "是", "我们", "，", "。", "在", "\\xe4\\xb8", "學", "中国"],
    "base64": ["aGk", "Zm9", "v", "Yg", "==", "QUJD", "x9", "+/", "3R"],
    "html": ["<div", ">", "</", "href", " class", "=\"", "img", "\t", "&nbsp;", "\r\n"],
}


def make_tables(n_features, seed=0):
  """`FeatureTables` of features that each prefer a domain and a few of its tokens.

  Feature 1 is dead, 2 is ultralow, 0 is regular and fires most on the first of `HOSTILE`.
  """
  rng = np.random.default_rng(seed)
  domains = list(WORDS)
  token_strings = sorted({token for words in WORDS.values() for token in words})
  ids = [np.array([token_strings.index(token) for token in words]) for words in WORDS.values()]
  status_F = rng.choice([feature_tables.REGULAR, feature_tables.ULTRALOW, feature_tables.DEAD, feature_tables.FAINT],
                        size=n_features, p=[0.8, 0.08, 0.06, 0.06]).astype(np.int8)
  status_F[:3] = feature_tables.REGULAR, feature_tables.DEAD, feature_tables.ULTRALOW
  n_tokens = 100_000_000
  density_F = 10 ** np.where(status_F == feature_tables.REGULAR, rng.normal(-3.1, 0.55, n_features),
                             rng.normal(-6.8, 0.3, n_features))
  n_fires_F = np.where(status_F == feature_tables.DEAD, 0, np.maximum(density_F * n_tokens, 1))
  n_fires_F = n_fires_F.astype(np.int64)
  fired_F = n_fires_F > 0
  max_act_F = np.where(fired_F, rng.gamma(12, 0.7, n_features), 0).astype(np.float32)
  home_F = rng.integers(len(domains), size=n_features)
  home_F[0] = domains.index("code")
  favourites_F2 = np.stack([rng.choice(ids[home], 2) for home in home_F])
  favourites_F2[0] = token_strings.index(HOSTILE[0])
  share_FD = rng.dirichlet(np.full(len(domains), 0.15), n_features) * 0.3
  share_FD[np.arange(n_features), home_F] += 0.7
  examples = _examples(rng, ids, home_F, favourites_F2, max_act_F, n_fires_F)
  bins_H = np.exp(-np.arange(40) / 8)
  logit_FV = np.sort(rng.normal(0, 0.12, (n_features, 40)), axis=1)
  order_FK = rng.permuted(np.tile(np.arange(len(token_strings)), (n_features, 1)), axis=1)[:, :20]
  neuron_FN = np.sort(rng.normal(0, 0.2, (n_features, 3)), axis=1)[:, ::-1]
  columns = dict(
      status_F=status_F,
      density_F=(n_fires_F / n_tokens).astype(np.float32),
      n_fires_F=n_fires_F,
      max_act_F=max_act_F,
      mean_act_F=(max_act_F * rng.uniform(0.1, 0.4, n_features)).astype(np.float32),
      encoder_bias_F=rng.normal(-0.5, 0.3, n_features).astype(np.float32),
      encoder_decoder_cosine_F=rng.uniform(0.2, 0.9, n_features).astype(np.float32),
      act_counts_FH=(rng.poisson(300 * bins_H, (n_features, 40)) * fired_F[:, None]).astype(np.int32),
      logit_counts_FH=rng.poisson(2000 * np.exp(-np.linspace(-3, 3, 40) ** 2), (n_features, 40)).astype(
          np.int32),
      logit_range_F2=np.stack([logit_FV[:, 0] - 0.1, logit_FV[:, -1] + 0.3], axis=1).astype(np.float32),
      top_logit_ids_FK=order_FK[:, :10].astype(np.int32),
      top_logit_values_FK=(logit_FV[:, :29:-1] + 0.3).astype(np.float32),
      bottom_logit_ids_FK=order_FK[:, 10:].astype(np.int32),
      bottom_logit_values_FK=logit_FV[:, :10].astype(np.float32),
      top_neuron_ids_FN=rng.integers(512, size=(n_features, 3)).astype(np.int32),
      top_neuron_weights_FN=neuron_FN.astype(np.float32),
      top_neuron_l1_share_FN=np.abs(neuron_FN / 13.8).astype(np.float32),
      domain_share_FD=(share_FD / share_FD.sum(axis=1, keepdims=True) * fired_F[:, None]).astype(np.float32),
      **examples)
  columns |= _other_columns(rng, columns, len(domains))
  labels = [f"the tokens of {domains[home]}; <img src=x onerror=alert({i})>" if fired else ""
            for i, (home, fired) in enumerate(zip(home_F, fired_F, strict=True))]
  others = [[["the next <b>best</b>", 0.41], ["numbers", 0.2]] if fired else [] for fired in fired_F]
  return feature_tables.FeatureTables(columns, token_strings, domains, _summary(rng, n_fires_F / n_tokens),
                                      labels=labels, other_labels=others)


def _other_columns(rng, columns, n_domains):
  """Random values for the columns of `COLUMNS` that are not made by name, as for one that was added to it."""
  lengths = {"D": n_domains}
  for name, array in columns.items():
    lengths |= dict(zip(axes_of(name), array.shape, strict=True))
  limits = {"token": min(map(len, WORDS.values())), "domain": n_domains, "feature": lengths["F"]}
  made = {}
  for column in COLUMNS:
    if column.name not in columns:
      shape = [int(axis) if axis.isdigit() else lengths.get(axis, 5) for axis in axes_of(column.name)]
      made[column.name] = (rng.random(shape) * limits.get(column.refers_to, 1 if "float" in column.dtype else 100)
                           ).astype(column.dtype)
  return made


def without(tables, *names, **changes):
  """The tables without the columns of those names, or of names that begin so, and with other fields changed."""
  kept = {name: array for name, array in tables.columns.items() if not name.startswith(names)}
  return dataclasses.replace(tables, columns=kept, **changes)


def _examples(rng, ids, home_F, favourites_F2, max_act_F, n_fires_F):
  """The example arrays: windows of home-domain tokens round a favourite, groups as `EXAMPLE_GROUPS`."""
  n_features, n_examples, width = len(home_F), feature_tables.N_EXAMPLES, 9
  tokens_FEW = np.stack([rng.choice(ids[home], (n_examples, width)) for home in home_F])
  pick_FE = rng.integers(2, size=(n_features, n_examples))
  tokens_FEW[:, :, 4] = np.take_along_axis(favourites_F2, pick_FE, axis=1)
  levels_E = np.concatenate([np.linspace(1, 0.95, 20),
                             *(np.full(5, (10 - i) / 11 + 0.005) for i in range(11)), np.full(20, 0.002)])
  acts_FEW = np.where(rng.random((n_features, n_examples, width)) < 0.12, rng.random((n_examples, width)), 0)
  acts_FEW[:, :, 4] = 1
  acts_FEW = acts_FEW * levels_E[:, None] * max_act_F[:, None, None]
  document_FE = rng.integers(10 ** 8, size=(n_features, n_examples))
  # Rare features have only the first of their top examples; some windows leave their context.
  n_here_F = np.where(n_fires_F > 100, n_examples, np.minimum(n_fires_F, 20))
  missing_FE = np.arange(n_examples) >= n_here_F[:, None]
  tokens_FEW[:, 3, :2] = -1
  tokens_FEW[missing_FE] = -1
  acts_FEW[tokens_FEW < 0] = 0
  return {"example_tokens_FEW": tokens_FEW.astype(np.int32), "example_acts_FEW": acts_FEW.astype(np.float32),
          "example_domain_FE": np.where(missing_FE, -1, home_F[:, None]).astype(np.int32),
          "example_document_FE": np.where(missing_FE, -1, document_FE).astype(np.int64)}


def _summary(rng, density_F):
  """A run's summary with every section that the page about the run knows."""
  counts, edges = np.histogram(np.log10(density_F[density_F > 0]), 40)
  detectors = [{"class": name, "feature": int(rng.integers(len(density_F))),
                "feature_f1": rng.uniform(0.7, 1), "neuron": int(rng.integers(512)),
                "neuron_f1": rng.uniform(0.1, 0.5)} for name in WORDS]
  frontier = [{"knob": "sparsity_coefficient", "sparsity": coefficient, "l0": l0, "ce_recovered_zero": recovered,
               "explained_variance": recovered - 0.1}
              for coefficient, l0, recovered in [(0.002, 18.3, 0.93), (0.004, 9.1, 0.88), (0.008, 4.4, 0.81),
                                                 (0.016, 2.2, 0.66)]]
  statuses = [{"status": name, "features": 3, "density": 0.01, "encoder_bias": -0.5, "encoder_decoder_cosine": 0.4,
               "max_act": 3.1, "variance_share": 0.7, "ce_share": None} for name in STATUSES]
  return {"figures": {"l0": 4.41, "ce_recovered_zero": 0.81, "ce_recovered_mean": 0.62,
                      "explained_variance": 0.712, "n_tokens": 100_000_000, "not_measured": float("nan")},
          "density_histogram": {"log10_edges": edges.tolist(), "counts": counts.tolist()},
          "statuses": statuses, "detectors": detectors, "frontier": frontier,
          "config": {"sae": {"n_features": len(density_F), "recipe": "paper", "note": "</script><b>"}}}


def missing_browser():
  """Why no browser can be driven here, or "" where one can."""
  missing = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
  return f"not on the PATH: {', '.join(missing)} (Debian: chromium, chromium-driver)" if missing else ""


def require_browser():
  """Skips the test where no browser can be driven."""
  import pytest
  if missing := missing_browser():
    pytest.skip(missing)
  pytest.importorskip("selenium")


@contextlib.contextmanager
def chromium(width=1360, height=900, dark=False):
  """A selenium driver of a headless Chromium with an empty profile."""
  from selenium import webdriver
  from selenium.webdriver.chrome.service import Service
  with tempfile.TemporaryDirectory() as profile:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                     "--disable-background-networking", "--disable-component-update", "--disable-sync",
                     "--disable-dev-shm-usage", f"--user-data-dir={profile}"):
      options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
      driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                             {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False})
      driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [
          {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})
      yield driver
    finally:
      driver.quit()


def wait(driver, condition):
  """Waits until `condition()` is true and returns what it gave. What was just redrawn is looked for again."""
  from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
  from selenium.webdriver.support.ui import WebDriverWait
  missing = (NoSuchElementException, StaleElementReferenceException)
  return WebDriverWait(driver, 30, poll_frequency=0.05, ignored_exceptions=missing).until(lambda _: condition())


def visit(driver, address):
  """Loads a page anew, also where only what follows # differs, and waits until its heading is drawn."""
  driver.get("about:blank")
  driver.get(address)
  wait(driver, lambda: find(driver, "main h1"))


def find(driver, selector):
  """The first element that a CSS selector matches, as soon as there is one."""
  return wait(driver, lambda: driver.find_element("css selector", selector))


def listed(driver):
  """The ids of the rows on the page, and the number of matches."""
  return driver.execute_script(
      "return [[...document.querySelectorAll('#features tbody tr')].map((row) => Number(row.dataset.id)),"
      " Number(document.querySelector('.count-line').dataset.matches)]")


def shown(driver):
  """The id, as text, of the feature whose page is shown, or None."""
  return driver.execute_script("return document.getElementById('main').dataset.feature")


def wait_for_feature(driver, id):
  """Waits until the page of feature `id` is drawn."""
  wait(driver, lambda: shown(driver) == str(id))


def texts(driver, selector):
  """The text of each element that a CSS selector matches."""
  return driver.execute_script(
      "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)", selector)


def press(driver, key):
  """Presses and releases a key."""
  from selenium.webdriver.common.action_chains import ActionChains
  ActionChains(driver).send_keys(key).perform()


def screenshot(site, image, route="#/", width=1360, height=900, dark=False):
  """Writes a picture of the page `route` of the site in the folder `site` to the file `image`."""
  with chromium(width, height, dark) as driver:
    visit(driver, (pathlib.Path(site).resolve() / "index.html").as_uri() + route)
    time.sleep(1)
    driver.save_screenshot(str(image))


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("site")
  parser.add_argument("image")
  parser.add_argument("route", nargs="?", default="#/")
  parser.add_argument("--dark", action="store_true")
  parser.add_argument("--width", type=int, default=1360)
  parser.add_argument("--height", type=int, default=900)
  screenshot(**vars(parser.parse_args()))
