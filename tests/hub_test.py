"""Names on the Hugging Face hub, and dictionaries there and back, against a hub on this machine."""

import json
import os
import subprocess
import sys

import foreign_saes as foreign
import pytest
from hub_stub import serving

from monojax import InputError, hub, interop
from monojax.hub import Place

pytest.importorskip("huggingface_hub")


def test_names():
  for spec, place in {"hf:gpt2": Place("gpt2"), "hf:a/b": Place("a/b"), "hf:a/b/c/d": Place("a/b", None, "c/d"),
                      "hf:a/b@r/c/d/": Place("a/b", "r", "c/d"), "hf:gpt2@main/x": Place("gpt2", "main", "x")}.items():
    assert hub.place_of(spec) == place and hub.is_hub(spec)
  for spec in ("hf:", "hf:a/", "hf:a/b@", "a/b", "hf:a/b/../c", "hf:/b"):
    with pytest.raises(InputError, match="must be hf:NAME"):
      hub.place_of(spec)
  assert not hub.is_hub("runs/demo") and not hub.is_hub(None)


def python(code, endpoint, home, **environment):
  """What a program prints as JSON: the library reads its environment once, when it is imported."""
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={
      **os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_TOKEN": "hf_stub", "JAX_PLATFORMS": "cpu",
      "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", **environment})
  assert result.returncode == 0, result.stderr[-3000:]
  return json.loads(result.stdout.splitlines()[-1])


TOLD = """
import json
import monojax
from monojax import hub, interop

def told(function, *given, **named):
  try:
    return str(function(*given, **named))
  except monojax.InputError as error:
    return f"refused: {error}"
"""

THERE_AND_BACK = TOLD + """
import numpy as np
sae = monojax.SAE.load("hf:them/saes/layer_3")
commit = sae.push("hf:me/mine", folder="layer_3", figures={"l0": 4.25, "density_F": [1], "dead": None})
sae.push("hf:me/mine@main/lens", format="sae_lens", model_name="gpt2")
again, lens = monojax.SAE.load("hf:me/mine@main/layer_3"), interop.read("hf:me/mine/lens")
x = np.random.default_rng(0).standard_normal((8, sae.model.wiring.n_inputs)).astype(np.float32)
one = hub.folder_of("hf:them/more", ["layer_3/*.json"])
print(json.dumps({
    "same": [bool((other.encode(x) == sae.encode(x)).all()) for other in (again, lens)], "form": again.form == sae.form,
    "commit": commit, "about": again.about == sae.about,
    "file": told(lambda: interop.read("hf:them/qwen-L0_5/layer4.sae.pt").form.k),
    "refused": [told(monojax.SAE.load, spec) for spec in (
        "hf:them/none", "hf:them/saes@v9/layer_3", "hf:them/gated/layer_3", "hf:them/saes/layer_4", "hf:a b/c",
        "hf:them/saes/layer_3/no.pt")],
    "push": told(sae.push, "hf:them/gated", folder="x"), "format": told(sae.push, "hf:me/mine", format="openai"),
    "found": sorted(path.name for path in one.rglob("*") if path.is_file())}))
"""


def test_there_and_back_and_what_is_refused(tmp_path):
  made = foreign.sae_lens(tmp_path / "a", "topk by norm")
  qwen = foreign.qwen_scope(tmp_path).path
  with serving() as (stub, endpoint):
    files = {f"layer_3/{path.name}": path.read_bytes() for path in made.path.iterdir()}
    stub.repositories |= {"them/saes": files, "them/more": files, "them/gated": files,
                          "them/qwen-L0_5": {qwen.name: qwen.read_bytes()}}
    stub.gated.add("them/gated")
    found = python(THERE_AND_BACK, endpoint, tmp_path / "home")
    assert found["same"] == [True, True] and found["form"] and found["about"] and "/me/mine/commit/" in found["commit"]
    assert found["file"] == "5"
    missing, revision, gated, folder, name, file = found["refused"]
    assert "them/none is not on the hub, or is private" in missing and "HF_TOKEN" in missing
    assert "hf:them/saes@v9/layer_3 has no such revision" in revision
    assert "hf:them/gated/layer_3 is gated: accept its terms" in gated
    assert "layer_4" in folder and "no files there" in folder and "is no name of a repository" in name
    assert "no.pt" in file
    assert "hub refused" in found["push"] and "HF_TOKEN" in found["push"]
    assert "choose one of sae_lens" in found["format"]
    assert all(line.startswith("refused: ") and "\n" not in line for line in [*found["refused"], found["push"]])
    assert set(stub.repositories["me/mine"]) == {
        "layer_3/README.md", "layer_3/monojax.safetensors", "lens/README.md", "lens/cfg.json",
        "lens/sae_weights.safetensors"}
    card = stub.repositories["me/mine"]["layer_3/README.md"].decode()
    assert 'monojax.SAE.load("hf:me/mine/layer_3")' in card and "| l0 | 4.25 |" in card and "TopK autoencoder" in card
    assert "density_F" not in card and "| dead | undefined |" in card and "layer.3.resid" in card
    assert 'base_model: "gpt2"' in stub.repositories["me/mine"]["lens/README.md"].decode()
    assert stub.commits == ["A sparse autoencoder of 40 features"] * 2 and found["found"] == ["cfg.json"]
  # The hub is gone: what was fetched is still there, the rest is one line.
  offline = TOLD + """
print(json.dumps([told(lambda: monojax.SAE.load("hf:them/saes/layer_3").n_features),
                  told(monojax.SAE.load, "hf:them/other"), told(hub.send, ".", "hf:them/saes", "no network")]))
"""
  for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
    kept, other, sent = python(offline, endpoint, tmp_path / "home", **environment)
    assert kept == "40" and "connect to the network" in other and sent.startswith("refused: hf:them/saes")
    assert "\n" not in other + sent


def test_without_the_library(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(InputError, match=r"pip install 'monojax\[hub\]'"):
    interop.read("hf:a/b/c")
