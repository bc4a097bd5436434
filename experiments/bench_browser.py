"""How quickly pages come: the list, a feature, and a reader's own text, in a headless Chromium, from disk.

  python experiments/bench_browser.py --workdir=runs/demo
  python experiments/bench_browser.py --workdir=runs/demo --n_features=4096,131072

For each number of features a site is built from the run's tables, repeated as often as needed, in a temporary folder.
Prints its size, how long its first page takes to be painted, how long the list takes, opened anew, and the median over
some features of the time until a feature's page stands there. Of the run's own site it prints how long *Your text*
takes for a text that fills the model's context, and for one more letter at its end; and, over the texts that the page
offers, how far its features are from those of jax. Needs Chromium with its driver, and pip install selenium.
"""

import pathlib
import shutil
import statistics
import tempfile

import numpy as np
from absl import flags

from monojax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "the folder of a run with its pages", required=True)
_N_FEATURES = flags.DEFINE_list("n_features", ["4096", "131072"], "numbers of features")
_SHOWN = flags.DEFINE_integer("shown", 20, "features whose pages are opened", lower_bound=1)

# Both wait until the browser has drawn what they wait for.
_OPEN_FEATURE = """
const [id, done] = arguments;
const main = document.getElementById("main");
const started = performance.now();
const drawn = () => requestAnimationFrame(() => setTimeout(() => done(performance.now() - started)));
const observer = new MutationObserver(() => {
  if (main.dataset.feature === String(id)) { observer.disconnect(); drawn(); }
});
observer.observe(main, {attributes: true, childList: true});
location.hash = `#/feature/${id}`;
"""
_TYPE = """
const [text, done] = arguments;
const [field, tokens] = ["own-text", "own-tokens"].map((id) => document.getElementById(id));
const started = performance.now();
const observer = new MutationObserver(() => {
  observer.disconnect();
  requestAnimationFrame(() => setTimeout(() => done([performance.now() - started, tokens.childElementCount])));
});
observer.observe(tokens, {childList: true});
field.value = text;
field.dispatchEvent(new Event("input"));
"""
_FEATURES = """
const done = arguments[0];
Promise.all(["settings", "subject", "encoder"].map(liveFiles.load)).then(([settings, ...weights]) => {
  const machine = liveModel(settings, Object.assign({}, ...weights));
  done(settings.texts.map(([, text]) => text));
  const plain = ({ids, values}) => [[...ids], [...values]];
  window.featuresOf = (ids) => machine.read(machine.begin([]), ids).features.map(plain);
});
"""
_PAINTED = """
const [navigation] = performance.getEntriesByType("navigation");
const paint = performance.getEntriesByName("first-contentful-paint")[0];
return [paint ? paint.startTime : NaN, navigation.domContentLoadedEventEnd];
"""


def main():
  from monojax.analysis.tables import FeatureTables
  from monojax.browser.build import build_browser
  run = pathlib.Path(_WORKDIR.value)
  tables = FeatureTables.load(run / "analysis")
  with tempfile.TemporaryDirectory() as folder, _chromium(folder) as driver:
    for n in map(int, _N_FEATURES.value):
      page = build_browser(_repeated(tables, n), pathlib.Path(folder) / f"site{n}", f"{n} features")
      size = sum(file.stat().st_size for file in page.parent.rglob("*") if file.is_file())
      painted, listed = _opened(driver, page)
      ids = np.random.default_rng(0).choice(n, min(_SHOWN.value, n), replace=False).tolist()
      took = [driver.execute_async_script(_OPEN_FEATURE, i) for i in ids]
      print(f"{n:,} features: {size / 1e6:,.1f} MB; first paint after {painted:,.0f} ms, the list after "
            f"{listed:,.0f} ms; a feature's page after {statistics.median(took):,.0f} ms (at most {max(took):,.0f})",
            flush=True)
    _own_text(driver, run)


def _repeated(tables, n):
  """The tables with `n` features, those that are there one after the other, again and again."""
  import dataclasses

  from monojax.analysis.columns import axes_of
  which = np.arange(n) % tables.n_features
  columns = {name: array[which] if axes_of(name)[:1] == ("F",) else array for name, array in tables.columns.items()}
  of_which = lambda words_F: [words_F[i] for i in which] if words_F else []
  return dataclasses.replace(tables, columns=columns, labels=of_which(tables.labels),
                             other_labels=of_which(tables.other_labels))


def _opened(driver, page):
  """(milliseconds to the first paint of the home page, and until the scripts of the list's page have run)."""
  driver.get("about:blank")
  driver.get(page.as_uri())
  driver.find_element("css selector", "main canvas")
  painted, _ = driver.execute_script(_PAINTED)
  driver.get("about:blank")
  driver.get(page.as_uri() + "#/")
  driver.find_element("css selector", "#features tbody tr")
  return painted, driver.execute_script(_PAINTED)[1]


def _own_text(driver, run):
  """Prints how long the page "Your text" takes."""
  import monojax
  loaded = monojax.load(run)
  site = run.resolve() / "browser" / "site" / "index.html"
  if not (site.parent / "data" / "live.js").is_file():
    print("Your text: this site cannot run its model")
    return
  driver.get(site.as_uri() + "#/try")
  driver.find_element("css selector", "#own-status[data-ready]")
  text = "In the beginning God created the heaven and the earth. " * 100
  ids = loaded.token_ids(text)
  text = loaded.tokenizer.decode(ids[1:-1])
  whole, letter = [], []
  for i in range(5):
    driver.execute_async_script(_TYPE, f"{i}")  # so that nothing of the text is remembered
    took, n_tokens = driver.execute_async_script(_TYPE, text)
    whole.append(took)
    letter.append(driver.execute_async_script(_TYPE, text + "x")[0])
  print(f"Your text, {n_tokens} tokens: {statistics.median(whole):,.0f} ms; one more letter: "
        f"{statistics.median(letter):,.0f} ms")
  n_tokens, furthest, others = 0, 0.0, 0
  for text in driver.execute_async_script(_FEATURES):
    ids, ours_TF = loaded.token_ids(text), loaded.encode(text).f_TF
    page_TF, found = np.zeros_like(ours_TF), driver.execute_script("return featuresOf(arguments[0])", ids)
    for row_F, (fired, values) in zip(page_TF, found, strict=True):
      row_F[fired] = values
    n_tokens, furthest = n_tokens + len(ids), max(furthest, float(abs(page_TF - ours_TF).max()))
    others += int((((page_TF > 0) != (ours_TF > 0)) & (np.maximum(page_TF, ours_TF) > 0.01)).sum())
  print(f"its features on {n_tokens:,} tokens: within {furthest:.1e} of jax's; {others} above .01 fire in one alone")


def _chromium(folder):
  """A headless Chromium with an empty profile."""
  from selenium import webdriver
  from selenium.webdriver.chrome.service import Service
  options = webdriver.ChromeOptions()
  options.binary_location = shutil.which("chromium") or ""
  for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                   f"--user-data-dir={folder}/profile"):
    options.add_argument(argument)
  driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
  driver.implicitly_wait(60)
  driver.set_script_timeout(120)
  return driver


if __name__ == "__main__":
  cli.run(main)
