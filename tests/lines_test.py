"""Lines of files: encodings are known or refused, and memory is bounded whatever a file stands for."""

import gzip
import lzma
import os
import random
import subprocess
import sys

import pytest
import zstandard

from monojax.config import InputError
from monojax.text import corpus
from monojax.text.config import TextConfig

TEXT = "Grüße aus Köln.\nשלום 字 🎉\n\nand some English\n"
COMPRESS = {"": lambda data: data, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}
# Reads one file and prints the characters read, the messages, and the most memory that the process had, in megabytes.
READ = """
import re, sys
from monojax.text import corpus
from monojax.text.config import TextConfig
corpus._JSON_LINE_BYTES = 4 << 20
problems, n = corpus.Problems(), 0
for document in corpus.documents(TextConfig(paths=(sys.argv[1],), max_bytes=int(sys.argv[2])), problems):
  n += len(document.text)
peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
print(n, int(peak) // 1024, problems.message())
"""


def read(path, **options):
  """(documents' text, problems) of a file."""
  problems = corpus.Problems()
  return [d.text for d in corpus.documents(TextConfig(paths=(str(path),), **options), problems)], problems


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("compression", COMPRESS)
def test_encodings_with_a_mark_are_decoded(tmp_path, ends, encoding, compression):
  mark = "\ufeff" if encoding[-3:] in ("-le", "-be") else ""
  data = (mark + TEXT.replace("\n", ends)).encode(encoding)
  (tmp_path / f"x.txt{compression}").write_bytes(COMPRESS[compression](data))
  found, problems = read(tmp_path / f"x.txt{compression}")
  assert found == [TEXT] and not problems.message()
  data = (mark + ends.join(['{"text": "Köln 字"}', "", '{"text": "two\\r\\nlines"}'])).encode(encoding)
  (tmp_path / f"x.jsonl{compression}").write_bytes(COMPRESS[compression](data))
  found, problems = read(tmp_path / f"x.jsonl{compression}")
  assert found == ["Köln 字", "two\r\nlines"] and not problems.message()


def test_ends_of_lines_and_characters_survive_every_cut(tmp_path, monkeypatch):
  monkeypatch.setattr(corpus, "_PLAIN_LINE_BYTES", 8)
  rng = random.Random(0)
  for encoding in ("utf-8", "utf-16"):
    for _ in range(100):
      text = "".join(rng.choices(["a", "ü", "字", "🎉", "\r\n", "\n", "\r", " "], k=60)) + "x"
      (tmp_path / "x.txt").write_bytes(("y" + text).encode(encoding))
      found, problems = read(tmp_path / "x.txt")
      assert found == ["y" + text.replace("\r\n", "\n")] and not problems.message()


REFUSED = {
    "utf-32": "is in UTF-32", "utf-32-le with a mark": "is in UTF-32", "utf-32-le": "UTF-16 or UTF-32 without a byte",
    "utf-16-le": "UTF-16 or UTF-32 without a byte", "utf-16-be": "UTF-16 or UTF-32 without a byte",
    "latin-1": "not in UTF-8, but in Latin-1", "cp1252": "Latin-1 or another", "koi8-r": "Latin-1 or another",
    "gbk": "Latin-1 or another", "shift_jis": "Latin-1 or another", "big5": "Latin-1 or another",
    "iso2022_jp": "ISO-2022", "cp037": "Latin-1 or another", "binary": "zero|Latin-1 or another"}
SAMPLES = {"koi8-r": "Все счастливые семьи похожи друг на друга. ", "gbk": "天地玄黄，宇宙洪荒。",
           "shift_jis": "吾輩は猫である。", "big5": "天地玄黃，宇宙洪荒。", "iso2022_jp": "吾輩は猫である。"}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("compression", COMPRESS)
