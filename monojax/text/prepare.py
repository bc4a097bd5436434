"""Writes a run's token files from the corpus, once; a killed call goes on where it stopped. `tokens.py` reads them."""

import concurrent.futures
import contextlib
import hashlib
import itertools
import os
import pathlib
import sys

import numpy as np

from monojax import config as config_lib
from monojax import files, metrics
from monojax.config import InputError
from monojax.text import corpus, tokenizer
from monojax.text.tokens import DOCUMENT, NO_DOMAIN, SPLITS

_BATCH_BYTES = 4_000_000
_JOURNAL_BYTES = 32_000_000


def prepare(config, directory, progress=True, batch_bytes=_BATCH_BYTES, journal_bytes=_JOURNAL_BYTES):
  """Tokenizes the corpus into `directory`, or goes on where a killed call stopped.

  Writes `tokenizer.json`; for each split `<split>.bin`, the ids of all documents end to end, each
  preceded by the end-of-text id, in little-endian uint16 or uint32; `<split>.documents.bin`, a
  `DOCUMENT` record for each document (the offset of its end-of-text id, in tokens, and the index of
  its domain); and last `meta.json`. Equal texts always fall into the same split.

  Args:
    config: a `TextConfig`.
    directory: the run's `tokens` folder.
    progress: show progress bars.
    batch_bytes: text encoded at a time.
    journal_bytes: text between two points from which a killed call resumes.

  Returns:
    the content of `meta.json`: dtype, vocab_size, eot_id, n_tokens, n_documents and text_bytes by split,
    domains, problems, sources, config, complete.

  Raises:
    InputError: the text or the tokenizer cannot be used, or `directory` holds tokens of another
      configuration or of files that have changed.
  """
  directory = pathlib.Path(directory)
  saved_config = config_lib.to_dict(config)
  meta = files.read_json(directory / "meta.json")
  if meta:
    _require_same(directory, {"text": meta["config"]}, {"text": saved_config})
    return meta
  sources = corpus.resolve(config.paths)
  identity = {"text": saved_config, "sources": {source.name: source.n_bytes for source in sources}}
  journal = files.read_json(directory / "journal.json")
  if journal and journal["documents"]:
    _require_same(directory, journal["identity"], identity)
  elif not journal or journal["identity"] != identity:  # an attempt that wrote nothing binds to nothing
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
    if not journal["documents"]:  # nothing was made: leave nothing behind that binds to these settings
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


def _require_same(directory, old, new):
  """Raises `InputError` with what differs between what `directory` was made from and what is asked."""
  changes = config_lib.differences(old, new)
  if changes:
    raise InputError(f"{directory} was made from other text settings or files: {'; '.join(changes)}: "
                     "use the old ones, another run folder, or delete this one")


def _dtype(vocab_size):
  return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def _tokenizer(config, directory, n_bytes, progress):
  """The configured `Tokenizer`; its file is in `directory` when this returns."""
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
def _bar(n_bytes, description, progress, initial=0):
  """A progress bar in bytes of text, or `None`; `n_bytes` is an estimate, 0 where there is none."""
  if not progress:
    yield None
    return
  with metrics.progress(n_bytes or None, "B", description, initial=initial, scale=True) as bar:
    yield bar
    bar.total = bar.n  # the estimate gives way to the count


def _counted(documents, bar):
  """`documents`, their bytes counted on `bar`."""
  for document in documents:
    yield document
    if bar:
      bar.update(len(document.text.encode()))


def _batches(documents, n_bytes):
  """Lists of documents of about `n_bytes` of text."""
  batch, size = [], 0
  for document in documents:
    batch.append(document)
    size += len(document.text.encode())
    if size >= n_bytes:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


def _encoded(batches, encoder):
  """Yields (batch, its ids), encoding one batch while the next is read and the last one written."""
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    waiting = None
    for batch in batches:
      future = pool.submit(encoder.encode_batch, [document.text for document in batch])
      if waiting:
        yield waiting[0], waiting[1].result()
      waiting = batch, future
    if waiting:
      yield waiting[0], waiting[1].result()


def _encode_corpus(config, directory, journal, encoder, n_bytes, progress, batch_bytes, journal_bytes):
  """Writes both splits' binaries from where `journal` stands, which it advances.

  Returns:
    (problems met in the whole corpus, names of the domains in order of appearance).
  """
  problems, domains = corpus.Problems(), {}
  documents = corpus.documents(config, problems)
  n_skipped = 0
  for document in itertools.islice(documents, journal["documents"]):
    _domain_index(document.domain, domains)
    n_skipped += 1
  if n_skipped < journal["documents"]:
    raise InputError(f"{directory} has tokens of {journal['documents']} documents, the files now hold "
                     f"{n_skipped}: they have changed; delete the folder and start again")
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


def _domain_index(name, domains):
  """The index of a domain in `domains`, a dict in order of appearance that gains new ones."""
  return NO_DOMAIN if name is None else domains.setdefault(name, len(domains))


def _is_val(text, config):
  """Whether a document is held out: a pure function of its text and the configuration."""
  key = config.seed.to_bytes(16, "little")
  hash = hashlib.blake2b(text, digest_size=8, key=key, person=b"split").digest()
  return int.from_bytes(hash, "little") < config.val_fraction * 2.0**64


class _Outputs:
  """The four binaries, cut back to what the journal vouches for and appended to."""

  def __init__(self, directory, journal, encoder):
    self.journal = journal
    self.eot_id = encoder.eot_id
    self.dtype = _dtype(encoder.vocab_size)
    self.files = {}
    for name in (f"{split}{part}" for split in SPLITS for part in (".bin", ".documents.bin")):
      file = open(os.open(directory / name, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
      file.truncate(journal["sizes"].get(name, 0))
      file.seek(0, os.SEEK_END)
      self.files[name] = file
    files.sync_directory(directory)

  def append(self, batch, ids, domains, config):
    """Adds a batch of documents, each behind its end-of-text id, and counts it in the journal."""
    eot_1 = np.array([self.eot_id], self.dtype)
    pieces = {split: [] for split in SPLITS}
    records = {split: [] for split in SPLITS}
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

  def sync(self):
    """Makes what was appended durable, and the journal name it."""
    for name, file in self.files.items():
      file.flush()
      os.fsync(file.fileno())
      self.journal["sizes"][name] = file.tell()

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    for file in self.files.values():
      file.close()
