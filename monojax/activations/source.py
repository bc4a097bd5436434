"""Where the rows that a dictionary learns from come from: two contracts, a source of batches and a holder of rows.

Letters: B rows of a batch, N rows, M numbers in a row.
"""

import typing
from collections.abc import Iterable

import numpy as np

if typing.TYPE_CHECKING:  # whoever only writes or reads rows needs no jax
  import jax


@typing.runtime_checkable
class Source(typing.Protocol):
  """An endless sequence of batches of activations; what `monojax.sae.train.train_sae` trains on.

  A source is a pure function: its configuration, its seed and the number of a step say which rows a batch holds. Any
  step may be asked for at any time, also twice, and an interrupted training resumes with the rows that it would have
  had. Sources are `ShuffledRows` (rows that are kept), `Stream` (a subject's activations, computed where they are
  used), `Generated` and the studies' `Synthetic` (rows that are drawn at random).

  In a job of several processes, all of them ask for the same batches in the same order, and one rule holds: a process
  must get those rows of a batch that its own devices hold, `mesh.local_rows(mesh, B)`, at their places in the batch. So
  `batch` returns an array of B rows in every process, as one of

  * an array of NumPy, of which a process may fill only its own rows: the others are not looked at;
  * a `jax.Array` that is split over the mesh along "data" already;
  * a `jax.Array` on one device of each process, which holds the same B rows in all of them.

  `mesh.on_mesh` makes one array, split over all devices, of any of these. `sample` is not split: it returns the same
  rows, all of them, in every process.

  Attributes:
    widths: the width of each site. A row holds the sites side by side, so M = sum(widths).
  """

  @property
  def widths(self) -> tuple[int, ...]: ...

  def batch(self, step: int) -> "np.ndarray | jax.Array":
    """x_BM: batch number `step`, from 0 on, in the units in which the subject computes and in any floating type.

    An array of NumPy may be filled again for the next batch: it is copied before that is asked for.
    """
    ...

  def sample(self, n_rows: int, seed: int) -> np.ndarray:
    """x_NM: `n_rows` rows, or all there are, chosen by `seed`; for estimates such as a geometric median."""
    ...


@typing.runtime_checkable
class RowStore(typing.Protocol):
  """A finite number of rows that are kept somewhere; what `ShuffledRows` makes a source of.

  Rows are numbered 0..n_rows-1 and are read in chunks: chunk c is rows c * chunk_rows to (c + 1) * chunk_rows - 1, and
  the last chunk may be short. Row stores are `ActivationStore` and what `open_rows` makes of arrays and files. Reading
  is safe from several threads, and takes memory for what is read, never for all rows.

  Attributes:
    n_rows, width: N and M.
    widths: the width of each site; they add up to `width`.
    chunk_rows: rows that are read together; where neighbours resemble each other, small chunks shuffle better.
    n_chunks: chunks of all rows.
    dtype: NumPy type of the rows: float16, bfloat16 or float32.
  """

  @property
  def n_rows(self) -> int: ...
  @property
  def width(self) -> int: ...
  @property
  def widths(self) -> tuple[int, ...]: ...
  @property
  def chunk_rows(self) -> int: ...
  @property
  def n_chunks(self) -> int: ...
  @property
  def dtype(self) -> np.dtype: ...

  def chunk_span(self, chunk: int) -> tuple[int, int]:
    """(start, stop) of the rows in chunk number `chunk`."""
    ...

  def rows(self, start: int, stop: int) -> np.ndarray:
    """(stop - start, M) rows.

    Raises:
      IndexError: not 0 <= start <= stop <= n_rows.
      InputError: they cannot be read, or are not what was written.
    """
    ...

  def read_chunks(self, chunks: Iterable[int], out: np.ndarray) -> int:
    """Fills the leading rows of `out`, (at least as many rows, M), with whole chunks; returns the number of rows.

    Raises:
      InputError: as `rows`.
    """
    ...

  def fingerprint(self) -> str:
    """16 hexadecimal digits that stand for the rows, so that a training notices when it is resumed on others."""
    ...
