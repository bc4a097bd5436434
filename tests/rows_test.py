"""Arrays in memory and in files as rows: compared with NumPy, shuffled, read in bounded memory, refused in one line."""

import os
import threading

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from foreign_arrays import OnlyArray, OnlyDLPack
from made_store import SITE, N, made_rows
from safetensors.numpy import save_file

from monojax.activations.generated import Generated
from monojax.activations.reader import ShuffledRows
from monojax.activations.rows import ArrayRows, chunk_rows_of, open_rows
from monojax.activations.source import RowStore, Source
from monojax.activations.store import ActivationStore
from monojax.config import InputError
from monojax.studies.synthetic.planted import PlantedConfig
from monojax.studies.synthetic.source import Planted, Synthetic

X_ATM = np.random.default_rng(0).standard_normal((20, 15, 8)).astype(np.float32)  # 300 rows
X_NM = X_ATM.reshape(-1, 8)


def check(rows, x_NM):
  """That `rows` serves the rows of `x_NM`, in its type."""
  assert isinstance(rows, RowStore)
  assert (rows.n_rows, rows.width, rows.widths, rows.dtype) == (*x_NM.shape, x_NM.shape[1:], x_NM.dtype)
  n = len(x_NM)
  for start, stop in ((0, n), (0, 0), (n, n), (1, 2), (n // 3, n - 2)):
    found = rows.rows(start, stop)
    assert found.dtype == x_NM.dtype and found.tobytes() == x_NM[start:stop].tobytes()
  for start, stop in ((0, n + 1), (-1, 2), (3, 2)):
    with pytest.raises(IndexError):
      rows.rows(start, stop)
  chunks = np.random.default_rng(1).permutation(rows.n_chunks)
  out = np.empty((n + 3, x_NM.shape[1]), x_NM.dtype)
  assert rows.read_chunks(chunks, out) == n
  expected = np.concatenate([x_NM[slice(*rows.chunk_span(int(chunk)))] for chunk in chunks])
  assert out[:n].tobytes() == expected.tobytes()


@pytest.mark.parametrize("x, dtype", [
    (X_ATM, "float32"), (X_ATM.astype(np.float16), "float16"), (X_ATM.astype(ml_dtypes.bfloat16), "bfloat16"),
    (X_ATM.astype(np.float64), "float32"), (X_ATM.astype(">f2"), "float16"), ((X_ATM * 9).astype(np.int64), "float32"),
    (X_ATM > 0, "float32"), (X_ATM.transpose(1, 0, 2), "float32"), (np.asfortranarray(X_NM), "float32"),
    (jnp.asarray(X_ATM), "float32"), (jnp.asarray(X_ATM, jnp.bfloat16), "bfloat16"), (OnlyArray(X_ATM), "float32"),
    (OnlyDLPack(X_ATM), "float32"), (OnlyDLPack(jnp.asarray(X_ATM, jnp.bfloat16)), "bfloat16")])
def test_arrays_in_memory(x, dtype):
  inside = getattr(x, "_x", x)
  check(open_rows(x), np.asarray(inside).reshape(-1, 8).astype(np.dtype(dtype)))


def test_tensors_of_pytorch():
  torch = pytest.importorskip("torch")
  x = torch.from_numpy(X_ATM.copy()).requires_grad_()
  check(open_rows(x), X_NM)
  check(open_rows(x * 1), X_NM)  # not a leaf
  check(open_rows(x.half()), X_NM.astype(np.float16))
  check(open_rows(x.bfloat16()), X_NM.astype(ml_dtypes.bfloat16))
  check(open_rows(x.bfloat16().transpose(0, 1)), X_ATM.transpose(1, 0, 2).reshape(-1, 8).astype(ml_dtypes.bfloat16))
  check(open_rows(x.double()), X_NM)
  with pytest.raises(InputError, match="x, a torch.Tensor, cannot be read as an array"):
    open_rows(torch.zeros(3, 4).to(torch.float8_e4m3fn))


def saved(directory, form, x):
  path = directory / f"x.{form.rpartition('.')[2]}"
  if form == "npy":
    np.save(path, x)
  elif form == "several.npz":
    np.savez(path, tokens=np.arange(3), x=x, a_longer_name=x[:2])
  elif form == "npz":
    np.savez(path, x)
  elif form == "several.safetensors":
    save_file({"tokens": np.arange(3), "x": np.ascontiguousarray(x), "z": x[:2].copy()}, path, {"about": "a test"})
  else:
    save_file({"x": np.ascontiguousarray(x)}, path)
  return path


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int16", "bool", "bfloat16"])
@pytest.mark.parametrize("form", ["npy", "npz", "several.npz", "safetensors", "several.safetensors"])
def test_files(tmp_path, form, dtype):
  x_ATM = X_ATM.astype(np.dtype(dtype))
  path, key = saved(tmp_path, form, x_ATM), "x" if "several" in form else None
  if dtype == "bfloat16" and "np" in form:  # NumPy forgets what the two bytes are
    with pytest.raises(InputError, match="bfloat16: save the array as .safetensors or as float32"):
      open_rows(path, key)
    return
  kept = dtype if dtype in ("float32", "float16", "bfloat16") else "float32"
  check(open_rows(path, key), x_ATM.reshape(-1, 8).astype(np.dtype(kept)))
  check(open_rows(str(path), key), x_ATM.reshape(-1, 8).astype(np.dtype(kept)))


def test_other_orders_on_disk(tmp_path):
  np.save(tmp_path / "columns.npy", np.asfortranarray(X_NM))
  check(open_rows(np.load(tmp_path / "columns.npy", mmap_mode="r")), X_NM)
  np.save(tmp_path / "big_endian.npy", X_NM.astype(">f4"))
  check(open_rows(tmp_path / "big_endian.npy"), X_NM)
  np.save(tmp_path / "three.npy", np.asfortranarray(X_ATM))
  for x in (tmp_path / "columns.npy", tmp_path / "three.npy", np.load(tmp_path / "three.npy", mmap_mode="r")):
    with pytest.raises(InputError, match="ascontiguousarray"):
      open_rows(x)
  mapped = np.load(saved(tmp_path, "npy", X_ATM), mmap_mode="r")
  check(open_rows(mapped), X_NM)
  check(open_rows(mapped[3:]), X_NM[45:])


def test_a_folder_of_files(tmp_path):
  for name, part in (("b", X_NM[100:101]), ("c", X_ATM[7:])):
    np.save(tmp_path / f"{name}.npy", part)
  save_file({"x": X_NM[:100]}, tmp_path / "a.safetensors")
  (tmp_path / "README.txt").write_text("not rows")
  check(open_rows(tmp_path), np.concatenate([X_NM[:101], X_NM[105:]]))
  np.save(tmp_path / "d.npy", X_NM.astype(np.float16))
  assert open_rows(tmp_path).dtype == np.float32
  np.save(tmp_path / "d.npy", X_NM[:, :5])
  with pytest.raises(InputError, match=r"width of .*d.npy=5: .*a.safetensors has rows of 8"):
    open_rows(tmp_path)


def test_a_store(whole):
  store = open_rows(whole)
  assert isinstance(store, ActivationStore) and isinstance(store, RowStore) and open_rows(store) is store
  np.testing.assert_array_equal(open_rows(str(whole), SITE).rows(0, N), made_rows())
  with pytest.raises(InputError, match="layer.9"):
    open_rows(whole, "layer.9")
  with pytest.raises(InputError, match="s3://BUCKET"):
    open_rows("ftp://bucket/x")
  assert len(store.fingerprint()) == 16 == len(open_rows(X_NM).fingerprint())


def test_sources_say_how_wide_their_sites_are(whole):
  made = Generated(lambda key, n: jnp.ones((n, 3)), lambda x: {"a": x, "b": x[:, :2]}, ("a", "b"), 4)
  planted = Synthetic(Planted.of(PlantedConfig(n_features=8, width=5, mean_active=1.0)), 4)
  for source, widths in ((made, (3, 2)), (planted, (5,)), (ShuffledRows(open_rows(X_NM), 4, 64, 0), (8,))):
    assert isinstance(source, Source) and source.widths == widths
    assert source.batch(0).shape == (4, sum(widths)) and source.sample(6, 0).shape == (6, sum(widths))


def test_fingerprints_are_of_the_rows(tmp_path):
  fingerprint = open_rows(X_NM).fingerprint()
  np.save(tmp_path / "first.npy", X_NM[:7])
  np.save(tmp_path / "rest.npy", X_NM[7:])
  (tmp_path / "other").mkdir()
  for same in (X_ATM, jnp.asarray(X_NM), X_NM.astype(np.float64), saved(tmp_path / "other", "npz", X_ATM), tmp_path):
    assert open_rows(same).fingerprint() == fingerprint
  changed = X_NM.copy()
  changed[123, 4] += 1e-3
  others = [changed, X_NM[:-1], X_NM[::-1], X_NM.reshape(-1, 4), X_NM.astype(np.float16)]
  assert len({fingerprint, *(open_rows(x).fingerprint() for x in others)}) == 6
  large = np.zeros((100_000, 4), np.float32)
  before = open_rows(large).fingerprint()
  large[40_000:41_000] = 1
  assert open_rows(large).fingerprint() != before


@pytest.mark.parametrize("x, message", [
    (np.zeros(5), r"\(5,\): rows are needed"), (np.float32(3), r"\(\): rows are needed"),
    (np.zeros((0, 4)), "no rows"), (np.zeros((4, 0)), "must not be 0"), (np.zeros((2, 2), complex), "complex128"),
    (np.array([["a", "b"]]), "<U1"), (np.array([[None, 1]]), "object"), ([[1.0, 2.0]], "is a list: give an array"),
    (None, "is a NoneType"), (np.ma.masked_array(np.zeros((2, 2)), [[0, 1], [0, 0]]), "masked")])
def test_what_is_not_rows_is_refused(x, message):
  with pytest.raises(InputError, match=message) as error:
    open_rows(x)
  assert "\n" not in str(error.value)


def test_files_that_are_not_rows_are_refused(tmp_path):
  def refused(message, path, key=None):
    with pytest.raises(InputError, match=message) as error:
      open_rows(path, key)
    assert "\n" not in str(error.value)
  refused("there is no such file", tmp_path / "nothing.npy")
  refused("no activation store and no files", tmp_path)
  (tmp_path / "x.pt").write_bytes(b"PK")
  refused("load another kind yourself", tmp_path / "x.pt")
  several, single = saved(tmp_path, "several.npz", X_NM), saved(tmp_path, "npy", X_NM)
  refused("choose one of the arrays in .*: a_longer_name, tokens, x", several)
  refused("key='y': .*a_longer_name, tokens, x", several, "y")
  refused(r"shape of tokens .*\(3,\): rows are needed", several, "tokens")
  refused("holds one array, which has no name", single, "x")
  refused("choose one of the arrays in .*: tokens, x, z", saved(tmp_path, "several.safetensors", X_NM))
  np.savez_compressed(tmp_path / "packed.npz", x=X_NM)
  refused("compressed.*np.savez instead of np.savez_compressed", tmp_path / "packed.npz")
  np.save(tmp_path / "objects.npy", np.array([[None, 1]]), allow_pickle=True)
  refused("object", tmp_path / "objects.npy")
  for name in ("x.npy", "x.safetensors", "x.npz"):
    content = (tmp_path / name).read_bytes()
    for damaged in (content[:-100], b"", b"not an array at all"):
      (tmp_path / name).write_bytes(damaged)
      refused(name, tmp_path / name, None if name == "x.npy" else "x")
  rows = open_rows(saved(tmp_path, "npy", X_NM))
  os.truncate(single, 200)  # while it is in use
  with pytest.raises(InputError, match="cannot read rows 250 to 299 of .*x.npy"):
    rows.rows(250, 300)


@pytest.mark.parametrize("bad", [np.nan, -np.inf, 1e300])
def test_numbers_that_are_not_finite_are_named(tmp_path, bad):
  x_NM = X_NM.astype(np.float64)
  x_NM[217, 3] = bad
  rows = open_rows(x_NM)
  rows.rows(0, 217)
  with pytest.raises(InputError, match="row 217 of x holds a number that is not finite"):
    ShuffledRows(rows, 16, 64, 0).batch(300 // 16)
  np.save(tmp_path / "a.npy", x_NM[:200])
  np.save(tmp_path / "b.npy", x_NM[200:])
  with pytest.raises(InputError, match="row 17 of .*b.npy holds"):
    open_rows(tmp_path).rows(0, 300)


def test_sizes_of_chunks():
  assert [chunk_rows_of(n, 1024) for n in (1, 300, 4095, 4096, 200_000, 10**9)] == [1, 1, 1, 2, 64, 128]
  assert chunk_rows_of(10**9, 10**6) == 1


@pytest.mark.parametrize("n_rows", [1, 3, 300, 5000, 9001])
@pytest.mark.parametrize("buffer_chunks", [8, 2**14])
def test_every_row_once_an_epoch(n_rows, buffer_chunks):
  x_NM = np.arange(n_rows, dtype=np.float32)[:, None] * [[1, 2]]
  rows = open_rows(x_NM)
  source = ShuffledRows(rows, 24, buffer_chunks * rows.chunk_rows, 0)
  batches = [source.batch(step)[:, 0] for step in range(3 * n_rows // 24 + 1)]
  index = [source.indices(step) for step in range(len(batches))]
  np.testing.assert_array_equal(np.concatenate(batches), np.concatenate(index))
  sequence = np.stack(index).reshape(len(index), source.n_lanes, -1).swapaxes(1, 2).reshape(-1)
  for epoch in range(3):
    np.testing.assert_array_equal(np.sort(sequence[epoch * n_rows:(epoch + 1) * n_rows]), np.arange(n_rows))
  if n_rows > 3:
    first, second = sequence[:n_rows], sequence[n_rows:2 * n_rows]
    assert np.mean(first == second) < 0.03 and abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.3


class PeakMemory:
  """How far the memory of this process that no file backs grows in a block, in bytes."""

  def __enter__(self):
    self._before = self._now()
    self.n_bytes, self._stop = 0, threading.Event()
    self._thread = threading.Thread(target=self._watch)
    self._thread.start()
    return self

  def _now(self):
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])

  def _watch(self):
    while not self._stop.wait(0.002):
      self.n_bytes = max(self.n_bytes, self._now() - self._before)

  def __exit__(self, *unused):
    self._stop.set()
    self._thread.join()


def sparse_file(path, n_rows, width):
  """A file of zeros which takes no room on the disk, but for its first and last rows."""
  x = np.ones((2, width), np.float16)
  np.save(path, x) if path.suffix == ".npy" else save_file({"x": x}, path)
  header, content = path.read_bytes(), x.tobytes()
  header = header[:-len(content)]
  if path.suffix == ".npy":
    longer = header.replace(b"(2, ", f"({n_rows}, ".encode())
    header = longer.replace(b" " * (len(longer) - len(header)) + b"\n", b"\n")
  else:
    text = header[8:].rstrip().replace(b"[2,", f"[{n_rows},".encode())
    text = text.replace(f"[0,{len(content)}]".encode(), f"[0,{n_rows * width * 2}]".encode())
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
  with open(path, "wb") as file:
    file.write(header + x[0].tobytes())
    file.truncate(len(header) + (n_rows - 1) * width * 2)
    file.seek(0, 2)
    file.write(x[1].tobytes())
  return path


@pytest.mark.parametrize("name", ["x.npy", "x.safetensors"])
def test_memory_is_bounded(tmp_path, name):
  """8 GB on the disk, and a buffer of 4 MB."""
  n_rows, width = 4_000_000, 1024
  path = sparse_file(tmp_path / name, n_rows, width)
  with PeakMemory() as peak:
    rows = open_rows(path)
    rows.fingerprint()
    source = ShuffledRows(rows, 256, 2048, 0)
    for step in (*range(24), 9999, n_rows // 256 - 1):
      source.batch(step)
    source.sample(500, 0)
    assert rows.rows(0, 1).all() and rows.rows(n_rows - 1, n_rows).all() and not rows.rows(1, 2).any()
  assert isinstance(rows, ArrayRows) and (rows.n_rows, rows.chunk_rows) == (n_rows, 64)
  assert peak.n_bytes < 2**26
