"""Fills an activation store from a loop around any model, of which nobody need know how many rows it will give.

Letters: N rows of the store, R rows of one shard, M width of a site, P what a row of `places` says.

  import monojax
  writer = monojax.StoreWriter("acts", widths={"layer.6": 768}, about={"model": "gpt2", "text": "wiki"})
  with writer, layer.register_forward_hook(lambda module, inputs, output: writer.add({"layer.6": output})):
    for tokens in batches:
      model(tokens)
"""

import contextlib
import dataclasses
import json
import os
import types
from collections.abc import Mapping, Sequence

import numpy as np

from monojax import distributed, files
from monojax.activations.arrays import as_numpy, flat, rows_dtype
from monojax.activations.folder import Folder
from monojax.activations.layout import PLACE, Layout
from monojax.activations.owner import owned
from monojax.activations.store import (
  MOST_ROWS,
  OWN,
  SAMPLE_ROWS,
  TOKEN_STRINGS,
  VERSION,
  ActivationStore,
  all_finite,
  durable_rows,
  largest_16,
  missing_shards,
  read_description,
)
from monojax.activations.writer import ShardSink, ShardWriter, begin, header_of
from monojax.config import InputError, differences, require

UNKNOWN = -1  # in `places`
_SHARD_BYTES, _SHARD_ROWS, _MIN_CHUNK_ROWS = 2**27, 2**16, 16
_COMPARED_ROWS, _FEWEST_COMPARED = 1024, 16


