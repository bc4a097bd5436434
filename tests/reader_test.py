"""Shuffled batches of a store: each row once an epoch, in an order that is a function of the step."""

import math
import shutil
import tracemalloc

import numpy as np
import pytest
from made_store import CHUNK, SITE, flip, made_rows, write_store

from monojax import files
from monojax.activations.folder import Folder
from monojax.activations.layout import Layout
from monojax.activations.reader import ShuffledRows
from monojax.activations.store import ActivationStore
from monojax.config import InputError
from monojax.shuffle import permute


def shuffled(directory, n_rows, shard_rows, chunk_rows, batch_rows, buffer_rows, seed=0):
  """A store of `n_rows` rows and its shuffled source."""
  x_NM = made_rows(n_rows, 2, "float32")
  x_NM[:, 0] = np.arange(n_rows)
  write_store(directory, x_NM, "float32", shard_rows, chunk_rows)
  store = ActivationStore.open(directory)
  return x_NM, store, ShuffledRows(store, batch_rows, buffer_rows, seed)


def reference_order(n_rows, chunk_rows, buffer_rows, batch_rows, seed, n_epochs):
  """The sequence of some epochs, as docs/reference/store-format.md defines it, row by row."""
  n_full, window_chunks = n_rows // chunk_rows, buffer_rows // chunk_rows
  n_lanes = math.gcd(window_chunks, batch_rows)
  sequence = []
  for epoch in range(n_epochs):
    order = permute(np.arange(n_full), n_full, seed, epoch).tolist() if n_full else []
    order += [n_full] if n_rows % chunk_rows else []
    for window, start in enumerate(range(0, len(order), window_chunks)):
      rows_of = lambda chunks: [r for c in chunks for r in range(c * chunk_rows, min((c + 1) * chunk_rows, n_rows))]
      rows = rows_of(order[start:start + window_chunks])
      if start + window_chunks > n_full:
        sequence += [rows[i] for i in permute(np.arange(len(rows)), len(rows), seed, epoch, window)]
        continue
      deal = len(rows) // n_lanes
      lanes = [iter([rows[lane * deal + i] for i in permute(np.arange(deal), deal, seed, epoch, window, lane)])
               for lane in range(n_lanes)]
      for _ in rows:
        sequence.append(next(lanes[len(sequence) % n_lanes]))
  return np.array(sequence)


SIZES = [  # rows, shard, chunk, batch, buffer
  (1000, 128, 64, 48, 192), (997, 128, 32, 101, 96), (1024, 256, 64, 64, 256), (130, 128, 64, 7, 64),
  (50, 128, 64, 16, 128), (300, 128, 64, 1000, 64), (300, 128, 64, 41, 4096), (1, 1, 1, 3, 1),
  (65, 64, 1, 10, 5), (1001, 128, 8, 12, 48), (203, 32, 8, 60, 32), (37, 8, 4, 24, 16)]


def test_the_window_is_a_multiple_of_the_chunk(tmp_path):
  with pytest.raises(InputError, match="sae.buffer_rows.*5000.*chunk_rows=16"):
    shuffled(tmp_path, 64, 32, 16, 8, 5000)


@pytest.mark.parametrize("n_rows, shard_rows, chunk_rows, batch_rows, buffer_rows", SIZES)
def test_every_row_once_an_epoch(tmp_path, n_rows, shard_rows, chunk_rows, batch_rows, buffer_rows):
  x_NM, store, source = shuffled(tmp_path, n_rows, shard_rows, chunk_rows, batch_rows, buffer_rows)
  n_steps = 3 * n_rows // batch_rows + 2
  batches = [source.batch(step) for step in range(n_steps)]
  index = np.concatenate([source.indices(step) for step in range(n_steps)])
  np.testing.assert_array_equal(np.concatenate(batches), x_NM[index])
  # A batch holds its lanes one after the other, the sequence takes them in turn.
  sequence = index.reshape(n_steps, source.n_lanes, -1).swapaxes(1, 2).reshape(-1)
  for epoch in range(3):
    np.testing.assert_array_equal(np.sort(sequence[epoch * n_rows:(epoch + 1) * n_rows]), np.arange(n_rows))
  expected = reference_order(n_rows, chunk_rows, buffer_rows, batch_rows, 0, 3)
  np.testing.assert_array_equal(sequence[:3 * n_rows], expected)
  again = ShuffledRows(store, batch_rows, buffer_rows, 0)
  for step in np.random.default_rng(0).permutation(n_steps)[:20]:
    np.testing.assert_array_equal(again.batch(int(step)), batches[step])


