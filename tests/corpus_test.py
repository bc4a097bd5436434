"""Documents out of files: formats, order, and what happens to broken input."""

import gzip
import json
import lzma
import sys
import types

import pytest
import zstandard

from monojax.config import InputError
from monojax.text import corpus
from monojax.text.config import TextConfig

RECORDS = [{"text": "first", "domain": "a"}, {"text": "zwölf שלום", "domain": "b"}, {"text": "third"}]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()


def expected(source):
  """What `RECORDS` read as: the third, which has no label of its own, takes its source's name."""
  return [("first", "a"), ("zwölf שלום", "b"), ("third", source)]


def read(*paths, **options):
  """(documents, problems) of files."""
  problems = corpus.Problems()
  config = TextConfig(paths=tuple(map(str, paths)), **options)
  return list(corpus.documents(config, problems)), problems


def write(path, content):
  path.write_bytes(content)
  return path


@pytest.mark.parametrize("suffix, compress", [
    ("", lambda data: data), (".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstandard.compress)])
def test_every_compression_reads_alike(tmp_path, suffix, compress):
  found, problems = read(write(tmp_path / f"x.jsonl{suffix}", compress(LINES)))
  assert found == expected("x") and not problems.message()
  found, _ = read(write(tmp_path / f"book.txt{suffix}", compress(b"ein Text\nmehr")))
  assert found == [("ein Text\nmehr", "book")]


@pytest.mark.parametrize("suffix, compress", [
    (".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstandard.compress)])
def test_concatenated_streams_are_one_file(tmp_path, suffix, compress):
  found, problems = read(write(tmp_path / f"x.jsonl{suffix}", compress(LINES) + compress(LINES)))
  assert found == expected("x") * 2 and not problems.message()


@pytest.mark.parametrize("suffix, compress", [
    (".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstandard.compress)])
@pytest.mark.parametrize("damage", ["truncated", "corrupt"])
def test_broken_compressed_file_keeps_what_was_read(tmp_path, suffix, compress, damage):
  lines = [json.dumps({"text": f"{i} " + format(i * 7919 ** 9, "x") * 9}) for i in range(20_000)]
  whole = compress("\n".join(lines).encode())
  middle = len(whole) * 3 // 4
  broken = whole[:middle] + (b"" if damage == "truncated" else b"\xff" * 5000 + whole[middle + 5000:])
  found, problems = read(write(tmp_path / f"x.jsonl{suffix}", broken))
  n_whole = min(len(found), 500) if damage == "corrupt" else len(found)  # garbage may decompress to some
  assert 400 < n_whole and len(found) < 20_000
  assert [d.text for d in found[:n_whole]] == [json.loads(line)["text"] for line in lines[:n_whole]]
  assert problems.counts["file broken off"] == 1
  assert f"x.jsonl{suffix}:" in problems.first["file broken off"]


def test_bad_lines_are_counted_with_their_first_location(tmp_path):
  path = write(tmp_path / "x.jsonl", b"\n".join([
      b'{"text": "one"}', b"{broken", b"", b"[1, 2]", b'{"title": "t"}', b'{"text": 5}', b'{"text": " \\n"}',
      b'{"text": "caf\xe9"}', b"also broken", b'{"text": "\\ud800x"}', b"[" * 100_000, b'{"text": "last"}']))
  found, problems = read(path)
  assert [d.text for d in found] == ["one", "caf\ufffd", "\ufffdx", "last"]
  assert problems.counts == {
      "malformed JSON line": 3, "JSON line that is not an object": 1, "no field 'text'": 1,
      "'text' is not a string": 1, "empty document": 1, "line with broken UTF-8 (replaced)": 1,
      "lone surrogate (replaced)": 1}
  assert problems.first["malformed JSON line"] == f"{path}:2"
  assert problems.first["empty document"] == f"{path}:7"
  assert problems.summary()["malformed JSON line"] == {"count": 3, "first": f"{path}:2"}
  assert f"3 x malformed JSON line (first: {path}:2)" in problems.message()


def test_nothing_usable_names_the_cause(tmp_path):
  path = write(tmp_path / "x.jsonl", b'{"title": "a", "content": "b"}\n' * 3)
  with pytest.raises(InputError, match=r"3 x no field 'text'.*x\.jsonl:1.*fields seen: content, title"):
    read(path)
  assert read(path, text_field="content", domain_field="title")[0] == [("b", "a")] * 3
  with pytest.raises(InputError, match="2 x malformed JSON line"):
    read(write(tmp_path / "y.jsonl", b"no\nno\n"))


def test_paths_are_checked_before_any_is_read(tmp_path):
  good = write(tmp_path / "good.jsonl", LINES)
  (tmp_path / "empty").mkdir()
  bad = {"there is no file": "absent.jsonl", "no file matches": "*.gz", "must end in": "x.csv",
         "holds no": "empty", "every file is empty": "zero.jsonl"}
  write(tmp_path / "x.csv", b"1")
  write(tmp_path / "zero.jsonl", b"")
  for message, name in bad.items():
    paths = [str(tmp_path / name)] if "every" in message else [str(good), str(tmp_path / name)]
    with pytest.raises(InputError, match=message):
      next(corpus.documents(TextConfig(paths=tuple(paths)), corpus.Problems()))


def test_files_come_sorted_and_once(tmp_path):
  for name in ("b.txt", "a.txt", "c.txt"):
    write(tmp_path / name, name.encode())
  write(tmp_path / "ignored.md", b"x")
  by_glob = read(tmp_path / "*.txt")[0]
  assert [d.text for d in by_glob] == ["a.txt", "b.txt", "c.txt"]
  assert read(tmp_path)[0] == by_glob
  assert read(tmp_path / "c.txt", tmp_path / "." / "a.txt", tmp_path, tmp_path / "a.txt")[0] == by_glob
  odd = write(tmp_path / "odd[1].txt", b"odd")
  assert read(odd)[0] == [("odd", "odd[1]")]


def test_an_empty_domain_field_labels_by_file(tmp_path):
  write(tmp_path / "de.wiki.jsonl.gz", gzip.compress(LINES))
  found, _ = read(tmp_path / "de.wiki.jsonl.gz", domain_field="")
  assert [d.domain for d in found] == ["de.wiki"] * 3


NESTED = {"text": "one", "meta": {"pile_set_name": "ArXiv", "of": {"by": "x"}}, "a.b": "dotted", "body": {"raw": "two"}}
LABELS = [("ArXiv", "meta.pile_set_name"), ("x", "meta.of.by"), ("dotted", "a.b"), ("file", ""), ("file", "domain")]


@pytest.mark.parametrize("label, field", LABELS)
def test_fields_are_found_in_objects(tmp_path, label, field):
  path = write(tmp_path / "file.jsonl", json.dumps(NESTED).encode())
  assert read(path, domain_field=field)[0] == [("one", label)]
  assert read(path, domain_field=field, text_field="body.raw")[0] == [("two", label)]


@pytest.mark.parametrize("field", ["meta.absent", "meta.pile_set_name.x", "absent", "text.x", "meta.", ".meta"])
def test_a_domain_field_in_no_record_is_an_error_that_lists_those_seen(tmp_path, field):
  path = write(tmp_path / "file.jsonl", json.dumps(NESTED).encode() + b'\n{"text": "two"}')
  with pytest.raises(InputError, match=r"none of the 2 records.*fields seen: a.b, body, body.raw, meta, meta.of, "
                                       r"meta.of.by, meta.pile_set_name, text: give one") as raised:
    read(path, domain_field=field)
  assert f"tokens.domain_field={field!r}" in str(raised.value)
  with pytest.raises(InputError, match="none of the 0 records.*plain text has no fields"):
    read(write(tmp_path / "file.txt", b"x"), domain_field=field)
  one = write(tmp_path / "other.jsonl", json.dumps({"text": "x", field: "there"}).encode())
  assert [d.domain for d in read(path, one, domain_field=field)[0]] == ["file", "file", "there"]


VALUES = [(3, "3"), (2.5, "2.5"), (True, "True"), (None, None), ("", None), (" a ", "a"), (["a", 2], "a, 2"),
          ([], None), ({"x": 1}, None), ([["a"]], None), ("l" * 300, "l" * 199 + "…"), ("\ud800", "\ufffd")]


@pytest.mark.parametrize("value, label", VALUES)
def test_a_domain_of_any_type_is_a_label_or_none(tmp_path, value, label):
  path = write(tmp_path / "file.jsonl", json.dumps({"text": "one", "domain": value}).encode())
  found, problems = read(path)
  assert found == [("one", label)]
  assert ("domain that is an object (left out)" in problems.counts) == (value in ({"x": 1}, [["a"]]))


def split(path, separator, **options):
  """(the texts of the documents that a separator cuts a plain file into, problems)."""
  found, problems = read(path, separator=separator, **options)
  return [d.text for d in found], problems


@pytest.mark.parametrize("separator, between", [
    ("", "<|endoftext|>"), ("", "<|endoftext|>\n"), ("\\n\\n\\n", "\n\n\n"), ("---", "\n---\n"), ("字", "字"),
    (".*", ".*"), ("\\t", "\t"), ("</s>", "</s>"), ("<|endoftext|>", "<|endoftext|>\n")])
@pytest.mark.parametrize("line_bytes", [8, 1024 * 1024])
def test_documents_of_a_plain_file_end_at_the_separator(tmp_path, monkeypatch, separator, between, line_bytes):
  monkeypatch.setattr(corpus, "_PLAIN_LINE_BYTES", line_bytes)
  texts = [f"Document {i}, of {i * 7919 ** 5} lines.\nAnd one more line" for i in range(40)] + ["long words " * 4000]
  path = write(tmp_path / "x.txt", between.join(texts).encode())
  found, problems = split(path, separator)
  assert not problems.message() and "".join(found[40:]) == texts[40] and len(found) > 42
  left = [text + "\n" if between == "\n---\n" else text for text in texts[:40]]
  assert [text.strip("\n") for text in found[:40]] == [text.strip("\n") for text in left]
  assert split(path, "no such text")[0] != found


def test_the_tokenizers_end_token_separates_unless_it_is_a_tag_of_html(tmp_path):
  path = write(tmp_path / "x.txt", "a<｜end▁of▁sentence｜>b<s>c</s>d<|endoftext|>e".encode())
  ends = {"<｜end▁of▁sentence｜>": ["a", "b<s>c</s>d", "e"], "</s>": ["a<｜end▁of▁sentence｜>b<s>c</s>d", "e"],
          "<|endoftext|>": ["a<｜end▁of▁sentence｜>b<s>c</s>d", "e"]}
  for end_token, expected in ends.items():
    documents = corpus.documents(TextConfig(paths=(str(path),)), corpus.Problems(), end_token)
    assert [d.text for d in documents] == expected


def test_a_file_of_nothing_but_separators_is_read_in_no_time(tmp_path):
  path = write(tmp_path / "x.txt", b"<|endoftext|>" * 100_000 + b"end" + b"\n<|endoftext|>" * 3)
  assert split(path, "")[0] == ["end\n"]


def test_long_texts_are_cut_at_boundaries_and_nothing_is_lost(tmp_path):
  paragraphs = "\n\n".join(f"Absatz {i}: " + "größer " * 40 for i in range(400)) + "\n"
  found, _ = read(write(tmp_path / "book.txt", paragraphs.encode()))
  assert "".join(d.text for d in found) == paragraphs
  assert len(found) > 5 and all(d.text.endswith("\n\n") for d in found[:-1])
  one_line = "字" * 1_500_000  # longer than the pieces lines are read in, cut inside no character
  found, problems = read(write(tmp_path / "line.txt", one_line.encode()))
  assert "".join(d.text for d in found) == one_line and not problems.message()
  record = {"text": "word " * 500_000, "domain": "d"}
  found, _ = read(write(tmp_path / "x.jsonl", json.dumps(record).encode()))
  assert "".join(d.text for d in found) == "word " * 500_000
  assert len(found) > 1 and {d.domain for d in found} == {"d"} and all(d.text[-1] == " " for d in found)


def test_byte_order_mark_and_broken_utf8_in_plain_text(tmp_path):
  found, problems = read(write(tmp_path / "x.txt", b"\xef\xbb\xbfone\ntw\xff\n"))
  assert found == [("one\ntw\ufffd\n", "x")]
  problem = {"count": 1, "first": f"{tmp_path}/x.txt:2"}
  assert problems.summary() == {"line with broken UTF-8 (replaced)": problem}


def test_max_bytes_stops_after_that_much_text(tmp_path):
  path = write(tmp_path / "x.jsonl", b'{"text": "12345"}\n' * 10)
  assert len(read(path, max_bytes=11)[0]) == 3
  assert len(read(path, max_bytes=10)[0]) == 2
  assert len(read(path, max_bytes=1000)[0]) == 10


def test_a_sample_of_the_documents_is_chosen_by_their_text_alone(tmp_path, monkeypatch):
  lines = [json.dumps({"text": f"document {i}"}).encode() + b"\n" for i in range(1000)]
  path, other = (write(tmp_path / name, b"".join(content)) for name, content in (("x.jsonl", lines),
                                                                               ("y.jsonl", lines[::-1])))
  n_bytes = len(b"".join(lines))
  sample = lambda path, share, **more: [d.text for d in read(path, sample_bytes=int(share * n_bytes), **more)[0]]
  tenth, half = sample(path, 0.1), sample(path, 0.5)
  assert 60 < len(tenth) < 140 and 430 < len(half) < 570 and set(tenth) < set(half)
  assert len(sample(path, 1)) == len(sample(path, 7)) == 1000
  assert sample(path, 0.1, seed=1) != tenth and sample(other, 0.1) == tenth[::-1]
  with pytest.raises(InputError, match="tokens.sample_bytes=1: none of the 1,000 documents is among so few"):
    read(path, sample_bytes=1)
  unknown = [corpus.Source("hf:some", "hf:some", 0)]
  with pytest.raises(InputError, match="hf:some does not say how large it is: set --tokens.max_bytes"):
    corpus.used_fraction(unknown, TextConfig(sample_bytes=1000))


def test_sample_is_multilingual_and_labelled():
  found, problems = read()
  assert len(found) == 2295 and not problems.message()
  assert {"en_novels", "he_bible", "dna", "base64"} < {d.domain for d in found}


def test_hugging_face_datasets_are_streamed(monkeypatch):
  calls = []

  class Dataset(list):
    info = types.SimpleNamespace(dataset_size=None)

  def load_dataset(name, split, streaming):
    calls.append((name, split, streaming))
    if name == "absent":
      raise FileNotFoundError("no such dataset")
    return Dataset(RECORDS)
  monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
  assert read("hf:some/name:validation")[0] == expected("hf:some/name:validation")
  assert set(calls) == {("some/name", "validation", True)}
  assert read("hf:other")[0] == expected("hf:other") and calls[-1] == ("other", "train", True)
  with pytest.raises(InputError, match="'hf:absent' cannot be opened.*no such dataset"):
    read("hf:absent")
  monkeypatch.setitem(sys.modules, "datasets", None)
  with pytest.raises(InputError, match=r"pip install 'monojax\[huggingface\]'"):
    read("hf:other")


@pytest.mark.parametrize("field, value", [
    ("vocab_size", 256), ("val_fraction", 0.0), ("val_fraction", 1.0), ("seed", -1), ("max_bytes", -1),
    ("sample_bytes", -1),
    ("tokenizer_bytes", 0), ("text_field", ""), ("paths", ("",))])
def test_configuration_names_the_bad_field(field, value):
  with pytest.raises(InputError, match=f"tokens.{field}="):
    TextConfig(**{field: value})
