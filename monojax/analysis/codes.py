"""Sparse activations of every feature on a text: what the feature tables are made from."""

import dataclasses
import itertools
import mmap
import typing

import jax
import numpy as np

from monojax import mesh as meshes
from monojax import metrics
from monojax.host_memory import total_bytes

# What a non-zero activation takes: 8 bytes, and 4 in what is computed of them.
BYTES_PER_ENTRY = 12
_RANGES = 16     # of features, whose entries are joined one after the other
_SLAB = 1 << 22  # numbers that memory is asked for at a time
Watch = typing.Callable[..., None]

if typing.TYPE_CHECKING:
  from monojax.analysis.progress import Progress


@dataclasses.dataclass(frozen=True)
class Codes:
  """Non-zero activations, feature by feature: a compressed sparse column matrix.

  Attributes:
    n_rows: the tokens that were looked at and count, which is N where all do.
    start_F: int64 (F + 1,); the entries of feature i are number start_F[i] to start_F[i + 1] - 1.
    row_P: int32, the row of each entry, ascending within a feature.
    value_P: float32, its activation.
  """
  n_rows: int
  start_F: np.ndarray
  row_P: np.ndarray
  value_P: np.ndarray

  def feature(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, values) of a feature's non-zero activations."""
    entries = slice(self.start_F[index], self.start_F[index + 1])
    return self.row_P[entries], self.value_P[entries]

  def part(self, start: int, stop: int) -> "Codes":
    """The activations of the features from `start` to `stop` - 1, numbered from 0."""
    entries = slice(self.start_F[start], self.start_F[stop])
    return Codes(self.n_rows, self.start_F[start:stop + 1] - self.start_F[start], self.row_P[entries],
                 self.value_P[entries])

  def sums(self) -> tuple[np.ndarray, np.ndarray]:
    """(sum_F, square_F): each feature's activations and their squares, added up over the rows, in float64."""
    values = [self.feature(i)[1] for i in range(len(self.start_F) - 1)]
    added = [(value_P.sum(dtype=np.float64), np.square(value_P, dtype=np.float64).sum()) for value_P in values]
    sum_F, square_F = np.array(added, np.float64).reshape(-1, 2).T
    return sum_F, square_F

  def on_rows(self, rows_N: np.ndarray) -> "Codes":
    """The activations on those rows that the bools `rows_N` choose, numbered anew; all of them count."""
    number_N = (np.cumsum(rows_N) - 1).astype(np.int32)
    kept = []
    for row_P, value_P in map(self.feature, range(len(self.start_F) - 1)):  # NumPy copies a whole index as int64
      kept_P = rows_N[row_P]
      kept.append((number_N[row_P[kept_P]], value_P[kept_P]))
    n_F = np.array([len(row_P) for row_P, _ in kept], np.int64)
    row_P, value_P = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    return Codes(int(rows_N.sum()), np.concatenate([[0], np.cumsum(n_F)]), row_P, value_P)

  def fires_on(self, n_rows: int) -> np.ndarray:
    """How many features fire on each of the first `n_rows` rows, int32."""
    fires_N = np.zeros(n_rows, np.int32)
    for i in range(len(self.start_F) - 1):
      fires_N[self.feature(i)[0]] += 1  # no row comes twice
    return fires_N


