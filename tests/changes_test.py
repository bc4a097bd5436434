"""A corpus that is not what it was when its tokens were made is noticed; one that is not there is not needed."""

import os
import shutil

import pytest
from tiny_run import run

from monojax import files
from monojax.config import InputError
from monojax.text import changes, prepare
from monojax.text.config import TextConfig


def grow(folder):
  with open(folder / "a.txt", "a") as file:
    file.write("more")


def shrink(folder):
  os.truncate(folder / "a.txt", 20)


def edit(folder):
  text = (folder / "a.txt").read_text()
  (folder / "a.txt").write_text(text.replace("Once", "Upon"))


def edit_end(folder):
  text = (folder / "b.jsonl").read_bytes()
  (folder / "b.jsonl").write_bytes(text[:-4] + b"!" + text[-3:])


def exchange(folder):
  os.rename(folder / "a.txt", folder / "c.txt")


CHANGES = {
    grow: r"a.txt had [\d,]+ bytes and has [\d,]+", shrink: "a.txt had .* bytes and has 20",
    edit: "a.txt has other content", edit_end: "b.jsonl has other content", exchange: "c.txt is new; .*a.txt is gone",
    lambda folder: (folder / "b.jsonl").unlink(): "b.jsonl is gone",
    lambda folder: (folder / "sub").mkdir() or (folder / "sub" / "d.txt").write_text("x"): "d.txt is new",
    lambda folder: os.rename(folder / "b.jsonl", folder / ".b.jsonl"): "b.jsonl is gone"}


@pytest.fixture
def made(tmp_path):
  """(settings, folder of the corpus, folder of the tokens) of a small corpus."""
  folder = tmp_path / "corpus"
  folder.mkdir()
  (folder / "a.txt").write_text("Once upon a time there was a cat. " * 30)
  (folder / "b.jsonl").write_text('{"text": "a line of it"}\n' * 30)
  config = TextConfig(paths=(str(folder),), vocab_size=257)
  prepare.prepare(config, tmp_path / "tokens", progress=False)
  return config, folder, tmp_path / "tokens"


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(made, change, capsys):
  config, folder, directory = made
  changes.require_unchanged(config, directory)
  change(folder)
  with pytest.raises(InputError, match=f"made from text that has changed since .*{CHANGES[change]}"):
    changes.require_unchanged(config, directory)
  with pytest.raises(InputError, match=CHANGES[change]):
    prepare.prepare(config, directory, progress=False)
  assert capsys.readouterr().err == ""


def test_a_copy_with_other_times_is_the_same(made):
  config, folder, directory = made
  os.utime(folder / "a.txt", (1, 1))
  (folder / "notes.md").write_text("no document")
  (folder / "._a.txt").write_text("no document")
  changes.require_unchanged(config, directory)


def test_a_corpus_that_is_not_there_is_not_needed(made, capsys):
  config, folder, directory = made
  shutil.rmtree(folder)
  assert prepare.prepare(config, directory, progress=False)["complete"]
  assert "no longer there; its tokens are taken as they are" in capsys.readouterr().err


def test_tokens_of_version_0_1_know_the_sizes_of_files(made):
  config, folder, directory = made
  meta = files.read_json(directory / "meta.json")
  del meta["files"], meta["config"]["separator"], meta["config"]["end_token"]
  files.write_json(directory / "meta.json", meta)
  assert prepare.prepare(config, directory, progress=False)["complete"]
  grow(folder)
  with pytest.raises(InputError, match="a.txt has another size"):
    prepare.prepare(config, directory, progress=False)


def test_a_large_file_is_digested_in_parts(tmp_path, monkeypatch):
  monkeypatch.setattr(changes, "_WHOLE_BYTES", 6400)
  digests = set()
  for size, at in ((6400, None), (6400, 0), (6400, 3000), (64_001, None), (64_001, 0), (64_001, 64_000), (64_002, 0)):
    data = bytearray(size)
    if at is not None:
      data[at] = 1
    (tmp_path / "x").write_bytes(data)
    digests.add(changes._digest(str(tmp_path / "x")))
  assert len(digests) == 7


def test_the_command_notices_and_stops(tmp_path):
  flags = (f"--tokens.paths={tmp_path / 'x.txt'}", "--tokens.vocab_size=300", "--tokens.val_fraction=0.5")
  text = "".join(f"Once upon a time there were {i} cats, and {i * i} mice.\n<|endoftext|>\n" for i in range(200))
  (tmp_path / "x.txt").write_text(text)
  workdir = tmp_path / "run"
  assert run("prepare_text", workdir, *flags).returncode == 0
  again = run("prepare_text", workdir, *flags)
  assert again.returncode == 0 and "already done" in again.stdout and again.stderr == ""
  (tmp_path / "x.txt").write_text(text + "more")
  stopped = run("prepare_text", workdir, *flags)
  assert stopped.returncode == 2 and "x.txt had" in stopped.stderr and "use another --workdir" in stopped.stderr
  (tmp_path / "x.txt").unlink()
  gone = run("prepare_text", workdir, *flags)
  assert gone.returncode == 0 and "already done" in gone.stdout and "no longer there" in gone.stderr
