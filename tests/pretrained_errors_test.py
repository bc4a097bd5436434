"""What is wrong with a pretrained subject is told in one line, before anything is done."""

import json
import shutil
import subprocess

import numpy as np
import pretrained_models
import pytest
import tokenizers
from pretrained_models import LLAMA
from safetensors.numpy import load_file, save_file
from tiny_run import ENVIRONMENT, command

from monojax import host_memory
from monojax.activations.config import HarvestConfig
from monojax.config import InputError
from monojax.pipeline.checks import look_ahead
from monojax.pipeline.config import RunConfig
from monojax.pipeline.folder import STAGES, RunFolder
from monojax.subjects.config import SubjectConfig
from monojax.text.config import TextConfig
from monojax.text.corpus import Problems, documents
from monojax.text.tokenizer import train

CONFIG = dict(LLAMA, vocab_size=300)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
  """A whole folder, which nobody changes."""
  folder = tmp_path_factory.mktemp("sound") / "model"
  pretrained_models.write(folder, CONFIG)
  texts = [document.text.encode() for document in documents(TextConfig(max_bytes=100_000), Problems())]
  (folder / "tokenizer.json").write_text(train(texts, 290).backend.to_str())
  return folder


@pytest.fixture
def folder(sound, tmp_path):
  return shutil.copytree(sound, tmp_path / "model")


def with_config(folder, **values):
  (folder / "config.json").write_text(json.dumps({**CONFIG, **values}))


def with_tensors(folder, change):
  path = folder / "model.safetensors"
  tensors = load_file(path)
  change(tensors)
  save_file(tensors, path)


def cut(folder):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-100])


def cut_header(folder):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:100])


def without_weights(folder):
  (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def indexed(folder):
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {
      "lm_head.weight": "model-00001-of-00002.safetensors"}}))


def other_tokenizer(folder):
  """One with more tokens than the model has embeddings."""
  path = folder / "tokenizer.json"
  backend = tokenizers.Tokenizer.from_str(path.read_text())
  backend.add_tokens([f"word{i}" for i in range(20)])
  path.write_text(backend.to_str())


def typed(folder):
  """One tensor in 8-bit floats."""
  path = folder / "model.safetensors"
  content = path.read_bytes()
  n_bytes = int.from_bytes(content[:8], "little")
  header = json.loads(content[8:8 + n_bytes])
  header[MISSING]["dtype"] = "F8_E4M3"
  text = json.dumps(header).encode().ljust(n_bytes)
  path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + n_bytes:])


def longer(folder):
  """A header that gives one tensor a row more than it has bytes for."""
  path = folder / "model.safetensors"
  content = path.read_bytes()
  n_bytes = int.from_bytes(content[:8], "little")
  header = json.loads(content[8:8 + n_bytes])
  header[MISSING]["shape"][0] += 1
  text = json.dumps(header).encode().ljust(n_bytes)
  path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + n_bytes:])


def index_of(content):
  return lambda folder: (folder / "model.safetensors.index.json").write_text(content)


MISSING, EXTRA = "model.layers.1.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"
FOLDERS = {  # what is wrong: (how a folder becomes so, what is said)
    "cut short": (cut, "model.safetensors cannot be read: it is cut short: its tensors end at byte"),
    "cut in its header": (cut_header, "model.safetensors cannot be read: it is cut short: its header should have"),
    "no tensor file": (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 1000),
                       "model.safetensors cannot be read"),
    "shard missing": (indexed, "model-00001-of-00002.safetensors cannot be read"),
    "no safetensors": (without_weights, "has no .safetensors files; other kinds, such as pytorch_model.bin, are not"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
    "tensor missing": (lambda folder: with_tensors(folder, lambda tensors: tensors.pop(MISSING)),
                       "lacks the tensors layers.1.mlp.up_proj.weight: the files are not a whole model"),
    "tensor too many": (lambda folder: with_tensors(folder, lambda tensors: tensors.update(
        {EXTRA: np.zeros(3, np.float32)})), "has tensors that its config.json does not tell of: layers.3.mlp.up_proj"),
    "wrong shape": (lambda folder: with_tensors(folder, lambda tensors: tensors.update(
        {MISSING: np.ascontiguousarray(tensors[MISSING].T)})), "layers.1.mlp.up_proj.weight has the shape (64, 48) "
        "instead of (48, 64)"),
    "8-bit floats": (typed, "layers.1.mlp.up_proj.weight is of the type F8_E4M3, which is not read: F64, F32, F16"),
    "shape and bytes": (longer, "model.safetensors cannot be read: its header says that "
                        "model.layers.1.mlp.up_proj.weight has the shape [49, 64]"),
    "config no object": (lambda folder: (folder / "config.json").write_text("[]"), "config.json cannot be read: it is "
                         "no JSON object"),
    "index no object": (index_of("[]"), "model.safetensors.index.json cannot be read: it is no JSON object"),
    "index of numbers": (index_of('{"weight_map": {"a": 1}}'), "its weight_map does not say which file each tensor is"),
    "unknown kind": (lambda folder: with_config(folder, model_type="mamba"), "its config.json says model_type='mamba', "
                     "which is not supported: known are llama, mistral"),
    "quantised": (lambda folder: with_config(folder, quantization_config={"quant_method": "awq"}),
                  "its tensors are quantised"),
    "field missing": (lambda folder: (folder / "config.json").write_text(json.dumps({"model_type": "llama"})),
                      "its config.json lacks 'num_attention_heads', which llama needs"),
    "a field of another type": (lambda folder: with_config(folder, hidden_size="wide"),
                                "its config.json cannot be used"),
    "a number that is none": (lambda folder: with_config(folder, rms_norm_eps="small"),
                              "norm_epsilon='small': must be a number"),
    "no head": (lambda folder: with_config(folder, num_attention_heads=0), "its config.json cannot be used"),
    "unknown scaling": (lambda folder: with_config(folder, rope_scaling={"rope_type": "spiral"}),
                        "config.json: rope_type='spiral'"),
    "odd heads": (lambda folder: with_config(folder, num_key_value_heads=3), "key and value heads=3: must divide"),
    "other tokenizer": (other_tokenizer, "has the id 309, and the model embeddings for 300 tokens: it is the tokenizer "
                        "of another model"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "the folder has no tokenizer.json"),
}


