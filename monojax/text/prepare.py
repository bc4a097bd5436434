"""The stage `tokens` of a run: writes its token files from the corpus, which `tokens.py` reads.

A call that was killed goes on where it stopped: a journal says how many documents are done and how long the files were
then.
"""

import concurrent.futures
import contextlib
import hashlib
import itertools
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from monojax import config as config_lib
from monojax import files, metrics
from monojax.config import InputError
from monojax.text import corpus, tokenizer
from monojax.text.config import TextConfig
from monojax.text.corpus import Document
from monojax.text.tokenizer import Tokenizer
from monojax.text.tokens import DOCUMENT, NO_DOMAIN, SPLITS

_BATCH_BYTES = 4_000_000
_JOURNAL_BYTES = 32_000_000


def prepare(config: TextConfig, directory: str | os.PathLike[str], progress: bool = True,
            batch_bytes: int = _BATCH_BYTES, journal_bytes: int = _JOURNAL_BYTES) -> dict[str, Any]:
  """Makes tokens of the corpus and writes them into a folder, or goes on where a killed call stopped.

  The folder gets `tokenizer.json`; for each split `<split>.bin`, the ids of all documents one after the other, each
  preceded by the end-of-text id, in little-endian uint16 or uint32, and `<split>.documents.bin`, a `DOCUMENT` record
  for each document; and last `meta.json`. Equal texts always belong to the same split.

  Args:
    config: which text is read and how it becomes tokens.
    directory: the folder `tokens` of the run.
    progress: whether progress bars are shown.
    batch_bytes: about how many bytes of text are encoded at a time.
    journal_bytes: about how many bytes of text are between two entries of the journal, from which a killed call
      resumes.

  Returns:
    The content of `meta.json`: dtype, vocab_size and eot_id; n_tokens, n_documents and text_bytes for each split;
    domains, problems, sources, config and complete.

  Raises:
    InputError: the text or the tokenizer cannot be used, or the folder holds tokens that were made with other settings
      or from files that have changed.
  """
  directory = pathlib.Path(directory)
  saved_config = config_lib.to_dict(config)
  meta = files.read_json(directory / "meta.json")
  if meta:
    _require_same(directory, {"text": meta["config"], "sources": {}}, {"text": saved_config, "sources": {}})
    return meta
  sources = corpus.resolve(config.paths)
  identity = {"text": saved_config, "sources": {source.name: source.n_bytes for source in sources}}
  journal = files.read_json(directory / "journal.json")
  if journal and journal["documents"]:
    _require_same(directory, journal["identity"], identity)
  elif not journal or journal["identity"] != identity:  # an earlier call that wrote no document does not count
    journal = {"identity": identity, "documents": 0, "sizes": {}, "text_bytes": dict.fromkeys(SPLITS, 0)}
    (directory / "tokenizer.json").unlink(missing_ok=True)
    files.write_json(directory / "journal.json", journal)
  n_bytes = sum(source.n_bytes for source in sources)
  n_bytes = min(n_bytes, config.max_bytes) if config.max_bytes else n_bytes
  try:
    encoder = _tokenizer(config, directory, n_bytes, progress)
    problems, domains = _encode_corpus(config, directory, journal, encoder, n_bytes, progress, batch_bytes,
                                       journal_bytes)
  except InputError:
    if not journal["documents"]:  # no document was written: leave nothing behind that a later call would go on from
      for name in ("journal.json", "tokenizer.json", *(f"{s}{end}" for s in SPLITS
                                                       for end in (".bin", ".documents.bin"))):
        (directory / name).unlink(missing_ok=True)
    raise
  if problems.message():
    print(f"warning: while reading text: {problems.message()}", file=sys.stderr)
  dtype = _dtype(encoder.vocab_size)
  meta = {
      "dtype": dtype.name, "vocab_size": encoder.vocab_size, "eot_id": encoder.eot_id,
      "n_tokens": {s: (directory / f"{s}.bin").stat().st_size // dtype.itemsize for s in SPLITS},
      "n_documents": {s: (directory / f"{s}.documents.bin").stat().st_size // DOCUMENT.itemsize
                      for s in SPLITS},
      "text_bytes": journal["text_bytes"], "domains": domains, "problems": problems.summary(),
      "sources": identity["sources"], "config": saved_config, "complete": True}
  files.write_json(directory / "meta.json", meta)
  (directory / "journal.json").unlink()
  return meta


def _require_same(directory: pathlib.Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
  """Raises `InputError` if the settings or files that a folder was made from are not those that are asked for.

  Args:
    directory: the folder.
    old: {"text": settings, "sources": {name: bytes}} that the folder was made from.
    new: the same of what is asked for.
  """
  by_flag = lambda identity: {"tokens": identity["text"], "sources": identity["sources"]}
  changes = config_lib.differences(by_flag(old), by_flag(new))
  if changes:
    raise InputError(f"{directory} was made with other settings or from other files ({'; '.join(changes)}): "
                     "use the old ones, choose another run folder, or delete this one")


def _dtype(vocab_size: int) -> np.dtype:
  """The smallest integer type that holds the ids of a vocabulary."""
  return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def _tokenizer(config: TextConfig, directory: pathlib.Path, n_bytes: int, progress: bool) -> Tokenizer:
  """The tokenizer that the settings ask for, loaded or trained; when this returns, its file is in the folder."""
  path = directory / "tokenizer.json"
  if path.exists():
    return tokenizer.load(path)
  if config.tokenizer:
    encoder = tokenizer.load(config.tokenizer)
    content = pathlib.Path(config.tokenizer).read_bytes()
  else:
    problems = corpus.Problems()
    with _bar(n_bytes, "choosing text for the tokenizer", progress) as bar:
      documents = _counted(corpus.documents(config, problems), bar)
      texts = tokenizer.spread_sample(documents, config.tokenizer_bytes)
    if progress:
      print(f"training a tokenizer of {config.vocab_size} tokens on {sum(map(len, texts)):,} bytes",
            file=sys.stderr)
    encoder = tokenizer.train(texts, config.vocab_size)
    content = encoder.backend.to_str().encode()
  with files.replacing(path) as file:
    file.write(content)
  return encoder


@contextlib.contextmanager
def _bar(n_bytes: int, description: str, progress: bool, initial: int = 0) -> Iterator[Any]:
  """A progress bar that counts bytes of text, or `None` where none is wanted.

  Args:
    n_bytes: an estimate of all bytes, or 0 where there is none.
    description: what is being done.
    progress: whether a bar is wanted.
    initial: the bytes that are done already.
  """
  if not progress:
    yield None
    return
  with metrics.progress(n_bytes or None, "B", description, initial=initial, scale=True) as bar:
    yield bar
    bar.total = bar.n  # the total was an estimate, and now the count is known


def _counted(documents: Iterable[Document], bar: Any) -> Iterator[Document]:
  """Yields the documents, while the bar, if there is one, counts their bytes."""
  for document in documents:
    yield document
    if bar:
      bar.update(len(document.text.encode()))


def _batches(documents: Iterable[Document], n_bytes: int) -> Iterator[list[Document]]:
  """Yields lists of documents with about `n_bytes` bytes of text each."""
  batch: list[Document] = []
  size = 0
  for document in documents:
    batch.append(document)
    size += len(document.text.encode())
    if size >= n_bytes:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


def _encoded(batches: Iterable[list[Document]],
             encoder: Tokenizer) -> Iterator[tuple[list[Document], list[np.ndarray]]]:
  """Yields each batch with the ids of its documents; a batch is encoded while others are read and written."""
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    waiting: tuple[list[Document], concurrent.futures.Future] | None = None
    for batch in batches:
      future = pool.submit(encoder.encode_batch, [document.text for document in batch])
      if waiting:
        yield waiting[0], waiting[1].result()
      waiting = batch, future
    if waiting:
      yield waiting[0], waiting[1].result()


def _encode_corpus(config: TextConfig, directory: pathlib.Path, journal: dict[str, Any], encoder: Tokenizer,
                   n_bytes: int, progress: bool, batch_bytes: int,
                   journal_bytes: int) -> tuple[corpus.Problems, list[str]]:
  """Writes the token files of both splits, from the documents that the journal counts as done to the last one.

  Args:
    config: which text is read and how it is split.
    directory: the folder.
    journal: what is done already; it is brought up to date, and written to the folder, now and again.
    encoder: the tokenizer.
    n_bytes: an estimate of all bytes of text, for the progress bar.
    progress, batch_bytes, journal_bytes: as for `prepare`.

  Returns:
    (problems in the whole corpus, the names of the domains in the order in which they first appear).
  """
  problems = corpus.Problems()
  domains: dict[str, int] = {}
  documents = corpus.documents(config, problems)
  n_skipped = 0
  for document in itertools.islice(documents, journal["documents"]):
    _domain_index(document.domain, domains)
    n_skipped += 1
  if n_skipped < journal["documents"]:
    raise InputError(f"{directory} has tokens of {journal['documents']} documents, but the files now hold "
                     f"{n_skipped}: they have changed, so delete the folder and start again")
  done = since_journal = sum(journal["text_bytes"].values())
  with _Outputs(directory, journal, encoder) as outputs, _bar(n_bytes, "tokenizing", progress, done) as bar:
    for batch, ids in _encoded(_batches(documents, batch_bytes), encoder):
      outputs.append(batch, ids, domains, config)
      total = sum(journal["text_bytes"].values())
      if bar:
        bar.update(total - done)
      done = total
      if total - since_journal >= journal_bytes:
        outputs.sync()
        files.write_json(directory / "journal.json", journal)
        since_journal = total
    outputs.sync()
  return problems, list(domains)


def _domain_index(name: str | None, domains: dict[str, int]) -> int:
  """The index of a domain, {name: index} being those that have appeared; a new one gets the next index."""
  return NO_DOMAIN if name is None else domains.setdefault(name, len(domains))


def _is_val(text: bytes, config: TextConfig) -> bool:
  """Whether a document is held out, which only its text and the settings decide."""
  key = config.seed.to_bytes(16, "little")
  hash = hashlib.blake2b(text, digest_size=8, key=key, person=b"split").digest()
  return int.from_bytes(hash, "little") < config.val_fraction * 2.0**64


class _Outputs:
  """The token files of both splits, open for more documents.

  What a killed call wrote after the last entry of the journal is cut off when they are opened.
  """

  def __init__(self, directory: pathlib.Path, journal: dict[str, Any], encoder: Tokenizer) -> None:
    self.journal = journal
    self.eot_id = encoder.eot_id
    self.dtype = _dtype(encoder.vocab_size)
    self.files: dict[str, Any] = {}
    for name in (f"{split}{part}" for split in SPLITS for part in (".bin", ".documents.bin")):
      file = open(os.open(directory / name, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
      file.truncate(journal["sizes"].get(name, 0))
      file.seek(0, os.SEEK_END)
      self.files[name] = file
    files.sync_directory(directory)

  def append(self, batch: list[Document], ids: list[np.ndarray], domains: dict[str, int], config: TextConfig) -> None:
    """Writes a batch of documents, each after an end-of-text id, and counts them in the journal.

    Args:
      batch: the documents.
      ids: the token ids of each.
      domains: {name: index} of the domains that have appeared, which gains new ones.
      config: how documents are split.
    """
    eot_1 = np.array([self.eot_id], self.dtype)
    pieces: dict[str, list[Any]] = {split: [] for split in SPLITS}
    records: dict[str, list[tuple[int, int]]] = {split: [] for split in SPLITS}
    ends = {split: self.files[f"{split}.bin"].tell() // self.dtype.itemsize for split in SPLITS}
    for document, document_ids in zip(batch, ids, strict=True):
      text = document.text.encode()
      split = "val" if _is_val(text, config) else "train"
      records[split].append((ends[split], _domain_index(document.domain, domains)))
      pieces[split] += [eot_1, document_ids.astype(self.dtype)]
      ends[split] += 1 + len(document_ids)
      self.journal["text_bytes"][split] += len(text)
    for split in SPLITS:
      self.files[f"{split}.bin"].write(b"".join(pieces[split]))
      self.files[f"{split}.documents.bin"].write(np.array(records[split], DOCUMENT).tobytes())
    self.journal["documents"] += len(batch)

  def sync(self) -> None:
    """Makes sure that what was written is on the disk, and brings the files' lengths in the journal up to date."""
    for name, file in self.files.items():
      file.flush()
      os.fsync(file.fileno())
      self.journal["sizes"][name] = file.tell()

  def __enter__(self) -> "_Outputs":
    return self

  def __exit__(self, *unused: object) -> None:
    for file in self.files.values():
      file.close()
