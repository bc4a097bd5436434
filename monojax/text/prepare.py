"""The stage `tokens` of a run: writes its token files from the corpus, which `tokens.py` reads.

A call that was killed goes on where it stopped: a journal says how many documents are done and how long the files were
then.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from monojax import config as config_lib
from monojax import files, metrics
from monojax.config import InputError, require
from monojax.text import background, changes, chat, corpus, given, tokenizer
from monojax.text.config import TextConfig
from monojax.text.conventions import Conventions
from monojax.text.corpus import Document
from monojax.text.problems import Problems
from monojax.text.sources import Source
from monojax.text.tokenizer import Tokenizer
from monojax.text.tokens import DOCUMENT, NO_DOMAIN, SPLITS

_OUTPUTS = tuple(f"{split}{part}" for split in SPLITS for part in (".bin", ".documents.bin"))
_BATCH_BYTES = 4_000_000
_JOURNAL_BYTES = 32_000_000
_TRIAL_CHARACTERS = 1_000_000  # of the corpus, on which a tokenizer that is given is tried
_TRIAL_SOURCES = 50
_MANY_DOMAINS = 1000  # above so many, the user is warned
_FRACTIONS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)  # held-out fractions that a message may advise
_DRAWS = 100_000  # documents that are remembered to find that advice


def prepare(config: TextConfig, directory: str | os.PathLike[str], progress: bool = True,
            batch_bytes: int = _BATCH_BYTES, journal_bytes: int = _JOURNAL_BYTES,
            least_tokens: int = 0) -> dict[str, Any]:
  """Makes tokens of the corpus and writes them into a folder, or goes on where a killed call stopped.

  The folder gets `tokenizer.json`, with `conventions.json` where the tokenizer was given; for each split `<split>.bin`,
  the ids of all documents one after the other, each preceded by the end-of-text id, in little-endian uint16 or uint32,
  and `<split>.documents.bin`, a `DOCUMENT` record for each document; and last `meta.json`. Equal texts always belong to
  the same split.

  Args:
    config: which text is read and how it becomes tokens.
    directory: the folder `tokens` of the run.
    progress: whether progress bars are shown.
    batch_bytes: about how many bytes of text are encoded at a time.
    journal_bytes: about how many bytes of text are between two entries of the journal, from which a killed call
      resumes.
    least_tokens: how many tokens each split needs, for instance those of one context of the subject.

  Returns:
    The content of `meta.json`: dtype, vocab_size, eot_id, end_token, bos_id (of the token that stands in front of
    every context, or None) and special_ids (of tokens that are no text); n_tokens, n_documents and text_bytes for each
    split; domains, problems, sources, files (see `changes.facts_of`), config and complete.

  Raises:
    InputError: the text or the tokenizer cannot be used, a split is too small, or the folder holds tokens that were
      made with other settings or from files that have changed.
  """
  directory = pathlib.Path(directory)
  saved_config = config_lib.to_dict(config)
  meta = files.read_json(directory / "meta.json")
  if meta:
    _require_same(directory, {"text": meta["config"], "sources": {}}, {"text": saved_config, "sources": {}})
    changes.require_unchanged(config, directory)
    return meta
  found = corpus.resolve(config.paths)
  corpus.check(found, config.chat_field)
  require(config.tokenizer or not config.end_token, "tokens.end_token", config.end_token,
          "names a token of a tokenizer that is given with --tokens.tokenizer; one that is trained has <|endoftext|>")
  identity = {"text": saved_config, "sources": {source.name: source.n_bytes for source in found}}
  journal = _journal(directory, identity)
  n_bytes = int(sum(source.n_bytes for source in found) * corpus.used_fraction(found, config))
  n_bytes = min(n_bytes, config.max_bytes) if config.max_bytes else n_bytes
  work = _Work(config, directory, journal, found, n_bytes, progress)
  try:
    encoder = _tokenizer(work)
    bos_id = given.bos_id(config, directory, encoder)
    problems, domains = _encode_corpus(work, encoder, batch_bytes, journal_bytes)
    dtype = _dtype(encoder.vocab_size)
    n_tokens = {s: (directory / f"{s}.bin").stat().st_size // dtype.itemsize for s in SPLITS}
    _require_large_enough(work, n_tokens, least_tokens)
  except InputError:  # what was written is of no use with the settings or files that are needed instead
    for name in ("journal.json", "tokenizer.json", given.CONVENTIONS, *_OUTPUTS):
      (directory / name).unlink(missing_ok=True)
    raise
  _warn(problems, domains)
  meta = {
      "dtype": dtype.name, "vocab_size": encoder.vocab_size, "eot_id": encoder.eot_id,
      "end_token": encoder.end_token, "bos_id": bos_id, "special_ids": list(encoder.special_ids), "n_tokens": n_tokens,
      "n_documents": {s: (directory / f"{s}.documents.bin").stat().st_size // DOCUMENT.itemsize
                      for s in SPLITS},
      "text_bytes": journal["text_bytes"], "domains": domains, "problems": problems.summary(),
      "sources": identity["sources"],
      "files": changes.facts_of(source for source in found if config.paths and source.name in problems.opened),
      "config": saved_config, "complete": True}
  files.write_json(directory / "meta.json", meta)
  (directory / "journal.json").unlink()
  return meta


def _journal(directory: pathlib.Path, identity: dict[str, Any]) -> dict[str, Any]:
  """What an earlier call for the same settings and files has done, or the journal of a new beginning."""
  journal = files.read_record(directory / "journal.json", without=0)
  if journal and journal["documents"]:
    _require_same(directory, journal["identity"], identity)
  elif not journal or journal["identity"] != identity:  # an earlier call that wrote no document does not count
    journal = {"identity": identity, "documents": 0, "sizes": {}, "text_bytes": dict.fromkeys(SPLITS, 0)}
    for name in ("tokenizer.json", given.CONVENTIONS):
      (directory / name).unlink(missing_ok=True)
    files.write_record(directory / "journal.json", journal)
  return journal


@dataclasses.dataclass
class _Work:
  """One call of `prepare`.

  Attributes:
    config: which text is read and how it becomes tokens.
    directory: the folder.
    journal: what is done already.
    sources: what is read.
    n_bytes: an estimate of all bytes of text, for progress bars.
    progress: whether progress bars are shown.
    drawn: for the first documents of this call, what `corpus.draw` gives for each and how many tokens it has.
  """
  config: TextConfig
  directory: pathlib.Path
  journal: dict[str, Any]
  sources: list[Source]
  n_bytes: int
  progress: bool
  drawn: list[tuple[int, int]] = dataclasses.field(default_factory=list)


def _warn(problems: Problems, domains: list[str]) -> None:
  """Says what was skipped or repaired, and what the analysis will have too much of."""
  if problems.message():
    print(f"warning: while reading text: {problems.message()}", file=sys.stderr)
  if len(domains) > _MANY_DOMAINS:
    print(f"warning: the documents have {len(domains):,} different domains, and the analysis describes every feature "
          "in each: choose a field with fewer values with --tokens.domain_field, if this is more than you meant",
          file=sys.stderr)


def _require_large_enough(work: _Work, n_tokens: Mapping[str, int], least_tokens: int) -> None:
  """Raises `InputError` if a split has fewer tokens than it needs, with advice that works for this corpus."""
  small = [f"{split} has {n_tokens[split]:,}" for split in SPLITS if n_tokens[split] < least_tokens]
  if not small:
    return
  held_out = lambda fraction: sum(n for draw, n in work.drawn if corpus.is_among(draw, fraction))
  total, advice = sum(n_tokens.values()), "give more text"
  fits = [f for f in _FRACTIONS if least_tokens <= held_out(f) <= total - least_tokens]
  if len(work.drawn) == work.journal["documents"] and fits:
    advice += f", or set --tokens.val_fraction={fits[0]}, which is enough here"
  else:
    advice += (f" (there are {total:,} tokens in {work.journal['documents']:,} documents, each of which is held out "
               "or not as a whole; --tokens.separator cuts plain files into documents)")
  raise InputError(f"tokens.val_fraction={work.config.val_fraction}: {' and '.join(small)} tokens, but a context of "
                   f"the subject and the token after it need {least_tokens:,}: {advice}, or a smaller "
                   "--subject.n_context")


def _require_same(directory: pathlib.Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
  """Raises `InputError` if the settings or files that a folder was made from are not those that are asked for.

  Args:
    directory: the folder.
    old: {"text": settings, "sources": {name: bytes}} that the folder was made from.
    new: the same of what is asked for.
  """
  upgraded = lambda text: config_lib.to_dict(config_lib.from_dict(TextConfig, text))
  by_flag = lambda identity: {"tokens": upgraded(identity["text"]), "sources": identity["sources"]}
  changes = config_lib.differences(by_flag(old), by_flag(new))
  if changes:
    raise InputError(f"{directory} was made with other settings or from other files ({'; '.join(changes)}): "
                     "use the old ones, choose another run folder, or delete this one")


def _dtype(vocab_size: int) -> np.dtype:
  """The smallest integer type that holds the ids of a vocabulary."""
  return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def _tokenizer(work: _Work) -> Tokenizer:
  """The tokenizer that the settings ask for, loaded or trained; when this returns, its file is in the folder."""
  path, config = work.directory / "tokenizer.json", work.config
  if path.exists():
    return tokenizer.load(path, config.end_token, given.conventions_in(work.directory).eos_token)
  if config.tokenizer:
    encoder, content = given.take(config, work.directory, functools.partial(_some_text, work))
  else:
    found = given.conventions_in(work.directory)  # none; what asks for one is refused at once
    found.bos(config.bos)
    chat.renderer(config, found)
    problems = Problems()
    with _bar(work.n_bytes, "choosing text for the tokenizer", work.progress) as bar:
      documents = _counted(corpus.documents(config, problems), bar)
      texts = tokenizer.spread_sample(documents, config.tokenizer_bytes)
    about = f"training a tokenizer of {config.vocab_size} tokens on {sum(map(len, texts)):,} bytes"
    call = background.Call(tokenizer.train, texts, config.vocab_size)
    with _bar(0, about, work.progress, unit="s") as bar:
      encoder = call.result(bar.update if bar is not None else lambda: None)
    content = encoder.backend.to_str().encode()
  with files.replacing(path) as file:
    file.write(content)
  return encoder


def _some_text(work: _Work, conventions: Conventions) -> list[str]:
  """Some of the corpus: the beginnings of files that are spread evenly over it."""
  render = chat.renderer(work.config, conventions)
  chosen = work.sources[::-(-len(work.sources) // _TRIAL_SOURCES)]
  texts: list[str] = []
  for source in chosen:
    left = _TRIAL_CHARACTERS // len(chosen)
    for document in corpus.documents_of(source, work.config, Problems(), render=render):
      texts.append(document.text[:left])
      left -= len(texts[-1])
      if left <= 0:
        break
  return texts


@contextlib.contextmanager
def _bar(total: int, description: str, progress: bool, initial: int = 0, unit: str = "B") -> Iterator[Any]:
  """A progress bar that counts bytes of text or seconds, or `None` where none is wanted.

  Args:
    total: an estimate of all bytes, or 0 where there is none.
    description: what is being done.
    progress: whether a bar is wanted.
    initial: the bytes that are done already.
    unit: "B" for bytes or "s" for seconds.
  """
  if not progress:
    yield None
    return
  with metrics.progress(total or None, unit, description, initial=initial, scale=unit == "B") as bar:
    yield bar
    bar.total = bar.n  # the total was an estimate, and now the count is known


def _counted(documents: Iterable[Document], bar: Any) -> Iterator[Document]:
  """Yields the documents, while the bar, if there is one, counts their bytes."""
  for document in documents:
    yield document
    if bar is not None:
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
  waiting: tuple[list[Document], background.Call] | None = None
  for batch in batches:
    done = [(waiting[0], waiting[1].result())] if waiting else []
    waiting = batch, background.Call(encoder.encode_batch, [document.text for document in batch])
    yield from done
  if waiting:
    yield waiting[0], waiting[1].result()


def _encode_corpus(work: _Work, encoder: Tokenizer, batch_bytes: int,
                   journal_bytes: int) -> tuple[Problems, list[str]]:
  """Writes the token files of both splits, from the documents that the journal counts as done to the last one.

  Args:
    work: what is read and where it goes; its journal is brought up to date, and written to the folder, now and again.
    encoder: the tokenizer.
    batch_bytes, journal_bytes: as for `prepare`.

  Returns:
    (problems in the whole corpus, the names of the domains in the order in which they first appear).
  """
  config, directory, journal, progress = work.config, work.directory, work.journal, work.progress
  problems = Problems()
  domains: dict[str, int] = {}
  render = chat.renderer(config, given.conventions_in(directory))
  documents = corpus.documents(config, problems, encoder.end_token, render)
  if render:
    encoder = encoder.for_marked_text()
  n_skipped = 0
  for document in itertools.islice(documents, journal["documents"]):
    _domain_index(document.domain, domains)
    n_skipped += 1
  if n_skipped < journal["documents"]:
    raise InputError(f"{directory} has tokens of {journal['documents']} documents, but the files now hold "
                     f"{n_skipped}: they have changed, so the same command starts again")
  done = since_journal = sum(journal["text_bytes"].values())
  with _Outputs(work, encoder) as outputs, _bar(work.n_bytes, "tokenizing", progress, done) as bar:
    for batch, ids in _encoded(_batches(documents, batch_bytes), encoder):
      outputs.append(batch, ids, domains)
      total = sum(journal["text_bytes"].values())
      if bar is not None:
        bar.update(total - done)
      done = total
      if total - since_journal >= journal_bytes:
        outputs.sync()
        files.write_record(directory / "journal.json", journal)
        since_journal = total
    outputs.sync()
  return problems, list(domains)


def _domain_index(name: str | None, domains: dict[str, int]) -> int:
  """The index of a domain, {name: index} being those that have appeared; a new one gets the next index."""
  return NO_DOMAIN if name is None else domains.setdefault(name, len(domains))


class _Outputs:
  """The token files of both splits, open for more documents.

  What a killed call wrote after the last entry of the journal is cut off when they are opened.
  """

  def __init__(self, work: _Work, encoder: Tokenizer) -> None:
    self.config = work.config
    self.directory = work.directory
    self.journal = work.journal
    self.drawn = work.drawn
    self.eot_id = encoder.eot_id
    self.dtype = _dtype(encoder.vocab_size)
    self.files: dict[str, Any] = {}
    for name in _OUTPUTS:
      file = open(os.open(work.directory / name, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
      file.truncate(self.journal["sizes"].get(name, 0))
      file.seek(0, os.SEEK_END)
      self.files[name] = file
    files.sync_directory(work.directory)

  def append(self, batch: list[Document], ids: list[np.ndarray], domains: dict[str, int]) -> None:
    """Writes a batch of documents, each after an end-of-text id, and counts them in the journal.

    Args:
      batch: the documents.
      ids: the token ids of each.
      domains: {name: index} of the domains that have appeared, which gains new ones.
    """
    eot_1 = np.array([self.eot_id], self.dtype)
    pieces: dict[str, list[Any]] = {split: [] for split in SPLITS}
    records: dict[str, list[tuple[int, int]]] = {split: [] for split in SPLITS}
    ends = {split: self.files[f"{split}.bin"].tell() // self.dtype.itemsize for split in SPLITS}
    for document, document_ids in zip(batch, ids, strict=True):
      text = document.text.encode()
      draw = corpus.draw(text, self.config.seed, "split")
      split = "val" if corpus.is_among(draw, self.config.val_fraction) else "train"
      if len(self.drawn) < _DRAWS:
        self.drawn.append((draw, 1 + len(document_ids)))
      records[split].append((ends[split], _domain_index(document.domain, domains)))
      pieces[split] += [eot_1, document_ids.astype(self.dtype)]
      ends[split] += 1 + len(document_ids)
      self.journal["text_bytes"][split] += len(text)
    for split in SPLITS:
      for name, content in ((f"{split}.bin", b"".join(pieces[split])),
                            (f"{split}.documents.bin", np.array(records[split], DOCUMENT).tobytes())):
        with files.naming(self.directory / name):
          self.files[name].write(content)
    self.journal["documents"] += len(batch)

  def sync(self) -> None:
    """Makes sure that what was written is on the disk, and brings the files' lengths in the journal up to date."""
    for name, file in self.files.items():
      with files.naming(self.directory / name):
        file.flush()
        os.fsync(file.fileno())
      self.journal["sizes"][name] = file.tell()

  def __enter__(self) -> "_Outputs":
    return self

  def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
    for name, file in self.files.items():
      try:
        with files.naming(self.directory / name):
          file.close()  # which writes what is still buffered
      except OSError:
        if error is None:
          raise