def test_other_encodings_are_refused_by_name(tmp_path, name, compression):
  encoding, _, mark = name.partition(" with ")
  text = SAMPLES.get(encoding, "Größe und Übermaß, déjà vu. ") * 200
  data = random.Random(0).randbytes(5000) if name == "binary" else (("\ufeff" if mark else "") + text).encode(encoding)
  for kind in (".txt", ".jsonl"):
    path = tmp_path / f"old{kind}{compression}"
    path.write_bytes(COMPRESS[compression](data))
    with pytest.raises(InputError, match=f"old{kind}{compression}'.*({REFUSED[name]})") as raised:
      read(path)
    assert "\n" not in str(raised.value) and ("iconv" in str(raised.value))


def test_a_few_broken_characters_do_not_refuse_a_file(tmp_path):
  good = (TEXT * 50).encode()
  rng = random.Random(0)
  for n_broken in (1, 10, 40):
    data = bytearray(good)
    for _ in range(n_broken):
      data[rng.randrange(len(data))] = 0xff
    (tmp_path / "x.txt").write_bytes(data)
    found, problems = read(tmp_path / "x.txt")
    assert "".join(found).count("\ufffd") >= n_broken * 0.8 and "broken UTF-8" in problems.message()
  (tmp_path / "x.txt").write_bytes(good + b"one zero \0 and text\n")
  found, problems = read(tmp_path / "x.txt")
  assert found == [good.decode() + "one zero \0 and text\n"] and problems.counts == {"line with zero characters": 1}


def write_repeated(path, n_blocks, block, begin=b""):
  """Writes a file of one block many times over, without holding it in memory."""
  opened = {".gz": lambda: gzip.open(path, "wb", 1), ".xz": lambda: lzma.open(path, "wb", preset=0),
            ".zst": lambda: zstandard.open(path, "wb")}.get(path.suffix, lambda: open(path, "wb"))
  with opened() as file:
    file.write(begin)
    for _ in range(n_blocks):
      file.write(block)


@pytest.fixture(scope="module", params=[".gz", ".xz", ".zst", ""])
def enormous(request, tmp_path_factory):
  """A plain file and one of JSON, each with a line of 200 megabytes that compresses to little."""
  folder = tmp_path_factory.mktemp("enormous")
  write_repeated(folder / f"x.txt{request.param}", 200, b"a" * 1_000_000)
  write_repeated(folder / f"x.jsonl{request.param}", 200, b"a" * 1_000_000, b'{"text": "one"}\n{"text": "')
  return folder


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the most memory of a process is read from /proc")
@pytest.mark.parametrize("max_bytes", [2_000_000, 0])
def test_a_file_that_stands_for_much_is_read_in_little_memory(enormous, max_bytes):
  for path in sorted(enormous.iterdir()):
    done = subprocess.run([sys.executable, "-c", READ, path, str(max_bytes)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    n, peak, *message = done.stdout.split(maxsplit=2)
    is_plain = ".txt" in path.name
    assert 0 <= int(n) - ((max_bytes or 200_000_000) if is_plain else 3) < 20_000 and int(peak) < 130, path
    assert bool(message) != is_plain and all("line of more than 4,194,304 bytes (skipped)" in m for m in message)


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
def test_many_small_streams_are_one_file(tmp_path, compression):
  data = b"".join(COMPRESS[compression](b"%d\n" % i) for i in range(3000))
  (tmp_path / f"x.txt{compression}").write_bytes(data)
  assert "".join(read(tmp_path / f"x.txt{compression}")[0]).split() == [str(i) for i in range(3000)]


def test_a_wide_window_is_read_and_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
  parameters = zstandard.ZstdCompressionParameters(window_log=31)
  compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
  (tmp_path / "x.txt.zst").write_bytes(compressor.compress(b"ab " * 1000) + compressor.flush())
  assert read(tmp_path / "x.txt.zst")[0] == ["ab " * 1000]

  def fail(*unused):
    raise OSError(5, "Input/output error")
  monkeypatch.setattr(corpus.lines, "_completed", fail)
  monkeypatch.setattr(corpus, "_PLAIN_LINE_BYTES", 10)
  with pytest.raises(OSError, match="cannot be read: Input/output error: '.*x.txt.zst'"):
    read(tmp_path / "x.txt.zst")
