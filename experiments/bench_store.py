"""Times the activation store, its shuffled reader and the stream against the disk and against the step they feed.

All in one run, on one disk: ratios compare where absolute rates of a noisy disk do not. Reads are cold: files are
dropped from the page cache first, where the system allows it. The step is a dictionary's training step on rows
that are already on the device; a source that keeps it fed has a ratio of 1.

  python experiments/bench_store.py --quick --out=/tmp/bench_store.json
  python experiments/bench_store.py --directory=/data/tmp --n_rows=4194304
"""

import os
import pathlib
import resource
import shutil
import tempfile
import time

import numpy as np
from absl import flags

from monojax import benchmark, cli

_DIRECTORY = flags.DEFINE_string("directory", "", "where to write; a temporary folder below the current one by default")
_ROWS = flags.DEFINE_integer("n_rows", 2**22, "rows of the store")
_WIDTH = flags.DEFINE_integer("width", 512, "numbers in a row, float16; also of the subject's MLP")
_SHARD = flags.DEFINE_integer("shard_rows", 2**18, "rows in one file")
_CHUNK = flags.DEFINE_integer("chunk_rows", 2**12, "rows read at once")
_BUFFER = flags.DEFINE_integer("buffer_rows", 262_144, "rows shuffled together")
_BATCH = flags.DEFINE_integer("batch_rows", 4_096, "rows of a batch")
_DOCUMENT = flags.DEFINE_integer("document_rows", 250, "rows that come from one document")
_FEATURES = flags.DEFINE_integer("n_features", 4_096, "features of the dictionary whose step is fed")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "timed rounds")
_QUICK = flags.DEFINE_boolean("quick", False, "a quarter of the rows, two rounds, and smaller windows for the "
                              "step: two or three minutes")
_FEEDS = flags.DEFINE_boolean("feeds", True, "time a dictionary's step that is fed by the store and by a stream, too")
_PEERS = flags.DEFINE_boolean("peers", False, "serve the same rows as SAELens and dictionary_learning do, too; needs "
                              "pip install 'monojax[peers]' datasets")
_OUT = flags.DEFINE_string("out", "", "also write the figures to this JSON file")

BLOCK_BYTES = 2**23
CONTEXT = 128  # tokens in one of the stream's contexts


def drop_from_cache(directory):
  """Makes the next reads of the files below a directory come from the disk."""
  for path in pathlib.Path(directory).rglob("*"):
    if path.is_file():
      descriptor = os.open(path, os.O_RDONLY)
      try:
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):
          os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
      finally:
        os.close(descriptor)


