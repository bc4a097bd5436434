"""Which files a path stands for: folders, links, hidden files, names that are not UTF-8, tables and datasets."""

import itertools
import json
import os
import sys
import types

import pytest

from monojax.config import InputError
from monojax.text import corpus, prepare, sources
from monojax.text.config import TextConfig


def write(path, text="some text"):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  return path


def found(folder, *patterns):
  """The paths of the sources that a folder, or patterns in it, stand for, relative to the folder."""
  paths = [os.path.join(folder, pattern) for pattern in patterns] or [str(folder)]
  return [os.path.relpath(source.path, folder) for source in sources.resolve(paths)]


HIDDEN = ["._book.txt", ".book.txt", "__MACOSX/book.txt", "__MACOSX/._book.txt", ".ipynb_checkpoints/book.txt",
          "sub/.hidden/deep/book.txt", "sub/._x.jsonl", ".git/x.txt"]


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("pattern", ["", "**", "**/*", "**/*.txt", "**/book.txt"])
def test_hidden_files_are_no_documents(tmp_path, hidden, pattern):
  write(tmp_path / "book.txt")
  write(tmp_path / "sub" / "book.txt")
  write(tmp_path / hidden)
  assert found(tmp_path, pattern) == ["book.txt", "sub/book.txt"]
  assert found(tmp_path, hidden) == [hidden]  # it is read where it is named


def test_only_hidden_files_are_none(tmp_path):
  write(tmp_path / "._book.txt")
  with pytest.raises(InputError, match="holds no.*hidden files do not count"):
    found(tmp_path)
  with pytest.raises(InputError, match="no file matches.*hidden files do not count"):
    found(tmp_path, "*.txt")


LINKS = {"its own folder": ".", "the folder above": "..", "a sibling": "../b", "elsewhere": "../../elsewhere",
         "nowhere": "../absent", "a loop through another": "../b/back"}


@pytest.mark.parametrize("links", [*itertools.combinations(LINKS, 1), *itertools.combinations(LINKS, 2), tuple(LINKS)])
@pytest.mark.parametrize("pattern", ["", "**/*.txt"])
def test_linked_folders_are_followed_once(tmp_path, links, pattern):
  corpus_folder = tmp_path / "corpus"
  for name in ("a/x.txt", "b/y.txt"):
    write(corpus_folder / name)
  write(tmp_path / "elsewhere" / "deep" / "z.txt")
  os.symlink("../a", corpus_folder / "b" / "back")
  for i, name in enumerate(links):
    os.symlink(LINKS[name], corpus_folder / "a" / f"link{i}")
  expected = ["a/x.txt", "b/y.txt"]
  if "elsewhere" in links:
    expected.append(f"a/link{links.index('elsewhere')}/deep/z.txt")
  assert found(corpus_folder, pattern) == sorted(expected)


def test_many_links_to_each_other_end(tmp_path):
  for i in range(12):
    write(tmp_path / f"f{i}" / "x.txt")
    for j in range(12):
      os.symlink(tmp_path / f"f{j}", tmp_path / f"f{i}" / f"to{j}")
  assert len(found(tmp_path)) == len(found(tmp_path, "**/*.txt")) == 12


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
  write(tmp_path / "a" / "x.txt")
  (tmp_path / "locked").mkdir()
  scandir = os.scandir

  def refuse(path):
    if os.fspath(path).endswith("locked"):
      raise PermissionError(13, "Permission denied", os.fspath(path))
    return scandir(path)
  monkeypatch.setattr(os, "scandir", refuse)
  with pytest.raises(InputError, match="the folder '.*locked' cannot be read: Permission denied"):
    found(tmp_path)
  with pytest.raises(InputError, match="the folder '.*locked' cannot be read: Permission denied"):
    found(tmp_path, "**")


def test_a_link_to_nothing_is_named(tmp_path):
  os.symlink("absent.txt", tmp_path / "x.txt")
  with pytest.raises(InputError, match="x.txt' is not a regular file, but a link to one that is not there"):
    found(tmp_path)


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff\xfe", "字".encode("gbk"), b"new\nline", b"tab\t", "🎉".encode(),
                                  b"~", b"a'b\"c", b"[x]"])