def look(tmp_path, weights, site="layer.-1.mlp.hidden", n_context=32, tokenizer=""):
  config = RunConfig(tokens=TextConfig(tokenizer=tokenizer), subject=SubjectConfig(weights=str(weights),
                                                                                   n_context=n_context),
                     activations=HarvestConfig(site=site))
  look_ahead(RunFolder(tmp_path / "run"), config, STAGES)


def refused(tmp_path, weights, says, **settings):
  with pytest.raises(InputError) as caught:
    look(tmp_path, weights, **settings)
  assert says in str(caught.value) and "\n" not in str(caught.value)
  assert not (tmp_path / "run").exists()


def test_a_sound_folder_is_taken(tmp_path, sound):
  look(tmp_path, sound)
  look(tmp_path, sound, site="layer.-3.attn.z", n_context=128, tokenizer=str(sound))


@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_that_cannot_be_used(tmp_path, folder, what):
  spoil, says = FOLDERS[what]
  spoil(folder)
  refused(tmp_path, folder, says)
  refused_by_the_command(tmp_path, says, f"--subject.weights={folder}")


def test_a_site_a_layer_or_a_context_that_the_model_lacks(tmp_path, sound):
  there = "the subject's sites are layer.0 to layer.2, each with .attn.in, .attn.z, .attn.out, .mid, .mlp.in"
  for site in ("layer.3.resid", "layer.-4.resid", "layer.0.mlp.gate", "resid", "layer.x.resid", "blocks.0.hook_resid"):
    refused(tmp_path, sound, there, site=site)
  refused(tmp_path, sound, "subject.n_context=129: this model reads at most 128 tokens at a time", n_context=129)
  refused(tmp_path, tmp_path / "elsewhere", "there is no such folder")


def test_a_tokenizer_that_is_not_the_models(tmp_path, sound):
  """It has as many tokens, with other meanings."""
  found = json.loads((sound / "tokenizer.json").read_text())
  tokens = sorted(found["model"]["vocab"], key=found["model"]["vocab"].get)
  found["model"]["vocab"] = {token: id for id, token in enumerate([tokens[0], *reversed(tokens[1:])])}
  (tmp_path / "tokenizer.json").write_text(json.dumps(found))
  refused(tmp_path, sound, "tokens have other ids than in the tokenizer of", tokenizer=str(tmp_path / "tokenizer.json"))


def test_a_model_that_is_too_big(tmp_path, sound, monkeypatch):
  monkeypatch.setattr(host_memory, "total_bytes", lambda: 100_000)
  refused(tmp_path, sound, "GB of memory at least, and there are")


def refused_by_the_command(tmp_path, says, *flags):
  done = subprocess.run(command("pretrained", tmp_path / "run", *flags), capture_output=True, text=True, timeout=120,
                        env={**ENVIRONMENT, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")})
  assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr, done.stderr
  assert len([line for line in done.stderr.splitlines() if line.strip()]) == 1
  assert not (tmp_path / "run" / "tokens").exists()


@pytest.mark.parametrize("flags, says", [
    ([], "--subject.weights='': name a pretrained transformer"),
    (["--subject.weights=hf:nobody/nothing"], "hf:nobody/nothing cannot be fetched, and is not whole in the cache"),
    (["--subject.weights=FOLDER", "--activations.site=layer.9.resid"], "layer.0 to layer.2, each with"),
    (["--subject.weights=FOLDER", "--subject.n_context=4096"], "reads at most 128 tokens at a time"),
    (["--subject.weights=bad.gguf"], "subject.weights='bad.gguf': there is no such file"),
])
def test_the_command_says_so_and_ends_with_2(tmp_path, sound, flags, says):
  refused_by_the_command(tmp_path, says, *(flag.replace("FOLDER", str(sound)) for flag in flags))
