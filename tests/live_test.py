"""The page on which a subject and a dictionary run on a reader's text, in a real browser, against jax."""

import dataclasses
import functools
import http.client
import http.server
import json
import threading
import urllib.error
import urllib.request

import browser_fixture
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from browser_fixture import find, texts, visit, wait

import monojax
from monojax.activations.kept import Kept
from monojax.analysis import circuits, interventions
from monojax.browser.build import build_browser
from monojax.browser.live import Live, weights_script
from monojax.browser.serve import make_server
from monojax.config import InputError
from monojax.pipeline.live_answers import live_answers
from monojax.sae.config import SAEConfig
from monojax.sae.dictionary import SAE
from monojax.sae.form import Form
from monojax.sae.model import Wiring
from monojax.sae.plain import plain_encoder
from monojax.subjects.config import TransformerConfig
from monojax.subjects.plain_layers import plain_layers
from monojax.subjects.subject import LoadedSubject
from monojax.subjects.transformer import Transformer

TEXTS = ("def read(path):\n  return 'x'", "", " ", "In the beginning God created the heaven\r\n\r\n\tand  the   earth.",
         "השמים ואת הארץ بسم الله 天地玄黄 こんにちは 안녕하세요",
         "e\u0301 \u00a0\u0085\u2028\ufeff\u200b\U0001f600\U0001f469\u200d\U0001f467 \x00\x1f",
         "it's we'll I'D '' 's''t", "<|endoftext|><script>alert(1)</script>", "TGACGCGGGAAATCAACATTCCG 0x1F 3.14159",
         "a" * 300)

# Loads what the page loads, and runs the model; the names are those of the scripts.
RUN = """
const [ids, changes, source, done] = arguments;
Promise.all(["settings", "subject", "encoder", "output"].map(liveFiles.load)).then(([settings, ...weights]) => {
  const model = liveModel(settings, Object.assign({}, ...weights));
  const text = model.read(model.begin(changes), ids);
  done({features: text.features, losses: model.losses(text), sources: model.sources(text, ...source)});
}, (error) => done({error: String(error)}));
"""
ENCODE = """
const [given, done] = arguments;
liveFiles.load("tokenizer").then((lists) => {
  const tokenizer = liveTokenizer(lists);
  done(given.map((text) => { const ids = tokenizer.encode(text); return [ids, ids.map(tokenizer.text)]; }));
}, (error) => done(String(error)));
"""


@pytest.fixture
def opened(driver):
  """A function that opens the page of a site; afterwards the console must be empty."""
  driver.set_script_timeout(30)
  driver.get_log("browser")

  def open_page(site, route="#/try"):
    visit(driver, (site if isinstance(site, str) else site.as_uri()) + route)
    return driver
  yield open_page
  assert driver.get_log("browser") == []


def ready(driver):
  wait(driver, lambda: find(driver, "#own-status").get_attribute("data-ready"))


def dense(features, n_features):
  f_TF = np.zeros((len(features), n_features))
  for row_F, one in zip(f_TF, features, strict=True):
    row_F[one["ids"]] = one["values"]
  return f_TF


def assert_alike(ours_TF, theirs_TF):
  np.testing.assert_allclose(theirs_TF, ours_TF, atol=1e-3)
  large = np.maximum(ours_TF, theirs_TF) > 0.01
  assert ((ours_TF > 0) == (theirs_TF > 0))[large].all()


def test_a_runs_page_tokenizes_and_encodes_as_python_does(finished, opened):
  run = monojax.load(finished[0])
  driver = opened(finished[0] / "browser" / "site" / "index.html")
  ready(driver)
  found = driver.execute_async_script(ENCODE, list(TEXTS))
  for text, (ids, strings) in zip(TEXTS, found, strict=True):
    assert ids == run.tokenizer.encode_batch([text])[0].tolist(), repr(text)
    assert strings == [run.tokenizer.token_strings()[i] for i in ids]
  for text in TEXTS[:5]:
    ids = run.token_ids(text)
    page = driver.execute_async_script(RUN, ids, [], [0, 0])
    assert_alike(run.encode(text).f_TF, dense(page["features"], run.sae.n_features))
    if len(ids) > 1:
      np.testing.assert_allclose(page["losses"], interventions.losses(
          run._subject, run.sae, run.mean_O, ids)["clean"], atol=1e-3)


@pytest.mark.parametrize("form, reads, writes", [
    (Form("relu", pre_bias=True), "layer.0.mlp.hidden", "layer.0.mlp.hidden"),
    (Form("topk", k=5, pre_bias=True), "layer.1.resid", "layer.1.resid"),
    (Form("threshold", by_norm=True), "layer.0.attn.out", "layer.0.attn.out"),
    (Form("gated"), "embed", "embed"),
    (Form("relu", skip=True), "layer.0.mlp.in", "layer.1.mlp.out")])