@pytest.mark.parametrize("n_rows, shard_rows, chunk_rows, batch_rows, buffer_rows", SIZES)
def test_parts_of_a_batch_are_read_alone(tmp_path, n_rows, shard_rows, chunk_rows, batch_rows, buffer_rows):
  """Processes that each fill a part of the batch make the same batch together, and read less."""
  _, store, source = shuffled(tmp_path, n_rows, shard_rows, chunk_rows, batch_rows, buffer_rows)
  n_parts = max(n for n in (1, 2, 3) if batch_rows % n == 0)
  size = batch_rows // n_parts
  parts = [ShuffledRows(store, batch_rows, buffer_rows, 0, (i * size, (i + 1) * size)) for i in range(n_parts)]
  for step in range(3 * n_rows // batch_rows + 2):
    whole = source.batch(step)
    for i, part in enumerate(parts):
      mine = slice(i * size, (i + 1) * size)
      found = part.batch(step)
      np.testing.assert_array_equal(found[mine], whole[mine])
      assert not np.delete(found, np.arange(batch_rows)[mine], axis=0).any()
      np.testing.assert_array_equal(part.indices(step)[mine], source.indices(step)[mine])
  if source.n_lanes % n_parts == 0 and n_rows >= buffer_rows:
    assert len(parts[0]._chunks(0, 0)) * n_parts == buffer_rows // chunk_rows


def test_epochs_and_seeds_differ(tmp_path):
  _, store, source = shuffled(tmp_path, 1024, 256, 64, 1024, 256)
  other = ShuffledRows(store, 1024, 256, 1)
  orders = [source.indices(0), source.indices(1), other.indices(0), other.indices(1)]
  for i, a in enumerate(orders):
    for b in orders[:i]:
      assert np.mean(a == b) < 0.02


def test_the_order_never_changes(tmp_path):
  """The worked example of docs/reference/store-format.md."""
  source = shuffled(tmp_path, 10, 4, 2, 4, 4)[2]
  batches = [source.indices(step).tolist() for step in range(4)]
  assert batches == [[1, 0, 6, 7], [2, 3, 4, 5], [9, 5, 8, 0], [4, 2, 1, 6]]


def test_rows_are_well_mixed(tmp_path):
  n_rows, chunk, batch, window_chunks = 16_384, 64, 128, 64
  _, store, source = shuffled(tmp_path, n_rows, 1024, chunk, batch, chunk * window_chunks)
  index = np.stack([source.indices(step) for step in range(n_rows // batch)])
  assert all(np.bincount(row // chunk).max() == batch // window_chunks for row in index)  # as many of each chunk
  one_lane = ShuffledRows(store, batch - 1, chunk * window_chunks, 0)
  distinct = [len(set(one_lane.indices(step) // chunk)) for step in range(n_rows // batch)]
  expected = window_chunks * (1 - (1 - 1 / window_chunks) ** (batch - 1))
  assert abs(np.mean(distinct) - expected) < 1
  place, index = np.arange(batch - 1), np.stack([one_lane.indices(step) for step in range(n_rows // batch)])
  correlations = [np.corrcoef(place, row)[0, 1] for row in index]
  assert abs(np.mean(correlations)) < 4 / np.sqrt(n_rows)
  assert abs(np.std(correlations) * np.sqrt(batch) - 1) < 0.25
  everything = ShuffledRows(store, n_rows - 1, n_rows, 0).indices(0)
  assert abs(np.corrcoef(everything[1:], everything[:-1])[0, 1]) < 4 / np.sqrt(n_rows)


def test_eight_billion_rows_cost_no_more_than_few(whole, tmp_path):
  """A store of which there is only what says how large it is: opened, and its order looked at anywhere."""
  huge = shutil.copytree(whole, tmp_path / "huge")
  n_rows = 8_192_000_123
  meta = {**files.read_record(huge / "meta.json", without=2), "n_rows": n_rows, "shard_rows": 2**20, "chunk_rows": 4096}
  shutil.rmtree(huge)
  Layout.of(meta).open_arrays(Folder(huge), create=True)
  files.write_record(huge / "meta.json", meta)
  with pytest.raises(InputError, match="shard 0 .*missing"):
    ActivationStore.open(huge)

  def visit():
    source = ShuffledRows(ActivationStore.open(huge), 4096, 2**14, 0)
    return np.stack([source.indices(step) for step in (0, 1_234_567, 2_000_000, 3_999_999)])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Layout, "fault", lambda *_: None)
    visit()
    tracemalloc.start()
    found = visit()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
  assert found.min() >= 0 and found.max() < n_rows and abs(found.mean() / n_rows - 0.5) < 0.1
  assert all(len(np.unique(row)) == 4096 for row in found)
  assert peak < 2**21


def test_reads_are_bounded(tmp_path, monkeypatch):
  _, store, source = shuffled(tmp_path, 4000, 512, 64, 100, 512)
  read = []
  read_chunks = store.read_chunks
  monkeypatch.setattr(store, "read_chunks", lambda chunks, out: read.append(list(chunks)) or
                      read_chunks(chunks, out))
  source.batch(0)
  assert len(read) <= 2 and sum(map(len, read)) * 64 <= 2 * 512
  for step in range(1, 40):
    source.batch(step)
  source._reader.shutdown()
  assert sorted(sum(read[:8], [])) == list(range(63)) and len(read) == 9  # and one window ahead


def test_an_error_while_reading_ahead_reaches_the_caller(tmp_path):
  x_NM, store, source = shuffled(tmp_path / "s", 1024, 64, 64, 64, 64)
  path = tmp_path / "s" / f"sites/{SITE}/c/{source.indices(3)[0] // 64}/0"
  content = path.read_bytes()
  flip(path)
  for step in range(3):
    source.batch(step)
  for _ in range(2):
    with pytest.raises(InputError, match=f"shard .* damaged.*{path}"):
      source.batch(3)
  path.write_bytes(content)
  np.testing.assert_array_equal(source.batch(3), x_NM[source.indices(3)])


def test_sample(tmp_path):
  x_NM, _, source = shuffled(tmp_path, 1000, 128, 64, 64, 256)
  drawn = source.sample(200, 5)[:, 0].astype(int)
  assert len(set(drawn)) == 200 and 4 <= len(set(drawn // 64)) <= 5
  np.testing.assert_array_equal(source.sample(200, 5)[:, 0], drawn)
  assert set(source.sample(200, 6)[:, 0]) != set(drawn)
  np.testing.assert_array_equal(np.sort(source.sample(1000, 0)[:, 0]), x_NM[:, 0])
  np.testing.assert_array_equal(np.sort(source.sample(1001, 0)[:, 0]), x_NM[:, 0])
  with pytest.raises(InputError, match="n_rows=0"):
    source.sample(0, 0)


def test_settings_of_the_source_are_checked(whole):
  store = ActivationStore.open(whole)
  for settings in ((0, CHUNK, 0), (4, CHUNK + 1, 0), (4, 0, 0), (4, CHUNK, -1)):
    with pytest.raises(InputError):
      ShuffledRows(store, *settings)