class Disk:
  """The same rows as a plain file and as stores."""

  def __init__(self, directory, n_rows):
    rng = np.random.default_rng(0)
    block_RM = np.maximum(rng.standard_normal((_SHARD.value, _WIDTH.value), np.float32), 0)
    self.wide_RM, self.block_RM = block_RM, block_RM.astype(np.float16)
    self.n_rows, self.directory = n_rows, directory
    self.raw = directory / "raw" / "rows.bin"

  def write_raw(self):
    self.raw.parent.mkdir()
    with open(self.raw, "wb", buffering=0) as file:
      for _ in range(self.n_rows // _SHARD.value):
        view = memoryview(self.block_RM).cast("B")
        for at in range(0, len(view), BLOCK_BYTES):
          file.write(view[at:at + BLOCK_BYTES])
      os.fsync(file.fileno())

  def write(self, dtype="float16"):
    from monojax.activations.layout import Layout
    from monojax.activations.writer import ShardWriter
    layout = Layout(self.n_rows, {"site": _WIDTH.value}, dtype, "none", _SHARD.value, _CHUNK.value)
    writer = ShardWriter(self.directory / dtype, layout, {})
    rows_RM = self.block_RM if dtype == "float16" else self.wide_RM
    for index in writer.todo:
      # A harvest writes a shard's rows, and so its documents, in random order.
      row_R = index * _SHARD.value + np.random.default_rng([0, index]).permutation(_SHARD.value)
      places_RP = np.zeros((_SHARD.value, 4), np.int32)
      places_RP[:, 1], places_RP[:, 2] = np.divmod(row_R, _DOCUMENT.value)
      writer.write_shard(index, {"site": rows_RM}, places_RP)
    writer.finish({})

  def read_raw(self):
    buffer = bytearray(BLOCK_BYTES)
    with open(self.raw, "rb", buffering=0) as file:
      while file.readinto(buffer):
        pass

  def open(self, dtype):
    from monojax.activations.store import ActivationStore
    return ActivationStore.open(self.directory / dtype)

  def read(self, dtype="float16"):
    store, together = self.open(dtype), _BUFFER.value // _CHUNK.value
    out = np.empty((_BUFFER.value, _WIDTH.value), store.dtype)
    for first in range(0, store.n_chunks, together):
      store.read_chunks(range(first, min(first + together, store.n_chunks)), out)

  def reader(self, dtype="float16", buffer_rows=None):
    from monojax.activations.reader import ShuffledRows
    return ShuffledRows(self.open(dtype), _BATCH.value, buffer_rows or _BUFFER.value, 0)

  def begin_shuffled(self, dtype="float16"):
    """A reader in mid-course: the second window is being read while the first is at its end."""
    self._reader = self.reader(dtype)
    self._reader.batch(_BUFFER.value // _BATCH.value - 1)
    drop_from_cache(self.directory / dtype)

  def read_shuffled(self):
    """As many rows as there are, from the second window on."""
    for step in range(self.n_rows // _BATCH.value):
      self._reader.batch(_BUFFER.value // _BATCH.value + step)

  def raw_rows(self):
    return np.memmap(self.raw, np.float16, "r").reshape(-1, _WIDTH.value)

  def served(self):
    """{name: rows a second} of other ways of serving random batches of the same rows, cold."""
    found = {}

    def take(name, batches, n_batches, folder):
      drop_from_cache(folder)
      n_rows, start = 0, time.perf_counter()
      for _, x_BM in zip(range(n_batches), batches, strict=False):
        n_rows += len(x_BM)
      found[f"{name}/rows_per_s"] = n_rows / (time.perf_counter() - start)
    rng, rows_NM = np.random.default_rng(1), self.raw_rows()
    random_rows = (np.take(rows_NM, rng.integers(0, self.n_rows, _BATCH.value), axis=0) for _ in iter(int, 1))
    take("memmap_random_rows", random_rows, 4, self.raw.parent)
    if not _PEERS.value:
      return found
    import store_peers
    n_batches = self.n_rows // _BATCH.value // 2
    take("dictionary_learning", store_peers.dictionary_learning(rows_NM, _BATCH.value, _BUFFER.value, CONTEXT),
         n_batches, self.raw.parent)
    folder = self.directory / "sae_lens"
    store_peers.save_for_sae_lens(rows_NM[:self.n_rows // 2], CONTEXT, folder)
    take("sae_lens", store_peers.sae_lens(folder, _BATCH.value, _BUFFER.value, CONTEXT), n_batches, folder)
    return found

  def shuffle_quality(self, n_batches=20):
    """How the order compares with a random permutation of all rows."""
    store, reader, rng = self.open("float16"), self.reader(), np.random.default_rng(2)
    document_N = store.places(0, self.n_rows)[:, 1]
    steps = rng.integers(0, self.n_rows // _BATCH.value, n_batches)
    ours = [reader.indices(int(step)) for step in steps]
    ideal = [rng.choice(self.n_rows, _BATCH.value, replace=False) for _ in steps]
    distinct = lambda rows: np.mean([len(np.unique(document_N[row_B])) for row_B in rows])
    pairs = lambda count_D: (count_D * (count_D - 1)).sum() / (_BATCH.value * (_BATCH.value - 1))
    same = lambda rows: np.mean([pairs(np.bincount(document_N[row_B])) for row_B in rows])
    distance = [np.abs(row_B - (step * _BATCH.value + np.arange(_BATCH.value))).mean()
                for row_B, step in zip(ours, steps, strict=True)]
    return {"shuffle/distinct_documents_ratio": distinct(ours) / distinct(ideal),
            "shuffle/same_document_pairs": same(ours), "shuffle/same_document_pairs_ideal": same(ideal),
            "shuffle/write_read_distance": np.mean(distance) / self.n_rows,
            "shuffle/write_read_distance_ideal": 1 / 3,
            "shuffle/buffer_gb": 2 * _BUFFER.value * _WIDTH.value * store.dtype.itemsize / 1e9}


def feeds(disk, buffer_rows, scan=8):
  """{name: function that trains on a window of `buffer_rows`, `scan` steps in a call, fed by a source}."""
  import jax
  import jax.numpy as jnp

  from monojax import mesh as meshes
  from monojax.activations.config import HarvestConfig
  from monojax.activations.origin import Order
  from monojax.activations.stream import Stream
  from monojax.sae import recipes
  from monojax.sae.config import SAEConfig
  from monojax.sae.model import Wiring
  from monojax.sae.step import make_step
  from monojax.sae.train import make_batches, use_sparse
  from monojax.subjects.config import TransformerConfig
  from monojax.subjects.subject import LoadedSubject
  from monojax.subjects.transformer import Transformer
  from monojax.text.tokens import Tokens
  from monojax.training import compute_dtype
  mesh = meshes.make_mesh(meshes.MeshConfig(data=1))
  config = SAEConfig(n_features=_FEATURES.value, batch_rows=_BATCH.value, warmup_steps=10**9).resolved()
  recipe = recipes.make_recipe(config, Wiring((_WIDTH.value,)), compute_dtype("auto"))
  init, step = make_step(recipe, mesh, config.window_steps, use_sparse(config, recipe, mesh, "step"))
  model = Transformer(TransformerConfig(n_layers=1, d_model=_WIDTH.value // 4, n_heads=4, d_mlp=_WIDTH.value,
                                        vocab_size=8192), compute_dtype("auto"))
  params = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
  ids_N = np.random.default_rng(0).integers(0, 8192, disk.n_rows).astype(np.uint16)
  tokens = Tokens("train", ids_N, np.arange(0, len(ids_N), 250), np.zeros(1, np.int32), ("a",), 8192, 0, len(ids_N))
  stream = Stream(HarvestConfig(batch_contexts=64), LoadedSubject(model, params, CONTEXT), tokens,
                  Order(_BATCH.value, buffer_rows, 0), mesh)

  def trained(batches):
    held = [init(jax.random.key(0), np.asarray(stream.sample(4096, 0), np.float32)), 0]

    def run(n=buffer_rows // _BATCH.value):
      for _ in range(n // scan):
        held[0], values = step(held[0], batches(held[1], held[1] + scan))
        held[1] += scan
      jax.block_until_ready(values)
    run(scan)  # compiled
    return run
  resident, reader = make_batches(stream, mesh)(0, scan), disk.reader(buffer_rows=buffer_rows)
  return {"step": trained(lambda first, last: resident), "store_step": trained(make_batches(reader, mesh)),
          "stream_step": trained(make_batches(stream, mesh))}


def main():
  n_rows = _ROWS.value // (4 if _QUICK.value else 1) // _SHARD.value * _SHARD.value
  n_rounds = 2 if _QUICK.value else _ROUNDS.value
  figures = {"shape/n_rows": n_rows, "shape/width": _WIDTH.value, "shape/buffer_rows": _BUFFER.value}
  with tempfile.TemporaryDirectory(dir=_DIRECTORY.value or ".") as directory:
    disk = Disk(pathlib.Path(directory), n_rows)
    functions = {"raw_write": disk.write_raw, "write": disk.write, "int8_write": lambda: disk.write("int8"),
                 "raw_read": disk.read_raw, "sequential_read": disk.read, "shuffled_read": disk.read_shuffled,
                 "int8_sequential_read": lambda: disk.read("int8"), "int8_shuffled_read": disk.read_shuffled}
    # Files are written anew; a finished store would otherwise be kept.
    remove = lambda path: lambda: (shutil.rmtree(path, ignore_errors=True), os.sync())
    before = {"raw_write": remove(disk.raw.parent), "write": remove(disk.directory / "float16"),
              "int8_write": remove(disk.directory / "int8"), "raw_read": lambda: drop_from_cache(disk.raw.parent),
              "sequential_read": lambda: drop_from_cache(disk.directory / "float16"),
              "shuffled_read": disk.begin_shuffled,
              "int8_sequential_read": lambda: drop_from_cache(disk.directory / "int8"),
              "int8_shuffled_read": lambda: disk.begin_shuffled("int8")}
    seconds = benchmark.interleaved(functions, n_rounds, warmup=0, before=before)
    for name in functions:
      n_bytes = n_rows * _WIDTH.value * (1 if "int8" in name else 2)
      figures[f"{name}/rows_per_s"] = n_rows / min(seconds[name])
      figures[f"{name}/gb_per_s"] = n_bytes / min(seconds[name]) / 1e9
    for name in functions:  # of a row's time: 8-bit rows have half the bytes
      if not name.startswith("raw"):
        raw = seconds["raw_write" if "write" in name else "raw_read"]
        figures[f"{name}/ratio_to_raw"] = benchmark.median_ratio(raw, seconds[name])
    figures |= disk.served()
    for name in ("memmap_random_rows", "dictionary_learning", "sae_lens"):
      if f"{name}/rows_per_s" in figures:
        figures[f"shuffled_read/ratio_to_{name}"] = (figures["shuffled_read/rows_per_s"]
                                                     / figures[f"{name}/rows_per_s"])
    figures |= disk.shuffle_quality()
    if _FEEDS.value:
      buffer_rows = _BUFFER.value // (4 if _QUICK.value else 1)
      seconds = benchmark.interleaved(feeds(disk, buffer_rows), min(n_rounds, 2), warmup=0)
      for name in seconds:
        figures[f"{name}/rows_per_s"] = buffer_rows / min(seconds[name])
      for name in ("store_step", "stream_step"):
        figures[f"{name}/ratio_to_step"] = benchmark.median_ratio(seconds["step"], seconds[name])
  figures["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
  benchmark.report(figures, _OUT.value)


if __name__ == "__main__":
  cli.run(main)