def test_every_form_is_run_and_steered_as_by_jax(form, reads, writes, tmp_path, opened):
  model = Transformer(TransformerConfig(n_layers=2, d_model=16, n_heads=2, d_mlp=24, vocab_size=50))
  params = model.init(jax.random.key(0), np.zeros((1, 4), np.int32))["params"]
  params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)
  subject = LoadedSubject(model, params, 12)
  widths = tuple(model.site_widths[site] for site in dict.fromkeys((reads, writes)))
  dictionary = form.model(Wiring(widths, (0,), (len(widths) - 1,)), 40, jnp.float32)
  made = dictionary.init(jax.random.key(1), jnp.zeros((1, widths[0])))["params"]
  made = {name: x + 0.2 * jax.random.normal(jax.random.key(len(name)), x.shape) for name, x in made.items()}
  sae = SAE(SAEConfig(n_features=40, recipe="topk", k=5), dictionary, made, tuple(dict.fromkeys((reads, writes))),
            form=form)
  layers, encoder = plain_layers(subject), plain_encoder(sae)
  settings = {"n_layers": 2, "n_heads": 2, "epsilon": layers.epsilon, "prefix": [0], "n_context": 12,
              "first_position": 1, "reads": reads, "writes": writes, "nonlinearity": encoder.nonlinearity,
              "k": encoder.k}
  names = [f"<b>{i}" for i in range(50)]
  live = Live(settings, {"tokens": names, "merges": []}, {
      "subject": layers.arrays, "encoder": encoder.arrays, "output": {"directions": encoder.arrays["directions"]}})
  site = build_browser(browser_fixture.make_tables(40), tmp_path / "site", "x", live=live)
  ids = [0, 7, 7, 31, 49, 2, 11, 7]
  _, sites = model.apply({"params": params}, np.asarray([ids]))
  f_TF = np.array(sae.encode(sites[reads][0]))
  f_TF[0] = 0  # the first position does not count
  feature = int((f_TF > 0).sum(0).argmax())
  driver = opened(site)
  page = driver.execute_async_script(RUN, ids, [], [0, 0])
  assert_alike(f_TF, dense(page["features"], 40))
  kept = Kept(first_position=1)
  for value in (0.0, 3.0):
    ours = interventions.losses(subject, sae, np.zeros(widths[-1]), ids, {feature: value}, kept)
    page = driver.execute_async_script(RUN, ids, [[feature, value]], [0, 0])
    np.testing.assert_allclose(page["losses"], ours["steered"], atol=1e-3)
  assert np.abs(ours["steered"] - ours["clean"]).max() > 0.01
  position = int(f_TF[1:, feature].argmax()) + 1
  page = driver.execute_async_script(RUN, ids, [], [position, feature])
  if reads == "embed":
    assert page["sources"] is None
    return
  circuit = circuits.circuit(subject, sae, ids[:position + 1], feature, names, kept, n_listed=12)
  weights = {source.position: source.weight for source in circuit.sources}
  np.testing.assert_allclose(np.sum(page["sources"]["sources"], 1), [weights[t] for t in range(position + 1)],
                             atol=1e-3)
  for source in circuit.sources:
    np.testing.assert_allclose(page["sources"]["sources"][source.position], [*source.by_head, source.past], atol=1e-3)
  assert page["sources"]["whole"] == pytest.approx(circuit.pre_activation, abs=1e-3)
  assert max(map(abs, weights.values())) > 0.05


