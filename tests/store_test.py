"""The activation store: what is read is what was written, whatever happens in between."""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import zarr
from made_store import (
  CHUNK,
  DTYPES,
  IDENTITY,
  SHARD,
  SITE,
  M,
  N,
  flip,
  kill_while_writing,
  made_rows,
  places_of,
  tree,
  write_store,
)

from monojax import files
from monojax.activations.config import HarvestConfig
from monojax.activations.folder import Folder
from monojax.activations.layout import Layout, to_int8
from monojax.activations.reader import ShuffledRows
from monojax.activations.store import SAMPLE_ROWS, ActivationStore, faults, forget
from monojax.activations.writer import ShardWriter
from monojax.config import InputError


@pytest.fixture
def copy(whole, tmp_path):
  """A finished float16 store to damage."""
  return pathlib.Path(shutil.copytree(whole, tmp_path / "activations"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_what_was_written(tmp_path, dtype):
  x_NM = made_rows(dtype=dtype)
  meta = write_store(tmp_path / "s", x_NM, dtype)
  store = ActivationStore.open(tmp_path / "s", IDENTITY)
  assert store.meta == meta == files.read_record(tmp_path / "s" / "meta.json", without=2)
  assert meta["complete"] and meta["tokens"] == 7
  assert (store.n_rows, store.width, store.dtype) == (N, M, x_NM.dtype)
  for start, stop in ((0, N), (0, 0), (N, N), (127, 129), (500, 1300), (N - 1, N)):
    read = store.rows(start, stop)
    assert read.dtype == x_NM.dtype and read.tobytes() == x_NM[start:stop].tobytes()
    np.testing.assert_array_equal(store.places(start, stop), places_of(N)[start:stop])
  with pytest.raises(IndexError):
    store.rows(0, N + 1)
  wide = x_NM.astype(np.float64)
  statistics = store.statistics()  # 256 rows at a time are summed in float32
  np.testing.assert_allclose(statistics[f"{SITE}/mean_M"], wide.mean(axis=0), rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(meta["scale"][SITE]["mean_norm"], np.linalg.norm(wide, axis=1).mean(), rtol=1e-6)
  np.testing.assert_allclose(meta["scale"][SITE]["mean_square"], (wide ** 2).mean(), rtol=1e-6)
  sample_RM = statistics[f"{SITE}/sample_RM"]
  assert SAMPLE_ROWS <= len(sample_RM) <= SAMPLE_ROWS + 5
  assert {*map(bytes, sample_RM)} <= {*map(bytes, x_NM.astype(np.float32))}


def test_8_bits(tmp_path):
  """Half a step of the scales at most, in spite of a very long row and a very large column; exact where it is 0."""
  x_NM = np.random.default_rng(0).standard_normal((N, M)).astype(np.float32)
  x_NM[:, 3] *= 100
  x_NM[700, 5], x_NM[900] = 5000, 0
  write_store(tmp_path, x_NM, "int8")
  read_NM = ActivationStore.open(tmp_path).rows(0, N)
  group = zarr.open_group(str(tmp_path), mode="r")
  step_NM = group[f"row_scales/{SITE}"][:][:, None] * np.repeat(group[f"column_scales/{SITE}"][:], CHUNK, axis=0)[:N]
  np.testing.assert_allclose(read_NM, group[f"sites/{SITE}"][:] * step_NM, rtol=1e-6)
  assert np.all(np.abs(read_NM - x_NM) <= step_NM * 0.501) and not read_NM[900].any()
  scale = ActivationStore.open(tmp_path).meta["scale"][SITE]
  error = np.sqrt(((read_NM - x_NM) ** 2).sum() / (read_NM ** 2).sum())
  assert scale["rounding_error"] == pytest.approx(error, rel=1e-3)
  others = [i for i in range(N) if i != 700]
  error_M = np.sqrt(np.mean((read_NM - x_NM)[others] ** 2, axis=0) / np.mean(x_NM[others] ** 2, axis=0))
  assert error_M.max() < 0.02
  q_RM, row_R, column_M = to_int8(np.zeros((5, 2), np.float32))
  assert not q_RM.any() and np.all(row_R == 1) and np.all(column_M == 1)
  assert not any(fault for _, fault in faults(tmp_path))


@pytest.mark.parametrize("n_rows", [1, 4, 40, 400])
@pytest.mark.parametrize("silent", [0, -1e-7])
@pytest.mark.parametrize("size", [1, 1e-25, 1e25])
def test_8_bits_of_rows_in_which_a_rare_neuron_fires(n_rows, silent, size):
  """A neuron that is silent, or nearly, in all other rows takes no resolution from the rows in which it fires."""
  x_RM = np.maximum(np.random.default_rng(0).standard_normal((4096, 64)), 0).astype(np.float32)
  x_RM[:, 5], x_RM[9:9 + n_rows, 5] = silent, 1
  x_RM *= np.float32(size)
  q_RM, row_R, column_M = to_int8(x_RM)
  error_RM = (q_RM * row_R[:, None] * column_M - x_RM) / np.float32(size)
  length_R = np.linalg.norm(x_RM / np.float32(size), axis=1)
  assert (np.linalg.norm(error_RM, axis=1) < 0.02 * length_R).all()


def test_8_bits_of_a_neuron_that_is_large_on_a_few_rows():
  """It keeps its content on the others; the few rows lose of theirs what is small beside their length."""
  x_RM = np.random.default_rng(0).standard_normal((512, 2048)).astype(np.float32)
  x_RM[::128, 7] = 2000
  q_RM, row_R, column_M = to_int8(x_RM)
  error_RM = q_RM * row_R[:, None] * column_M - x_RM
  rare_R = np.arange(512) % 128 == 0
  assert np.linalg.norm(error_RM[~rare_R, 7]) < 0.1 * np.linalg.norm(x_RM[~rare_R, 7])
  assert np.linalg.norm(error_RM[~rare_R]) < 0.02 * np.linalg.norm(x_RM[~rare_R])
  assert (np.linalg.norm(error_RM[rare_R], axis=1) < 0.02 * np.linalg.norm(x_RM[rare_R], axis=1)).all()


@pytest.mark.parametrize("least", [1e-40, 1e-37, 0])
def test_8_bits_of_numbers_whose_inverse_is_infinite(least):
  x_RM = np.maximum(np.random.default_rng(0).standard_normal((512, 64)), 0).astype(np.float32)
  x_RM[:, 5], x_RM[3, 5], x_RM[9] = 0, least, least
  q_RM, row_R, column_M = to_int8(x_RM)
  error_RM = q_RM * row_R[:, None] * column_M - x_RM
  assert np.linalg.norm(error_RM) < 0.01 * np.linalg.norm(x_RM)


def test_numbers_that_float16_rounds_to_nothing_are_refused(tmp_path):
  x_NM = np.random.default_rng(0).standard_normal((N, M))
  write_store(tmp_path / "fits", (1e-4 * x_NM).astype(np.float16), "float16")
  with pytest.raises(InputError, match="too small for float16"):
    write_store(tmp_path / "small", (1e-7 * x_NM).astype(np.float16), "float16")
  write_store(tmp_path / "zeros", np.zeros((N, M), np.float16), "float16")


@pytest.mark.parametrize("dtype, smaller", [("float16", 0.7), ("int8", 0.8)])
def test_compressed(tmp_path, dtype, smaller):
  x_NM = made_rows(dtype="float32" if dtype == "int8" else dtype)
  x_NM[:, 4:] = 0
  for compression in ("none", "zstd"):
    write_store(tmp_path / compression, x_NM, dtype, compression=compression)
  plain, packed = (ActivationStore.open(tmp_path / compression) for compression in ("none", "zstd"))
  assert packed.rows(0, N).tobytes() == plain.rows(0, N).tobytes()
  sizes = [sum(path.stat().st_size for path in (tmp_path / compression / "sites").rglob("*"))
           for compression in ("none", "zstd")]
  assert sizes[1] < smaller * sizes[0]
  group = zarr.open_group(str(tmp_path / "zstd"), mode="r")
  np.testing.assert_array_equal(group["places"][:], places_of(N))
  os.truncate(next((tmp_path / "zstd" / "sites").rglob("2/0")), 100)
  with pytest.raises(InputError, match="shard 2 of"):
    packed.rows(0, N)
  assert [index for index, fault in faults(tmp_path / "zstd") if fault] == [2]


def test_several_sites_side_by_side(tmp_path):
  x_NM, y_NO = made_rows(), np.random.default_rng(1).standard_normal((N, 3)).astype(np.float16)
  meta = write_store(tmp_path, x_NM, more={"layer.0.resid": y_NO})
  assert meta["sites"] == {SITE: M, "layer.0.resid": 3} and meta["scale"].keys() == meta["sites"].keys()
  both, first, other = (ActivationStore.open(tmp_path, sites=sites)
                        for sites in ((SITE, "layer.0.resid"), None, ("layer.0.resid",)))
  np.testing.assert_array_equal(both.rows(5, 700), np.concatenate([x_NM, y_NO], axis=1)[5:700])
  np.testing.assert_array_equal(first.rows(5, 700), x_NM[5:700])
  np.testing.assert_array_equal(other.rows(5, 700), y_NO[5:700])
  source = ShuffledRows(both, 64, 2 * CHUNK, 0)
  np.testing.assert_array_equal(source.batch(3), np.concatenate([x_NM, y_NO], axis=1)[source.indices(3)])
  with pytest.raises(InputError, match="layer.9.*layer.0.mlp.hidden, layer.0.resid"):
    ActivationStore.open(tmp_path, sites=("layer.9",))
  flip(tmp_path / "sites/layer.0.resid/c/1/0")
  assert [index for index, fault in faults(tmp_path) if fault] == [1]


def test_sizes_of_shards_and_chunks_follow_from_the_rows():
  sized = lambda n_rows, width, **given: Layout.sized(n_rows, {"a": width, "b": 4}, "float16", **given)
  large = sized(10**10, 512)
  assert (large.shard_rows, large.chunk_rows, large.n_shards) == (2**20, 2**14, 9537)
  assert (sized(10**8, 4096).shard_rows, sized(10**8, 4096).chunk_rows) == (2**17, 2**11)
  small = sized(10**6, 512)
  assert (small.shard_rows, small.chunk_rows, small.n_shards) == (62_976, 512, 16)
  assert sized(100, 512).n_shards == 7 and sized(10, 10**8).chunk_rows == 16
  assert sized(10**6, 8, shard_rows=512).chunk_rows == 8 and sized(10**6, 8, shard_rows=1000).chunk_rows == 8
  assert sized(10**6, 8, chunk_rows=64).shard_rows == 62_528


@pytest.mark.parametrize("n_rows", [1, 128, 511, 512, 513])
def test_sizes_around_a_shard(tmp_path, n_rows):
  x_NM = made_rows(n_rows)
  write_store(tmp_path, x_NM)
  assert ActivationStore.open(tmp_path).rows(0, n_rows).tobytes() == x_NM.tobytes()


def test_another_library_reads_it(whole):
  group = zarr.open_group(str(whole), mode="r")
  rows = group[f"sites/{SITE}"]
  np.testing.assert_array_equal(rows[:], made_rows())
  np.testing.assert_array_equal(group["places"][:], places_of(N))
  assert rows.shards == (SHARD, M) and rows.chunks == (CHUNK, M)


KILLED = f"""
import os, sys
import numpy as np
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
import store_test as t
left = int(sys.argv[2])
write = t.Folder.write
def counted(*args, **given):
  global left
  left -= 1
  if left == 0:
    os._exit(9)
  write(*args, **given)
if left:
  t.Folder.write = counted
x_NM = t.made_rows() if left else t.big_rows()
t.write_store(sys.argv[1], x_NM, shard_rows=t.SHARD if left else 8192)
"""


def big_rows():
  """Twelve shards of 8,192 rows: two megabytes each, so that a kill falls inside a write."""
  bits_NM = np.random.default_rng(1).integers(0, 0x7C00, (12 * 8192 - 100, 128), np.uint16)
  return bits_NM.view(np.float16)


@pytest.mark.parametrize("replacement", range(1, 10))
def test_killed_writer_is_continued(whole, tmp_path, replacement):
  """The process dies before one of its small files: zarr.json, header.json, a shard's sums, stats.npz, meta.json."""
  command = [sys.executable, "-c", KILLED, str(tmp_path / "s"), str(replacement)]
  assert subprocess.run(command).returncode == 9
  with pytest.raises(InputError, match="no activation store" if replacement < 3 else "unfinished"):
    ActivationStore.open(tmp_path / "s")
  write_store(tmp_path / "s", made_rows())
  assert tree(tmp_path / "s") == tree(whole)


def test_sigkill_at_any_moment(tmp_path):
  x_NM = big_rows()
  write_store(tmp_path / "whole", x_NM, shard_rows=8192)
  kill_while_writing([sys.executable, "-c", KILLED, str(tmp_path / "s"), "0"], tmp_path / "s")
  write_store(tmp_path / "s", x_NM, shard_rows=8192)
  assert tree(tmp_path / "s") == tree(tmp_path / "whole")


def test_a_finished_store_may_be_finished_again(copy, whole):
  write_store(copy, np.zeros((N, M), np.float16))  # nothing is left to write
  assert tree(copy) == tree(whole)


@pytest.mark.parametrize("damage", [os.remove, flip, lambda path: os.truncate(path, 1000)])
@pytest.mark.parametrize("name, read", [(f"sites/{SITE}/c/2/0", "rows"), ("places/c/2/0", "places")])
def test_damage_is_found_named_and_mended(copy, whole, damage, name, read):
  store = ActivationStore.open(copy)
  damage(copy / name)
  getattr(store, read)(0, 2 * SHARD)
  with pytest.raises(InputError, match=f"shard 2 of.*{name}.*check_store.py --repair"):
    getattr(store, read)(0, N)
  if damage is not flip:
    with pytest.raises(InputError, match=f"shard 2 of.*{name}"):
      ActivationStore.open(copy)
  assert [index for index, fault in faults(copy) if fault] == [2]
  forget(copy, 2)
  with pytest.raises(InputError, match="unfinished"):
    ActivationStore.open(copy)
  assert write_store(copy, made_rows(), shards=0).todo == [2]
  write_store(copy, made_rows())
  assert tree(copy) == tree(whole)
  assert not any(fault for _, fault in faults(copy))


@pytest.mark.parametrize("part", range(4))
def test_every_flipped_byte_and_cut_is_found(whole, copy, part):
  """250 of 1,000: a byte somewhere in the store's arrays and sums changes, or a file ends early."""
  rng = np.random.default_rng(part)
  paths = [path for path in sorted(copy.rglob("*")) if path.is_file() and path.name != "zarr.json"
           and path.relative_to(copy).parts[0] in ("sites", "places", "sums")]
  sizes = np.array([path.stat().st_size for path in paths])
  for trial in range(250):
    path = paths[rng.choice(len(paths), p=sizes / sizes.sum())]
    content = path.read_bytes()
    at = int(rng.integers(len(content)))
    changed = bytearray(content)
    changed[at] ^= int(rng.integers(1, 256))
    path.write_bytes(content[:at] if trial % 5 == 0 else changed)
    found = [index for index, fault in faults(copy) if fault]
    if path.parent.name == "sums":
      kept = None if found else Folder(copy).read_npz(f"sums/{path.name}")
      assert found or all(np.array_equal(kept[name], value) for name, value in
                          Folder(whole).read_npz(f"sums/{path.name}").items()), "or it means the same"
    else:  # nor is it read as if it were whole
      shard = int(path.parent.name)
      assert found == [shard], path
      with pytest.raises(InputError, match=f"shard {shard} of"):
        store = ActivationStore.open(copy)
        store.rows(0, N), store.places(0, N)
    path.write_bytes(content)


def test_a_damaged_finished_store_is_no_longer_finished(copy):
  os.truncate(copy / f"sites/{SITE}/c/3/0", 10)
  write_store(copy, made_rows(), shards=0)
  with pytest.raises(InputError, match="unfinished, harvested 4 of 5"):
    ActivationStore.open(copy)


def test_wrong_stores_are_refused(copy, tmp_path):
  with pytest.raises(InputError, match="no activation store"):
    ActivationStore.open(tmp_path / "nowhere")
  with pytest.raises(InputError, match='subject: "0123456789abcdef" -> "other"'):
    ActivationStore.open(copy, {**IDENTITY, "subject": "other"})
  with pytest.raises(InputError, match="site:.*layer.1"):
    write_store(copy, made_rows(), identity={**IDENTITY, "site": "layer.1"})
  with pytest.raises(InputError, match="n_rows: 2500 -> 2499"):
    write_store(copy, made_rows()[1:])
  (copy / "header.json").unlink()
  with pytest.raises(InputError, match="no header.json"):
    write_store(copy, made_rows())
  files.write_json(copy / "meta.json", {**files.read_json(copy / "meta.json"), "version": 1})
  with pytest.raises(InputError, match="version 1"):
    ActivationStore.open(copy)


def test_unfinished_store_says_how_far_it_is(tmp_path):
  writer = write_store(tmp_path, made_rows(), shards=4)
  with pytest.raises(ValueError, match="4 of 5 missing shards"):
    writer.finish({})
  with pytest.raises(InputError, match="unfinished, harvested [0-4] of 5 shards.*again"):
    ActivationStore.open(tmp_path)


def test_the_writer_refuses_what_does_not_belong(tmp_path):
  writer = write_store(tmp_path, made_rows(), shards=1)
  places = places_of(SHARD)
  write = lambda index, rows_RM, places_RP=None: writer.write_shard(
      index, {SITE: rows_RM}, places[:len(rows_RM)] if places_RP is None else places_RP)
  for index, rows_RM in ((0, np.zeros((SHARD, M), np.float16)), (1, np.zeros((SHARD, M), np.float32)),
                         (1, np.zeros((SHARD - 1, M), np.float16))):
    with pytest.raises(ValueError, match="shard"):
      write(index, rows_RM)
  rows_RM = np.full((SHARD, M), 60000, np.float16)
  with pytest.raises(ValueError, match="places int64"):
    write(1, rows_RM, places.astype(np.int64))
  write(1, rows_RM)
  bad_RM = rows_RM.copy()
  bad_RM[3, 3] = np.inf
  write(2, bad_RM)
  with pytest.raises(InputError, match="shard 2 .*not finite.*bfloat16"):
    for index in (3, 4):
      write(index, rows_RM[:N - index * SHARD])
    writer.finish({})
  resumed = ShardWriter(tmp_path, writer.layout, IDENTITY)
  assert {2, 4} <= {*resumed.todo} <= {2, 3, 4}  # the third may have been under way already
  assert zarr.open_group(str(tmp_path), mode="r")[f"sites/{SITE}"][SHARD:2 * SHARD].min() == 60000


def test_config_is_checked():
  for change in ({"shard_rows": 1000, "chunk_rows": 300}, {"dtype": "int4"}, {"n_tokens": -1},
                 {"site": ""}, {"batch_contexts": 0}, {"more_sites": (SITE,)}, {"compression": "gzip"}):
    with pytest.raises(InputError, match=next(iter(change))):
      HarvestConfig(**change)