def collect(encode: typing.Callable[[typing.Any], typing.Any],
            batches: typing.Iterable[tuple[typing.Any, int]], n_rows: int, description: str,
            rank_N: np.ndarray | None = None, watch: Watch | None = None,
            progress: "Progress | None" = None) -> Codes:
  """Encodes batches and keeps the activations that are not zero.

  Args:
    encode: batch -> activations of shape (rows of the batch, F); with `watch`, a tuple of these and of further arrays
      with a row for each row of the batch, the neurons first.
    batches: pairs of a batch and the number of its leading rows that count.
    n_rows: N, the rows of all batches that count.
    description: label of the progress bar.
    rank_N: the number that each row gets; by default rows are numbered in the order in which they come.
    watch: is called for each batch with the rows in the batch, the numbers and the activations of the features that
      fire there, and with the further arrays.
    progress: where batches are kept on the disk; those that are there already are not encoded again.

  Returns:
    `Codes`, 8 bytes for each non-zero activation, and while they are put together hardly more.
  """
  start, gathered = 0, _Gathered(0)
  if progress and progress.n_batches:
    start = progress.n_rows
    for n_features, *arrays in progress.restored():
      gathered = gathered if gathered.n_features else _Gathered(int(n_features[0]))
      gathered.add(_Part.of_integers(arrays))

  def keep(n_used, encoded):
    nonlocal start, gathered
    encoded = encoded if watch else (encoded,)
    if any(isinstance(part, jax.Array) and not part.is_fully_addressable for part in encoded):
      encoded = meshes.to_host(encoded)  # parts of it are on devices of other processes
    f_NF = np.asarray(encoded[0])[:n_used]
    n_features = f_NF.shape[1]
    gathered = gathered if gathered.n_features else _Gathered(n_features)
    entry_P = np.flatnonzero(f_NF != 0)  # NumPy finds what is true of bools four times as fast as what is not 0
    row_P, feature_P = np.divmod(entry_P, n_features)
    value_P = f_NF.reshape(-1)[entry_P].astype(np.float32)
    part = _Part.of(row_P + start, feature_P, value_P, n_features)
    gathered.add(part)
    if watch:
      watch(row_P, feature_P, value_P, *(array[:n_used] for array in encoded[1:]))
    start += n_used
    if progress:
      progress.add([np.array([n_features], np.int32), *part.integers()], start)
    bar.update(n_used)

  pending = None  # one batch is computed while the entries of the one before are kept
  done = progress.n_batches if progress else 0
  with metrics.progress(n_rows, "tokens", description, scale=True, initial=start) as bar:
    for batch, n_used in itertools.islice(batches, done, None):
      coming = n_used, encode(batch)
      if pending:
        keep(*pending)
      pending = coming
    if pending:
      keep(*pending)
  codes = gathered.joined(n_rows)
  if rank_N is not None:
    for i in range(len(codes.start_F) - 1):
      row_P, value_P = codes.feature(i)
      rank_P = rank_N[row_P]
      order_P = np.argsort(rank_P)
      row_P[:], value_P[:] = rank_P[order_P], value_P[order_P]
  return codes


class _Part(typing.NamedTuple):
  """The entries of one batch, feature by feature: those of `feature_J[j]` are `count_J[j]`, one after the other."""
  feature_J: np.ndarray
  count_J: np.ndarray
  row_P: np.ndarray
  value_P: np.ndarray

  @classmethod
  def of(cls, row_P: np.ndarray, feature_P: np.ndarray, value_P: np.ndarray, n_features: int) -> "_Part":
    """The entries of a batch that come row by row."""
    small = np.uint16 if n_features <= 65_536 else np.int32  # small numbers are sorted faster
    order_P = np.argsort(feature_P.astype(small), kind="stable")
    count_F = np.bincount(feature_P, minlength=n_features)
    feature_J = np.flatnonzero(count_F).astype(np.int32)
    return cls(feature_J, count_F[feature_J].astype(np.int32), row_P[order_P].astype(np.int32), value_P[order_P])

  def integers(self) -> list[np.ndarray]:
    """The four arrays as int32, floats by their bits."""
    return [self.feature_J, self.count_J, self.row_P, self.value_P.view(np.int32)]

  @classmethod
  def of_integers(cls, arrays: list[np.ndarray]) -> "_Part":
    """The entries of which `integers` gave these."""
    feature_J, count_J, row_P, value_P = arrays
    return cls(feature_J, count_J, row_P, value_P.view(np.float32))

  def between(self, start: int, stop: int) -> "_Part":
    """The entries of the features from `start` to `stop` - 1."""
    first, end = np.searchsorted(self.feature_J, [start, stop])
    begin = int(self.count_J[:first].sum())
    entries = slice(begin, begin + int(self.count_J[first:end].sum()))
    return _Part(self.feature_J[first:end], self.count_J[first:end], self.row_P[entries], self.value_P[entries])