class StoreWriter:
  """Writes activations, of any model and as they come, to a store that `monojax.train` and `ActivationStore` read.

  Rows are collected until they fill a shard, which is permuted and written while the next one fills: so memory holds
  five shards at most, and neighbours on disk come from all over a shard. Leaving the `with` block finishes the store.

  If the loop is killed, a new writer with the same arguments finds the shards that are on disk, and prints how many
  rows they hold, `n_rows`. The loop then gives the rows after those: either it skips the first `n_rows` itself, or it
  numbers what it gives with `first_row`, and the writer leaves out what is there already:

    for i, tokens in enumerate(batches):                     # of 4,096 tokens each
      if (i + 1) * 4096 > writer.n_rows:                     # otherwise the model need not run
        writer.add({"layer.6": activations_of(tokens)}, first_row=i * 4096)

  One process at a time writes a store, and one thread gives it rows.
  """

  def __init__(self, path: str | os.PathLike, widths: Mapping[str, int], dtype: str = "float16",
               compression: str = "none", shard_rows: int = 0, chunk_rows: int = 0,
               token_strings: Sequence[str] | None = None, domains: Sequence[str] = (), about: object = None) -> None:
    """Begins the store in `path`, or goes on with the one that is there.

    Args:
      path: a folder, made if need be, or s3://BUCKET/PATH or gs://BUCKET/PATH.
      widths: {site: numbers in a row of it}. A site is any name you choose for a place in the model; the first is the
        one that dictionaries are trained on unless they name others.
      dtype: type of the stored numbers: float16, bfloat16, float32, or int8 with scales for each row and column.
      compression: none or zstd.
      shard_rows: rows in one file; 0 takes at most 65,536 rows and 128 MiB.
      chunk_rows: rows that are read together, divides shard_rows; 0 takes a 64th of it.
      token_strings: what each token id reads like, for pages of features, for instance
        `[tokenizer.decode([i]) for i in range(len(tokenizer))]`.
      domains: names of the kinds of text that `add` numbers.
      about: what the rows are, anything that JSON can say, for instance the names of the model and of the text. A
        store is gone on with only by a writer that says the same.

    Raises:
      InputError: an argument breaks its rule, or `path` holds another store or cannot be written; or this process is
        one of a job, and not the first.
    """
    if not distributed.is_first():
      raise InputError(f"StoreWriter({str(path)!r}): this is not the first process of a jax.distributed job, and only "
                       "that one can write a store: give it the rows of all, or record in processes that have not "
                       "joined a job, each with a folder of its own")
    domains = list(domains)
    require(all(isinstance(name, str) for name in domains), "domains", domains, "must be names")
    try:
      identity = {"written_by": OWN, "about": json.loads(json.dumps(about)), "domains": domains}
    except (TypeError, ValueError) as error:
      raise InputError(f"about={about!r}: must be what JSON can say, such as a dict of names: {error}") from error
    self._layout = _growing_layout(_checked_widths(widths), dtype, compression, shard_rows, chunk_rows)
    self._folder, self._domains, self._identity = Folder(path), domains, identity
    self._token_strings = _checked_strings(token_strings)
    self._sink: ShardSink | None = None
    self._rows: dict[str, np.ndarray] = {}  # of the shard that is being filled, in the order in which they came
    self._places_RP = np.empty((0, len(PLACE)), np.int32)
    self._filled = 0
    self._meta: dict | None = None
    self._owned: contextlib.ExitStack | None = None
    try:
      self._begin()
    except BaseException:
      self._disown()
      raise

  def _begin(self):
    """Writes header.json, or finds how far the store is that is there."""
    header = {**header_of(self._layout, self._identity), "n_rows": None}
    self._folder.reach(to_write=True)
    if self._folder.read("meta.json") is None:
      self._own()
    found = read_description(self._folder, "header.json")
    self._first, self._existed = 0, found is not None  # shards that an earlier writer left
    if found is None:
      begin(self._folder, header)
    else:
      if changed := differences({**found, "n_rows": None, "version": VERSION}, header):
        raise InputError(f"{self._folder} holds another store ({'; '.join(changed)}): delete that folder or name "
                         "another")
      n_rows = durable_rows(self._folder, header)
      if found["n_rows"] is not None:  # it was finished, or about to be
        layout = dataclasses.replace(self._layout, n_rows=found["n_rows"])
        meta = read_description(self._folder, "meta.json")
        if meta is not None and not missing_shards(self._folder, layout):
          self._meta, n_rows = meta, found["n_rows"]
        else:
          n_rows = min(n_rows, found["n_rows"] // layout.shard_rows * layout.shard_rows)
      self._first = n_rows // self._layout.shard_rows
      if n_rows:
        print(f"the store in {self._folder} " + (f"is finished, with {n_rows:,} rows" if self.finished else
              f"has {n_rows:,} rows already: go on with the row after them"), flush=True)
    self._next, self._unverified = self._first, self._first > 0 and not self.finished

  def _own(self):
    """Has this process own the store, unless it does, until it is finished or the `with` block ends."""
    if self._owned is None:
      self._owned = contextlib.ExitStack()
      self._owned.enter_context(owned(str(self._folder)))

  def _disown(self):
    if self._owned is not None:
      self._owned.close()
      self._owned = None

  @property
  def finished(self) -> bool:
    """Whether the store is finished; it then takes no more rows."""
    return self._meta is not None

  @property
  def n_rows(self) -> int:
    """Rows that would survive if the process were killed now; those of later shards may be under way."""
    if self._meta is not None:
      return self._meta["n_rows"]
    under_way = self._sink.settle(self._next) if self._sink else 0
    return (self._next - under_way) * self._layout.shard_rows

  def add(self, rows: Mapping[str, object], tokens: object = None, documents: object = None, positions: object = None,
          domains: object = None, first_row: int | None = None) -> None:
    """Takes some rows, to be written once they fill a shard.

    Args:
      rows: {site: array of shape (..., M)} of every site, with the same leading axes, all of which count rows; of
        NumPy, JAX or PyTorch, or with `__array__` or `__dlpack__`. It is copied. Leave out what is only padding:
        `x[mask]`.
      tokens: the ids of the tokens at which the rows were taken, as the leading axes of the rows.
      documents: the numbers of the documents that these belong to. Here and in the next two, axes of length 1 and plain
        integers stand for all rows along them.
      positions: the tokens' places in their documents, from 0 on.
      domains: the numbers of the documents' kinds in the writer's `domains`.
      first_row: how many rows of the loop come before these; those that the store has already are then left out.

    What is not given is stored as -1, unknown. Examples of what a feature fires on need `tokens`; with `documents` and
    `positions` they can show the text around it.

    Raises:
      InputError: shapes do not fit, a number is not finite in the store's dtype, rows are missing, the store is
        finished, or an earlier shard could not be written.
    """
    pieces, leading = self._pieces(rows)
    places_NP = self._places(leading, {"tokens": tokens, "documents": documents, "positions": positions,
                                       "domains": domains})
    at, n_rows = self._known(first_row, len(places_NP)), len(places_NP)
    require(at == n_rows or not self.finished, "store", str(self._folder),
            f"is finished and takes no more rows: it has {self.n_rows:,}, which the loop should skip; or delete that "
            "folder to begin anew")
    if not self._rows and at < n_rows:
      self._rows = {site: np.empty((self._layout.shard_rows, width), self._layout.given_dtype)
                    for site, width in self._layout.sites.items()}
      self._places_RP = np.empty((self._layout.shard_rows, len(PLACE)), np.int32)
    while at < n_rows:
      taken = min(n_rows - at, self._layout.shard_rows - self._filled)
      here, there = slice(self._filled, self._filled + taken), slice(at, at + taken)
      for site, piece_NM in pieces.items():
        self._rows[site][here] = piece_NM[there]
      self._places_RP[here] = places_NP[there]
      self._filled, at = self._filled + taken, at + taken
      if self._filled == self._layout.shard_rows:
        self._write_shard()

  def _pieces(self, rows):
    """({site: (N, M) rows in the type that they are stored from}, their leading axes)."""
    if not isinstance(rows, Mapping) or rows.keys() != self._layout.sites.keys():
      given = ", ".join(map(str, rows)) if isinstance(rows, Mapping) else f"a {type(rows).__name__}"
      raise InputError(f"given were {given or 'no sites'}: rows of each site are needed, {{site: array}} of "
                       f"{', '.join(self._layout.sites)}")
    pieces, shapes = {}, {}
    for site, width in self._layout.sites.items():
      x = as_numpy(rows[site], site)
      rows_dtype(x.dtype, site)
      require(x.ndim >= 2 and x.shape[-1] == width, f"shape of {site}", x.shape,
              f"must be (..., {width}), with at least one axis that counts rows")
      shapes[site] = x.shape[:-1]
      require(shapes[site] == next(iter(shapes.values())), f"shape of {site}", x.shape,
              f"its leading axes must be those of the other sites, {next(iter(shapes.values()))}")
      pieces[site] = self._converted(x, site) if x.size else np.empty((0, width), self._layout.given_dtype)
    return pieces, next(iter(shapes.values()))

  def _places(self, leading, columns):
    """(N, P) int32: the columns of `places`, of each name in its order or `None`."""
    found = {name: _column(name, value, leading).reshape(-1) for name, value in columns.items()}
    for name, names in (("tokens", self._token_strings), ("domains", self._domains)):
      most = int(np.max(found[name], initial=UNKNOWN))
      require(names is None or most < len(names), name, most,
              f"the writer was given {len(names or ())} of them, which count from 0")
    return np.stack(list(found.values()), axis=1)

  def _converted(self, x, site):
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large becomes infinite, and is found
      piece_NM = flat(x, site).astype(self._layout.given_dtype, copy=False)
    if not all_finite(piece_NM):
      row = int(np.argmin(np.isfinite(piece_NM.astype(np.float32)).all(axis=1)))
      raise InputError(f"row {row} of what was given for {site} holds a number that is not finite in "
                       f"{piece_NM.dtype}: leave such rows out if the model made them so, or take dtype='bfloat16', "
                       "which holds larger numbers")
    if piece_NM.dtype == np.float16 and not largest_16(piece_NM) and np.any(flat(x, site)):
      raise InputError(f"what was given for {site} is too small for float16, which rounds all of it to 0: take "
                       "dtype='bfloat16', or multiply it")
    return piece_NM

  def _known(self, first_row, n_rows):
    """How many of the rows given the store has already."""
    if first_row is None:
      return 0
    have = self.n_rows if self.finished else self._next * self._layout.shard_rows + self._filled
    require(0 <= first_row <= have, "first_row", first_row, f"the store has {have:,} rows so far, give the next ones")
    return min(n_rows, have - first_row)

  def _write_shard(self):
    """Starts writing the rows collected, which fill a shard."""
    self._refuse_a_second_beginning()
    sink = self._opened_sink()
    rows, places_RP = self._permuted()
    sink.put(self._next, rows, places_RP, -(-SAMPLE_ROWS // (self._next + 1)))
    self._next, self._filled = self._next + 1, 0

  def _permuted(self):
    """Copies of the rows and places collected, in the order in which a shard holds them."""
    order_R = _order(self._next, self._filled)
    return {site: rows_RM[order_R] for site, rows_RM in self._rows.items()}, self._places_RP[order_R]

  def _opened_sink(self):
    """What writes shards; the first time it is needed, whatever comes after the first rows to go on with is deleted."""
    if self._sink is not None:
      return self._sink
    self._own()
    if self._existed:
      self._folder.delete("meta.json")
      for name in self._folder.names("sums"):
        if (number := _number(name)) is not None and number >= self._first:
          self._folder.delete(f"sums/{name}")
      for path in self._layout.arrays:
        for name in self._folder.names(path):
          kind, _, rest = name.partition("/")  # c/SHARD/0, or zarr.json, which tells the shape
          if kind != "c" or (_number(rest) or 0) >= self._first:
            self._folder.delete(f"{path}/{name}")
      header = {**header_of(self._layout, self._identity), "n_rows": None}
      self._folder.write_json("header.json", files.sealed(header))
    self._sink = ShardSink(self._folder, self._layout, self._layout.open_arrays(self._folder, described=False))
    return self._sink

  def _refuse_a_second_beginning(self):
    """Raises `InputError` if the first rows that were given to go on with are those that the store begins with."""
    if not self._unverified or not self._filled:
      return
    n_compared, sites = min(_COMPARED_ROWS, self._layout.shard_rows), list(self._rows)
    header = {**header_of(self._layout, self._identity), "n_rows": self._first * self._layout.shard_rows}
    store = ActivationStore(self._folder, header, sites, described=False)
    order_R = _order(0, self._layout.shard_rows)[:n_compared]  # which of the given rows are the first on the disk
    there_R = order_R < self._filled
    kept_RM, kept_RP = store.rows(0, n_compared)[there_R], store.places(0, n_compared)[there_R]
    order_R = order_R[there_R]
    given_RM = np.concatenate([self._rows[site][order_R] for site in sites], axis=1).astype(np.float32)
    far = np.linalg.norm(kept_RM.astype(np.float32) - given_RM) > 0.05 * np.linalg.norm(given_RM)  # int8 is not exact
    distinct = len(np.unique(given_RM, axis=0)) >= min(_FEWEST_COMPARED, self._layout.shard_rows)
    if distinct and not far and np.array_equal(kept_RP, self._places_RP[order_R]):
      raise InputError(f"the rows given are those that the store in {self._folder} begins with, and it has "
                       f"{store.n_rows:,} rows already: have the loop skip as many or give `first_row`, or delete that "
                       "folder to begin anew")
    self._unverified = False

  def finish(self) -> dict:
    """Writes the rows that are left, the statistics and meta.json; does nothing to a store that is finished.

    Returns:
      The dict in meta.json.

    Raises:
      InputError: no rows were given, or something could not be written.
    """
    if self._token_strings is not None:
      self._folder.write_json(TOKEN_STRINGS, files.sealed({"strings": self._token_strings}))
    if self._meta is not None:
      return self._meta
    n_rows = self._next * self._layout.shard_rows + self._filled
    require(n_rows > 0, "rows", 0, f"none were given to the store in {self._folder}")
    self._refuse_a_second_beginning()
    sink = self._opened_sink()
    sink.settle(0)
    sink.close()
    layout = dataclasses.replace(self._layout, n_rows=n_rows)
    self._folder.write_json("header.json", files.sealed(header_of(layout, self._identity)))
    writer = ShardWriter(str(self._folder), layout, self._identity)
    if writer.todo != ([self._next] if self._filled else []):
      raise InputError(f"shards {writer.todo[:5]} of {self._folder} have vanished since they were written: run the "
                       "loop again, it goes on there")
    if self._filled:
      writer.write_shard(self._next, *self._permuted())
      writer.flush()
    meta = self._meta = writer.finish({"domains": self._domains})
    self._rows, self._filled = {}, 0
    self._disown()
    return meta

  def __enter__(self) -> "StoreWriter":
    return self

  def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
               traceback: types.TracebackType | None) -> None:
    """Finishes the store; after an error it only waits for what is being written, to be gone on with."""
    try:
      if kind is None:
        self.finish()
      elif self._sink is not None:
        with contextlib.suppress(InputError):
          self._sink.settle(0)
    finally:
      self._disown()


def _checked_widths(widths):
  require(isinstance(widths, Mapping) and widths, "widths", widths, "must be {site: numbers in a row of it}")
  for site, width in widths.items():
    require(isinstance(site, str) and site and "/" not in site and not site.startswith((".", "__")), "widths", site,
            "the name of a site must be a string that is not empty, holds no / and does not begin with . or __")
    require(isinstance(width, (int, np.integer)) and width > 0, f"width of {site}", width, "must be positive")
  return {site: int(width) for site, width in widths.items()}


def _growing_layout(widths, dtype, compression, shard_rows, chunk_rows):
  """The layout of a store of which it is not known how many rows it will have."""
  if shard_rows:
    return Layout.sized(MOST_ROWS, widths, dtype, compression, shard_rows, chunk_rows)
  step = chunk_rows or _MIN_CHUNK_ROWS
  one_chunk = Layout(MOST_ROWS, widths, dtype, compression, step, step)
  most = min(_SHARD_ROWS, _SHARD_BYTES // (sum(widths.values()) * one_chunk.given_dtype.itemsize))
  shard_rows = max(step, 2 ** (max(1, most).bit_length() - 1) // step * step)
  return Layout.sized(MOST_ROWS, widths, dtype, compression, shard_rows, chunk_rows)


def _checked_strings(token_strings):
  if token_strings is None:
    return None
  require(not isinstance(token_strings, (str, Mapping)), "token_strings", type(token_strings).__name__,
          "must be a list with the string of token id i at place i")
  token_strings = list(token_strings)
  wrong = next((i for i, string in enumerate(token_strings) if not isinstance(string, str)), None)
  require(wrong is None, "token_strings", wrong, "is the number of an entry that is no string")
  return token_strings


def _column(name, value, leading):
  """int32 of the shape `leading`: one column of the places of some rows."""
  if value is None:
    return np.full(leading, UNKNOWN, np.int32)
  array = as_numpy(value if hasattr(value, "__array__") or hasattr(value, "__dlpack__") else np.asarray(value), name)
  require(array.dtype.kind in "iu" or not array.size, f"dtype of {name}", str(array.dtype), "must be integers")
  fits = array.ndim in (0, len(leading)) and all(n in (1, m) for n, m in zip(array.shape, leading, strict=False))
  require(fits, f"shape of {name}", array.shape, f"must be that of the rows without their last axis, {leading}")
  require(not array.size or UNKNOWN <= array.min() and array.max() < 2**31, name, "out of range",
          f"must lie in {UNKNOWN}..2147483647, where {UNKNOWN} is unknown")
  return np.broadcast_to(array, leading).astype(np.int32)


def _number(name):
  """The number of the shard that a file's name begins with, or `None`."""
  digits = name.partition("/")[0].partition(".")[0]
  return int(digits) if digits.isdigit() else None


def _order(index, n_rows):
  """The permutation by which shard `index` holds its rows: its row i is the `_order(...)[i]`-th that was given."""
  return np.random.default_rng([0, index]).permutation(n_rows)