def test_a_reader_types_chooses_and_steers(finished, opened):
  run = monojax.load(finished[0])
  driver = opened(finished[0] / "browser" / "site" / "index.html")
  ready(driver)
  field = find(driver, "#own-text")
  field.clear()
  field.send_keys("בראשית <i>x</i> def main")
  ids = run.token_ids("בראשית <i>x</i> def main")
  wait(driver, lambda: len(driver.find_elements("css selector", "#own-tokens .token")) == len(ids) - 1)
  assert not driver.find_elements("css selector", "#own-tokens i")
  f_TF = run.encode("בראשית <i>x</i> def main").f_TF
  position = int((f_TF[1:] > 0).sum(1).argmax())
  find(driver, f"#own-tokens [data-position='{position}']").click()
  listed = [int(text) for text in texts(driver, "#on-token td:first-child")]
  assert listed and set(listed) <= set(np.flatnonzero(f_TF[position + 1] > 0).tolist())
  find(driver, "#on-token button.choose").click()
  first = max(run.circuit(listed[0], "בראשית <i>x</i> def main", position + 1).sources, key=lambda s: abs(s.weight))
  wait(driver, lambda: texts(driver, "#comes-from td.numeric"))
  shown = texts(driver, "#comes-from td.numeric")[0].replace("−", "-")
  assert float(shown) == pytest.approx(first.weight, abs=0.01)
  wait(driver, lambda: find(driver, "#steer").is_displayed())
  assert f"feature {listed[0]}" in find(driver, "#steer h2").text
  wait(driver, lambda: driver.find_elements("css selector", "#own-tokens [data-effect]"))
  # The largest numbers would be tokens that the subject has room for and the tokenizer does not know.
  driver.execute_script("Math.random = () => 1 - 2 ** -53")
  find(driver, "#write").click()
  wait(driver, lambda: find(driver, "#steer").get_attribute("data-written"))
  assert all(texts(driver, ".written"))
  samples = driver.find_elements("css selector", "#own-sample option")
  assert len(samples) > 5 and samples[1].text in run.features.domains
  samples[1].click()
  wait(driver, lambda: find(driver, "#own-text").get_property("value") not in ("", "בראשית <i>x</i> def main"))
  # As long as the context; a last character that is cut off is left out, and its tokens with it.
  assert 25 <= int(find(driver, "#own-status").text.split(" ")[0]) <= 31
  driver = opened(finished[0] / "browser" / "site" / "index.html", f"#/feature/{listed[0]}")
  find(driver, "#steering #write").click()
  wait(driver, lambda: find(driver, "#steering [data-written]"))
  assert all(texts(driver, "#steering .written"))
  find(driver, ".steps a[href^='#/try/']").click()
  ready(driver)
  assert f"feature {listed[0]}" in find(driver, "#steer h2").text


def test_a_server_that_announces_another_encoding_does_no_harm(finished, opened):
  site = finished[0] / "browser" / "site"

  class Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map = {"": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
                      ".css": "text/css; charset=utf-8"}

    def log_message(self, *_):
      pass
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site))) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    driver = opened(f"http://127.0.0.1:{server.server_port}/index.html")
    ready(driver)
    assert len(driver.find_elements("css selector", "#own-tokens .token")) > 10
    driver.get("about:blank")
    server.shutdown()


@pytest.fixture(scope="module")
def served(finished):
  """(the run, the address of its served pages)."""
  run = monojax.load(finished[0])
  broken = {"breaks": lambda: [][1], "infinite": lambda: {"x": float("inf")}}
  with make_server(finished[0] / "browser" / "site", {**live_answers(run), **broken}, 0) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield run, f"http://localhost:{server.server_port}/"
    server.shutdown()


def test_a_served_page_asks_the_program_behind_it(served, opened):
  run, address = served
  driver = opened(address)
  ready(driver)
  text = "def main(): <i>x</i> בראשית"
  field = find(driver, "#own-text")
  field.clear()
  field.send_keys(text)
  f_TF = run.encode(text).f_TF
  wait(driver, lambda: len(driver.find_elements("css selector", "#own-tokens .token")) == len(f_TF) - 1)
  position = int((f_TF[1:] > 0).sum(1).argmax())
  find(driver, f"#own-tokens [data-position='{position}']").click()
  listed = [int(number) for number in texts(driver, "#on-token td:first-child")]
  assert listed and set(listed) <= set(np.flatnonzero(f_TF[position + 1] > 0).tolist())
  find(driver, "#on-token button.choose").click()
  wait(driver, lambda: driver.find_elements("css selector", "#own-tokens [data-effect]"))
  shown = [float(span.get_attribute("data-effect"))
           for span in driver.find_elements("css selector", "#own-tokens .token")]
  effect_T = run.ablate(text, listed[0]).effect_T
  np.testing.assert_allclose(shown, np.where(np.abs(effect_T) < 0.005, 0, effect_T), atol=1e-4)
  wait(driver, lambda: texts(driver, "#comes-from td.numeric"))
  first = max(run.circuit(listed[0], text, position + 1).sources, key=lambda source: abs(source.weight))
  assert float(texts(driver, "#comes-from td.numeric")[0].replace("−", "-")) == pytest.approx(first.weight, abs=0.01)
  # The largest numbers would be tokens that the subject has room for and the tokenizer does not know.
  driver.execute_script("Math.random = () => 1 - 2 ** -53")
  find(driver, "#write").click()
  wait(driver, lambda: find(driver, "#steer").get_attribute("data-written"))
  assert all(texts(driver, ".written"))