class _Range:
  """The entries of some features, batch by batch.

  They lie in slabs of memory that come from the system directly and go back to it when they are dropped. The C library
  would keep it (`host_memory.keep_freed_memory`); and whatever stays there for long, be it as small as the shape of an
  array, leaves gaps between the large arrays of single batches that the next batch does not fit into.
  """

  def __init__(self) -> None:
    self._slabs: list[np.ndarray] = []
    self._used = 0
    self._places: list[tuple[int, int, int, int]] = []  # of each batch: slab, place there, J, P

  def add(self, part: _Part) -> None:
    """Copies the entries of one more batch."""
    numbers = np.concatenate(part.integers())
    if not self._slabs or self._used + len(numbers) > len(self._slabs[-1]):
      self._slabs.append(np.frombuffer(mmap.mmap(-1, 4 * max(len(numbers), _SLAB)), np.int32))
      self._used = 0
    self._slabs[-1][self._used:self._used + len(numbers)] = numbers
    self._places.append((len(self._slabs) - 1, self._used, len(part.feature_J), len(part.row_P)))
    self._used += len(numbers)

  def parts(self) -> typing.Iterator[_Part]:
    """The entries of each batch."""
    for slab, start, n_j, n_p in self._places:
      numbers = self._slabs[slab][start:start + 2 * (n_j + n_p)]
      feature_J, count_J, row_P, value_P = np.split(numbers, [n_j, 2 * n_j, 2 * n_j + n_p])
      yield _Part(feature_J, count_J, row_P, value_P.view(np.float32))


class _Gathered:
  """The entries of all batches so far, apart for ranges of features, which are joined one after the other."""

  def __init__(self, n_features: int):
    self.n_features = n_features
    self._total_F = np.zeros(n_features, np.int64)
    bounds = np.linspace(0, n_features, min(_RANGES, n_features) + 1).astype(int).tolist()
    self._ranges = {bound: _Range() for bound in itertools.pairwise(bounds)}

  def add(self, part: _Part) -> None:
    """Keeps the entries of one more batch."""
    self._total_F[part.feature_J] += part.count_J
    for bound, kept in self._ranges.items():
      kept.add(part.between(*bound))

  def joined(self, n_rows: int) -> Codes:
    """All entries. Those that were gathered are dropped, range by range, so that few are held twice."""
    start_F = np.concatenate([[0], np.cumsum(self._total_F)])
    row_P, value_P = np.empty(start_F[-1], np.int32), np.empty(start_F[-1], np.float32)
    next_F = start_F[:-1].copy()
    while self._ranges:
      for part in self._ranges.pop(next(iter(self._ranges))).parts():
        begin_J = np.cumsum(part.count_J) - part.count_J
        place_P = np.repeat(next_F[part.feature_J] - begin_J, part.count_J) + np.arange(len(part.row_P))
        row_P[place_P], value_P[place_P] = part.row_P, part.value_P
        next_F[part.feature_J] += part.count_J
    return Codes(n_rows, start_F, row_P, value_P)


def tokens_that_fit(n_tokens: int, per_token: float, memory_bytes: int | None = None) -> int:
  """`n_tokens`, or fewer, with a message, if collecting the `Codes` of so many would take over a quarter of memory.

  A quarter, since an analysis holds up to five sets of codes, 8 bytes an entry, while it collects one.

  Args:
    n_tokens: tokens wanted.
    per_token: non-zero activations on a token, on average.
    memory_bytes: memory of the host; by default what `host_memory.total_bytes` says.
  """
  n_fitting = int((memory_bytes or total_bytes()) / 4 / BYTES_PER_ENTRY / max(per_token, 1e-9))
  if n_tokens <= n_fitting:
    return n_tokens
  print(f"analysing {n_fitting:,} tokens instead of {n_tokens:,}: with {per_token:,.0f} activations on each, "
        "more would not fit into memory", flush=True)
  return n_fitting
