"""Small stores for tests: rows that name themselves, written and damaged."""

import hashlib
import pathlib
import signal
import subprocess
import time

import ml_dtypes
import numpy as np

from monojax.activations.layout import Layout
from monojax.activations.owner import owned
from monojax.activations.writer import ShardWriter

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
SITE = "layer.0.mlp.hidden"
IDENTITY = {"site": "layer.0.mlp.hidden", "subject": "0123456789abcdef", "widths": (1, 2)}
N, M, SHARD, CHUNK = 2_500, 8, 512, 128  # five shards of four chunks, the last short in both


def made_rows(n_rows=N, width=M, dtype="float16"):
  """Row i begins with i in base 1000, so that a row out of place shows; shard 1 holds only zeros."""
  x_NM = np.random.default_rng(0).standard_normal((n_rows, width))
  x_NM[:, 0], x_NM[:, 1] = np.arange(n_rows) % 1000, np.arange(n_rows) // 1000
  x_NM[SHARD:2 * SHARD] = 0
  return x_NM.astype(DTYPES[dtype])


def places_of(n_rows):
  """Four different columns of numbers that name the row."""
  return (np.arange(n_rows)[:, None] * [3, 1, 5, 2] + [1, 0, 7, -1]).astype(np.int32)


def write_store(directory, x_NM, dtype="float16", shard_rows=SHARD, chunk_rows=CHUNK, identity=IDENTITY,
                shards=None, compression="none", more=None):
  """Writes the store, or goes on with it; with `shards`, only so many, and does not finish."""
  rows = {SITE: x_NM, **(more or {})}
  layout = Layout(len(x_NM), {site: x.shape[1] for site, x in rows.items()}, dtype, compression, shard_rows, chunk_rows)
  with owned(directory):
    writer = ShardWriter(directory, layout, identity)
    for index in writer.todo if shards is None else writer.todo[:shards]:
      span = slice(index * shard_rows, (index + 1) * shard_rows)
      writer.write_shard(index, {site: x[span].copy() for site, x in rows.items()}, places_of(len(x_NM))[span])
    return writer.finish({"tokens": 7}) if shards is None else writer


def tree(directory):
  """{relative path: hash of the bytes} of everything below a directory."""
  return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
          for path in sorted(pathlib.Path(directory).rglob("*")) if path.is_file()}


def flip(path):
  """Flips one bit in the middle of the file's first quarter."""
  content = bytearray(path.read_bytes())
  content[len(content) // 8] ^= 1
  path.write_bytes(content)


def kill_while_writing(command, store):
  """Starts a program that fills the folder `store` three times, and kills it soon after it has finished a shard."""
  n_killed = 0
  for delay in (0.0, 0.02, 0.05):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    done = lambda: sorted((store / "sums").glob("*.npz"))
    before = done()
    while done() == before and process.poll() is None:
      time.sleep(0.001)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    n_killed += process.wait() == -signal.SIGKILL
  assert n_killed >= 1