def asked(address, question, body, **headers):
  """(status, answer) of a question to a server."""
  request = urllib.request.Request(f"{address}live/{question}", body.encode(),
                                   {"Content-Type": "application/json", **headers})
  try:
    with urllib.request.urlopen(request) as answer:
      return answer.status, json.load(answer)
  except urllib.error.HTTPError as error:
    return error.code, json.load(error)


def test_a_server_answers_its_own_page_alone_and_says_what_is_wrong(served):
  run, address = served
  host = address.split("/")[2]
  long = run.tokenizer.decode(run.token_ids("to be or not to be, " * 50))
  status, written = asked(address, "write", json.dumps({"text": long, "feature": 3, "value": 2.0, "n_tokens": 5,
                                                        "seed": 0}))
  assert status == 200 and len(written["texts"]) == 2 and all(written["texts"])
  assert asked(address, "read", '{"text": ""}') == (200, {"tokens": [], "features": [], "n_all": 0})
  assert asked(address, "read", '{"text": "x"}', Origin=f"http://{host}")[0] == 200
  for headers in ({"Origin": "http://example.org"}, {"Host": f"example.org:{host.split(':')[1]}"},
                  {"Content-Type": "text/plain"}):
    assert asked(address, "read", '{"text": "x"}', **headers)[0] == 403, headers
  for question, body, status in (("read", "[1", 400), ("read", "[]", 400), ("read", '{"text": 3}', 400),
                                 ("read", "{}", 400), ("none", "{}", 404),
                                 ("effects", '{"text": "x", "feature": 9999}', 400),
                                 ("sources", '{"text": "x", "feature": 1, "position": 3}', 400),
                                 ("sources", '{"text": "x", "feature": 1, "position": -1}', 400),
                                 ("write", '{"text": "x", "feature": 1, "value": 1, "n_tokens": 5.5, "seed": 0}', 400),
                                 ("breaks", "{}", 500), ("infinite", "{}", 400)):
    found = asked(address, question, body)
    assert found[0] == status and found[1]["error"], (question, body)
  for method in ("GET", "HEAD"):
    for path, headers in (("", {"Host": "example.org"}), ("data/index.js", {"Origin": "http://example.org"})):
      with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(address + path, headers=headers, method=method))
  with urllib.request.urlopen(f"{address}data/index.js") as answer:
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
  with pytest.raises(urllib.error.HTTPError, match="404"):
    urllib.request.urlopen(f"{address}data/")
  for length in ("-1", "x", str(1 << 30)):
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.putrequest("POST", "/live/read")
    connection.putheader("Content-Length", length)
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
  with pytest.raises(InputError, match="choose another"):
    make_server(run.directory / "browser" / "site", {}, int(host.split(":")[1]))
  with pytest.raises(InputError, match="build_browser"):
    make_server(run.directory, {}, 0)


def test_weights_take_hardly_more_room_than_two_bytes_each():
  rng = np.random.default_rng(0)
  array = rng.normal(size=(300, 200)).astype(np.float32)
  script = weights_script("x", {"a": array, "b": array[0]})
  assert len(script) <= 1.1 * 2 * array.size


def test_a_site_without_a_model_shows_texts_of_the_run(tmp_path, opened):
  tables = browser_fixture.make_tables(40)
  texts_of_run = [{"name": "<b>one", "tokens": [3, 4, 5], "features": [[[2, 30], [0.5, 2.0]], [[], []], [[2], [1.5]]]},
                  {"name": "two", "tokens": [6, -1], "features": [[[7], [1.0]], [[], []]]}]
  tables = dataclasses.replace(tables, summary={**tables.summary, "texts": texts_of_run})
  site = build_browser(tables, tmp_path / "site", "x")
  driver = opened(site, "#/feature/2")
  find(driver, ".steps a[href='#/try/2']").click()
  ready(driver)
  assert "Texts" in texts(driver, "#pages a") and not find(driver, "#own-text").is_displayed()
  shown = driver.find_elements("css selector", "#own-tokens .token")
  assert [float(token.get_attribute("data-act")) for token in shown] == [0.5, 0, 1.5]
  shown[0].click()
  assert sorted(texts(driver, "#on-token td:first-child")) == ["2", "30"]
  assert not find(driver, "#steer").is_displayed()
  assert texts(driver, "#own-sample option") == ["<b>one", "two"]
  driver.find_elements("css selector", "#own-sample option")[1].click()
  wait(driver, lambda: len(driver.find_elements("css selector", "#own-tokens .token")) == 2)


def test_a_site_without_a_model_or_texts_has_no_such_page(tmp_path, opened):
  site = build_browser(browser_fixture.make_tables(40), tmp_path / "site", "x")
  driver = opened(site, "#/try")
  assert "There is no such page" in find(driver, "#main").text and "Your text" not in texts(driver, "#pages a")