def test_any_file_name_can_be_read_recorded_and_shown(tmp_path, name):
  folder = os.path.join(os.fsencode(tmp_path), b"in " + name)
  os.mkdir(folder)
  with open(os.path.join(folder, name + b".txt"), "wb") as file:
    file.write(b"one two")
  config = TextConfig(paths=(os.fsdecode(folder),), vocab_size=257)
  for _ in range(2):
    meta = prepare.prepare(config, os.path.join(os.fsencode(tmp_path), b"run " + name).decode(errors="surrogateescape"),
                           progress=False)
  domain, = meta["domains"]
  json.dumps(meta, ensure_ascii=False).replace("\\ud", "")
  assert domain.encode().decode("unicode_escape").encode("latin-1") == name or domain == name.decode()
  with pytest.raises(InputError) as raised:
    sources.resolve([os.fsdecode(name + b".csv")])
  assert "\n" not in str(raised.value) and str(raised.value).encode()


@pytest.mark.parametrize("name, expected", [
    ("x.TXT", (".txt", "")), ("x.JSONL.GZ", (".jsonl", ".gz")), ("x.parquet", (".parquet", "")), ("x.gz", ("", ".gz")),
    ("x.parquet.gz", ("", ".gz")), ("x.json", ("", "")), ("txt", ("", "")), ("a.b.txt.zst", (".txt", ".zst"))])
def test_the_kind_of_a_file_is_told_by_its_name(name, expected):
  assert sources.kind_of(name) == expected


def test_a_table_needs_a_library_that_is_named_at_once(tmp_path, monkeypatch):
  write(tmp_path / "x.parquet")
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  with pytest.raises(InputError, match=r"x.parquet' needs: pip install 'monojax\[parquet\]'"):
    found(tmp_path)


def test_tables_are_read_like_lines_of_json(tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  from pyarrow import parquet
  rows = [{"text": f"document {i} שלום", "meta": {"set": f"s{i % 3}", "n": i}, "label": [None, "a"][i % 2], "id": i}
          for i in range(600)]
  parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=100)
  read = lambda **options: list(corpus.documents(TextConfig(paths=(str(tmp_path),), **options), corpus.Problems()))
  texts = [row["text"] for row in rows]
  assert read() == [(text, "x") for text in texts]
  assert read(domain_field="meta.set") == [(text, f"s{i % 3}") for i, text in enumerate(texts)]
  assert read(domain_field="id")[7] == (texts[7], "7")
  assert [d.domain for d in read(domain_field="label")] == [None, "a"] * 300
  assert [d.text for d in read(text_field="meta.set")] == [f"s{i % 3}" for i in range(600)]
  with pytest.raises(InputError, match="no field 'body'.*fields seen: id, label, meta, meta.n, meta.set, text"):
    read(text_field="body")
  with pytest.raises(InputError, match="tokens.domain_field='meta.x': none of the 600 records"):
    read(domain_field="meta.x")
  whole = (tmp_path / "x.parquet").read_bytes()
  for damaged in (b"", b"PAR1", whole[:100], whole[:-1], b"x" * 1000):
    (tmp_path / "x.parquet").write_bytes(damaged)
    with pytest.raises(InputError, match="cannot be read as .parquet|every file is empty") as raised:
      prepare.prepare(TextConfig(paths=(str(tmp_path),)), tmp_path / "run", progress=False)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("path, arguments", [
    ("hf:some/name", ("some/name", "train")), ("hf:some/name:validation", ("some/name", "validation")),
    ("hf:some/name:en:test", ("some/name", "en", "test")), ("hf:some/name:en:", ("some/name", "en", "train")),
    ("hf:some/name::test", ("some/name", "test"))])
def test_subsets_and_splits_of_datasets(monkeypatch, path, arguments):
  calls = []

  def load_dataset(*names, split, streaming):
    calls.append((*names, split))
    return types.SimpleNamespace(info=types.SimpleNamespace(dataset_size=None))
  monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
  sources.resolve([path])
  assert calls == [arguments]


@pytest.mark.parametrize("path", ["hf:", "hf::train", "hf:a:b:c:d"])
def test_a_dataset_that_is_named_wrongly(monkeypatch, path):
  monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=None))
  with pytest.raises(InputError, match="must be hf:NAME"):
    sources.resolve([path])


def test_a_dataset_that_breaks_off_is_a_fault_of_the_network(monkeypatch, tmp_path):
  class Dataset:
    info = types.SimpleNamespace(dataset_size=None)

    def __iter__(self):
      yield {"text": "one two"}
      raise ConnectionResetError("reset\nby peer")
  monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=lambda *a, **k: Dataset()))
  with pytest.raises(OSError, match="hf:x cannot be read: ConnectionResetError: reset by peer"):
    prepare.prepare(TextConfig(paths=("hf:x",), vocab_size=257), tmp_path / "run")
