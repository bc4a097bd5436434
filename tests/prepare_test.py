"""The stage that makes tokens ends in one line where it cannot go on, leaves nothing behind, and hears Ctrl-C."""

import dataclasses
import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest
import tokenizers
from tiny_run import command, run
from tokenizers import models

from monojax.config import InputError
from monojax.text import prepare
from monojax.text.config import TextConfig


def small_corpus(folder, n_documents):
  """Settings for so many documents of about 20 tokens each."""
  lines = [json.dumps({"text": f"document {i * 7919} of many"}) + "\n" for i in range(n_documents)]
  (folder / "x.jsonl").write_text("".join(lines))
  return TextConfig(paths=(str(folder / "x.jsonl"),), vocab_size=257)


@pytest.mark.parametrize("n_documents", [1, 2, 10, 20, 40, 100, 200])
@pytest.mark.parametrize("least_tokens", [17, 129, 300])
def test_a_split_that_is_too_small_is_refused_with_advice_that_works(tmp_path, n_documents, least_tokens):
  config, directory = small_corpus(tmp_path, n_documents), tmp_path / "run"
  try:
    meta = prepare.prepare(config, directory, progress=False, least_tokens=least_tokens)
  except InputError as error:
    assert f"need {least_tokens}" in str(error) and "tokens.val_fraction=0.05: " in str(error)
    assert list(directory.iterdir()) == []
    if "which is enough here" not in str(error):
      assert "give more text (there are" in str(error) and n_documents * 25 < 5 * least_tokens
      return
    fraction = float(str(error).split("--tokens.val_fraction=")[1].split(",")[0])
    meta = prepare.prepare(dataclasses.replace(config, val_fraction=fraction), directory, progress=False,
                           least_tokens=least_tokens)
  assert min(meta["n_tokens"].values()) >= least_tokens


def test_the_command_refuses_a_corpus_without_a_held_out_context(tmp_path):
  (tmp_path / "x.txt").write_text("one document of a few words " * 100)
  refused = run("prepare_text", tmp_path / "run", f"--tokens.paths={tmp_path / 'x.txt'}", "--tokens.vocab_size=257")
  assert refused.returncode == 2 and "val has 0 tokens" in refused.stderr and "Traceback" not in refused.stderr
  assert "give more text (there are 2,801 tokens in 1 documents" in refused.stderr
  assert not (tmp_path / "run" / "tokens" / "stage.json").exists()  # so that other settings are not refused


@pytest.mark.parametrize("folder", [b"caf\xe9", b"in \xff\xfe/run"])
def test_a_workdir_that_is_not_utf_8_is_refused_at_once(tmp_path, folder):
  workdir = os.path.join(os.fsencode(tmp_path), folder)
  for script in ("prepare_text", "toy_superposition"):  # a run, and a study
    refused = subprocess.run([os.fsencode(part) for part in command(script, "")[:2]] + [b"--workdir=" + workdir],
                             capture_output=True, text=True)
    assert refused.returncode == 2 and "the path must be UTF-8" in refused.stderr and "Traceback" not in refused.stderr
  assert not os.path.exists(workdir)


def test_a_late_refusal_leaves_nothing_behind(tmp_path):
  config = dataclasses.replace(small_corpus(tmp_path, 30), domain_field="absent")
  vocabulary = {"</s>": 0, "document": 1, "of": 2, "many": 3, "?": 4}
  backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  backend.save(str(tmp_path / "words.json"))
  config = dataclasses.replace(config, tokenizer=str(tmp_path / "words.json"), val_fraction=0.5)
  with pytest.raises(InputError, match="tokens.domain_field='absent'"):
    prepare.prepare(config, tmp_path / "run", progress=False, batch_bytes=1, journal_bytes=1)
  assert list((tmp_path / "run").iterdir()) == []
  assert prepare.prepare(dataclasses.replace(config, domain_field=""), tmp_path / "run", progress=False)["complete"]


def test_many_domains_are_warned_of(tmp_path, capsys):
  config = dataclasses.replace(small_corpus(tmp_path, 1500), domain_field="text")
  prepare.prepare(config, tmp_path / "run", progress=False)
  assert "1,500 different domains" in capsys.readouterr().err


@pytest.mark.parametrize("moment", ["training a tokenizer", "tokenizing"])
def test_ctrl_c_is_heard_while_the_library_works(tmp_path, moment):
  random = np.random.default_rng(0)
  letters = "".join(random.choice(list("ACGT"), 4_000_000))
  (tmp_path / "x.jsonl").write_text(json.dumps({"text": letters}))
  flags = [f"--tokens.paths={tmp_path / 'x.jsonl'}", f"--tokens.vocab_size={4096 if moment[1] == 'r' else 300}"]
  process = subprocess.Popen(command("prepare_text", tmp_path / "run", *flags), stderr=subprocess.PIPE, text=True)
  shown = ""
  while moment not in shown:
    shown += process.stderr.read(1)
  time.sleep(0.3)
  process.send_signal(signal.SIGINT)
  start = time.perf_counter()
  rest = process.stderr.read()
  assert process.wait() == 130 and rest.splitlines()[-1].startswith("error: interrupted")
  assert time.perf_counter() - start < 8  # a second or two on an idle machine
