"""A store filled by a loop of one's own: what comes out is what was given, whatever the pieces, kills and formats."""

import itertools
import pathlib
import shutil
import subprocess
import sys
import tracemalloc
import types

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import zarr
from foreign_arrays import OnlyArray, OnlyDLPack
from made_store import flip, kill_while_writing, tree, write_store
from matching_test import dictionary
from object_store_test import s3  # noqa: F401, a fixture

from monojax import distributed, files
from monojax.activations import given as given_source
from monojax.activations.chunks import LocalChunks
from monojax.activations.config import HarvestConfig
from monojax.activations.folder import Folder
from monojax.activations.own import StoreWriter
from monojax.activations.reader import ShuffledRows
from monojax.activations.rows import open_rows
from monojax.activations.store import ActivationStore, faults, forget, read_description
from monojax.analysis import analyze
from monojax.analysis.config import AnalysisConfig
from monojax.config import InputError

N, WIDTHS, SHARD, CHUNK = 1_000, {"mlp.2": 8, "resid": 3}, 256, 32  # three whole shards and a short one
FORMATS = [("float16", "none"), ("bfloat16", "none"), ("float32", "zstd"), ("int8", "none"), ("int8", "zstd")]


def given(n_rows=N, widths=WIDTHS):
  """({site: rows}, {name of a column: numbers that name the row})."""
  rng = np.random.default_rng(0)
  rows = {site: rng.standard_normal((n_rows, width)).astype(np.float32) for site, width in widths.items()}
  return rows, {"tokens": np.arange(n_rows), "documents": np.arange(n_rows) // 7, "positions": np.arange(n_rows) % 7,
                "domains": np.arange(n_rows) % 3 - 1}


def writer_of(path, dtype="float16", compression="none", **changes):
  settings = {"widths": WIDTHS, "shard_rows": SHARD, "chunk_rows": CHUNK, "domains": ("books", "code"),
              "about": {"model": "a", "layers": (2, 3)}, **changes}
  return StoreWriter(path, dtype=dtype, compression=compression, **settings)


def fill(writer, pieces=(1, 37, 300, 3), numbered=False, n_rows=N):
  """Gives the rows from `writer.n_rows` on, or all of them numbered, in pieces of these sizes, over and over."""
  rows, columns = given()
  at, sizes = 0 if numbered else writer.n_rows, itertools.cycle(pieces)
  while at < n_rows:
    here = slice(at, min(at + next(sizes), n_rows))
    writer.add({site: x[here] for site, x in rows.items()}, first_row=at if numbered else None,
               **{name: column[here] for name, column in columns.items()})
    at = here.stop
  return writer.finish()


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
  """A finished float16 store nobody changes."""
  path = tmp_path_factory.mktemp("filled") / "acts"
  fill(writer_of(path))
  return path


@pytest.fixture
def copy(filled, tmp_path):
  return pathlib.Path(shutil.copytree(filled, tmp_path / "acts"))


@pytest.mark.parametrize("dtype, compression", FORMATS)
def test_holds_the_rows_that_were_given(tmp_path, dtype, compression):
  rows, columns = given()
  meta = fill(writer_of(tmp_path, dtype, compression))
  assert not [fault for _, fault in faults(tmp_path) if fault]
  assert (meta["n_rows"], meta["domains"]) == (N, ["books", "code"]) and meta["complete"]
  assert meta == files.read_record(tmp_path / "meta.json", without=2)
  store = ActivationStore.open(tmp_path, sites=list(WIDTHS))
  x_NM, where_NP = store.rows(0, N).astype(np.float32), store.places(0, N)
  row_N = where_NP[:, 0]
  np.testing.assert_array_equal(np.sort(row_N), np.arange(N))
  np.testing.assert_array_equal(where_NP, np.stack(list(columns.values()), axis=1)[row_N])
  expected_NM = np.concatenate(list(rows.values()), axis=1)[row_N]
  if dtype == "int8":
    assert np.abs(x_NM - expected_NM).max() < 0.03
  else:
    kept = np.dtype(dtype)
    np.testing.assert_array_equal(x_NM, expected_NM.astype(kept).astype(np.float32))
  for shard in range(4):  # the order that docs/reference/store-format.md states: mixed, within each shard
    here = row_N[shard * SHARD:(shard + 1) * SHARD]
    np.testing.assert_array_equal(
        here, shard * SHARD + np.random.default_rng([0, shard]).permutation(len(here)))
  statistics = store.statistics()
  for site, x in rows.items():
    np.testing.assert_allclose(statistics[f"{site}/mean_M"], x.mean(axis=0), atol=2e-3)
    np.testing.assert_allclose(meta["scale"][site]["mean_norm"], np.linalg.norm(x, axis=1).mean(), rtol=2e-3)
    assert statistics[f"{site}/sample_RM"].shape == (N, x.shape[1])  # up to 256 of each shard
  if dtype != "bfloat16":
    group = zarr.open_group(str(tmp_path), mode="r")
    np.testing.assert_array_equal(group["places"][:], where_NP)
    assert group["sites/resid"].shape == (N, 3) and group["sites/resid"].shards == (SHARD, 3)
    if dtype != "int8":
      np.testing.assert_array_equal(group["sites/mlp.2"][:], ActivationStore.open(tmp_path).rows(0, N))
  source = ShuffledRows(store, 100, 2 * CHUNK, 0)
  epoch = np.concatenate([source.batch(step) for step in range(N // 100)]).astype(np.float32)
  assert sorted(map(bytes, epoch)) == sorted(map(bytes, x_NM))


@pytest.mark.parametrize("pieces", [(N,), (1,), (SHARD,), (257, 511)])
def test_pieces_leave_no_trace(filled, tmp_path, pieces):
  fill(writer_of(tmp_path), pieces)
  assert tree(tmp_path) == tree(filled)


@pytest.mark.parametrize("n_rows", [1, CHUNK, SHARD - 1, SHARD, SHARD + 1, 2 * SHARD])
def test_sizes_around_a_shard(tmp_path, n_rows):
  fill(writer_of(tmp_path), n_rows=n_rows)
  assert not [fault for _, fault in faults(tmp_path) if fault]
  np.testing.assert_array_equal(np.sort(ActivationStore.open(tmp_path).places(0, n_rows)[:, 0]), np.arange(n_rows))


def test_samples_are_as_many_of_each_shard(tmp_path):
  n_rows, shard = 24_000, 1024
  with StoreWriter(tmp_path, {"a": 1}, "float32", shard_rows=shard) as writer:
    writer.add({"a": np.arange(n_rows)[:, None]})
  sample_R = ActivationStore.open(tmp_path).statistics()["a/sample_RM"][:, 0]
  np.testing.assert_array_equal(np.bincount((sample_R // shard).astype(int)), np.full(24, -(-1024 // 24)))


class Killed(BaseException):
  """Stands for the end of a process."""


@pytest.mark.parametrize("dtype, compression, numbered", [("float16", "none", True), ("int8", "zstd", False)])
def test_killed_before_any_file_it_goes_on(tmp_path, monkeypatch, dtype, compression, numbered):
  """Killed before any one of its small files, and the one that goes on before one of its own, it ends the same."""
  settings = {"dtype": dtype, "compression": compression, "token_strings": ["a"] * N}
  fill(writer_of(tmp_path / "whole", **settings))
  write, write_shard, left, found = Folder.write, LocalChunks.write, 0, []

  def counted(self, *arguments, **options):
    nonlocal left
    left -= 1
    if left < 0:
      raise Killed
    return write(self, *arguments, **options)

  def write_shard_if_alive(self, *arguments):
    if left < 0:
      raise Killed
    return write_shard(self, *arguments)

  monkeypatch.setattr(Folder, "write", counted)
  monkeypatch.setattr(LocalChunks, "write", write_shard_if_alive)
  for survived in range(11):  # zarr.json, header.json, three sums, token_strings.json, header.json, sums, stats, meta
    path = tmp_path / str(survived)
    for left in (survived, 1 + survived % 6, 1000):  # noqa: B007, what `counted` counts down
      try:
        with writer_of(path, **settings) as writer:
          found.append((writer.n_rows, writer.finished))
          fill(writer, numbered=numbered)
      except Killed:
        if (path / "meta.json").exists():  # it was finished before
          continue
        with pytest.raises(InputError, match="no activation store|unfinished, .* rows are written"):
          ActivationStore.open(path)
    assert tree(path) == tree(tmp_path / "whole"), survived
  assert {(0, False), (3 * SHARD, False), (N, True)} <= {*found}


LOOP = f"""
import sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
import numpy as np
from monojax.activations.own import StoreWriter
assert "jax" not in sys.modules, "writing a store needs no jax"
with StoreWriter(sys.argv[1], {{"a": 256}}, "float16", shard_rows=4096) as writer:
  for i in range(70):
    if (i + 1) * 1000 > writer.n_rows:
      writer.add({{"a": np.random.default_rng(i).standard_normal((1000, 256), np.float32)}}, first_row=i * 1000)
"""


def test_sigkill_at_any_moment(tmp_path):
  command = lambda name: [sys.executable, "-c", LOOP, str(tmp_path / name)]
  assert subprocess.run(command("whole"), capture_output=True).returncode == 0
  kill_while_writing(command("s"), tmp_path / "s")
  result = subprocess.run(command("s"), capture_output=True, text=True)
  assert result.returncode == 0 and "rows already: go on with the row after them" in result.stdout, result.stderr
  assert tree(tmp_path / "s") == tree(tmp_path / "whole")


def test_a_shorter_end_leaves_nothing_of_a_longer_one(copy, tmp_path):
  forget(copy, 1)
  fill(writer_of(copy), n_rows=300)
  fill(writer_of(tmp_path / "short"), n_rows=300)
  assert tree(copy) == tree(tmp_path / "short")


def test_a_finished_store_may_be_finished_again(copy, filled, capsys):
  writer = writer_of(copy)
  assert writer.finished and writer.n_rows == N and "is finished, with 1,000 rows" in capsys.readouterr().out
  assert fill(writer, numbered=True) == fill(writer_of(copy)) == files.read_record(copy / "meta.json", without=2)
  with pytest.raises(InputError, match="is finished and takes no more rows: it has 1,000"):
    fill(writer, numbered=True, n_rows=N) and writer.add({"mlp.2": np.ones((1, 8)), "resid": np.ones((1, 3))})
  assert tree(copy) == tree(filled)
  writer_of(copy, token_strings=["x"] * N).finish()
  assert ActivationStore.open(copy).token_strings() == ["x"] * N
  assert ActivationStore.open(filled).token_strings() is None


def test_damage_is_found_and_mended(copy, filled):
  store = ActivationStore.open(copy)
  flip(copy / "sites/mlp.2/c/2/0")
  with pytest.raises(InputError, match="shard 2 of.*damaged.*forget"):
    store.rows(0, N)
  assert [index for index, fault in faults(copy) if fault] == [2]
  forget(copy, 2)
  with pytest.raises(InputError, match="unfinished, 512 rows are written: run again the loop"):
    ActivationStore.open(copy)
  writer = writer_of(copy)
  assert writer.n_rows == 512 and not writer.finished and (copy / "sums/3.npz").exists()  # until rows are given
  fill(writer)
  assert tree(copy) == tree(filled)


def test_an_unfinished_store_says_how_far_it_is(tmp_path):
  writer = writer_of(tmp_path)
  rows, _ = given()
  with pytest.raises(KeyboardInterrupt):
    with writer:
      writer.add({site: x[:600] for site, x in rows.items()})
      raise KeyboardInterrupt
  assert writer.n_rows == 512
  with pytest.raises(InputError, match="unfinished, 512 rows"):
    ActivationStore.open(tmp_path)
  assert list(faults(tmp_path)) == [(0, None), (1, None)]
  flip(tmp_path / "places/c/1/0")
  assert [index for index, fault in faults(tmp_path) if fault] == [1]


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_loop_that_begins_anew_is_refused(tmp_path, dtype):
  rows, _ = given()
  with pytest.raises(KeyboardInterrupt):
    with writer_of(tmp_path, dtype) as writer:
      writer.add({site: x[:600] for site, x in rows.items()})
      raise KeyboardInterrupt
  writer = writer_of(tmp_path, dtype)
  assert writer.n_rows == 512
  for _ in range(2):
    with pytest.raises(InputError, match="rows given are those that the store in .* begins with, and it has 512"):
      writer.add({site: x[:300] for site, x in rows.items()})
  writer = writer_of(tmp_path, dtype)
  writer.add({site: x[:200] for site, x in rows.items()})
  with pytest.raises(InputError, match="begins with"):
    writer.finish()
  writer = writer_of(tmp_path, dtype)  # the same rows of other documents are welcome, and any others
  writer.add({site: x[:300] for site, x in rows.items()}, documents=7)
  writer.finish()
  assert ActivationStore.open(tmp_path).n_rows == 812


def test_only_the_first_process_of_a_job_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(distributed, "is_first", lambda: False)
  with pytest.raises(InputError, match="not the first process of a jax.distributed job"):
    StoreWriter(tmp_path, WIDTHS)
  assert not list(tmp_path.iterdir())


def test_rows_that_float16_rounds_to_nothing_are_refused(tmp_path):
  rows = {"mlp.2": np.full((5, 8), 1e-9), "resid": np.ones((5, 3))}
  with StoreWriter(tmp_path, WIDTHS) as writer:
    with pytest.raises(InputError, match="mlp.2 is too small for float16"):
      writer.add(rows)
    writer.add({**rows, "mlp.2": np.zeros((5, 8))})


def test_figures_are_of_the_site_that_is_trained_on(tmp_path):
  rng = np.random.default_rng(0)
  with StoreWriter(tmp_path, {"a": 4, "b": 32}, "float32") as writer:
    b_NM = 10 * rng.standard_normal((300, 32)).astype(np.float32)
    writer.add({"a": rng.standard_normal((300, 4)).astype(np.float32), "b": b_NM})
  origin = types.SimpleNamespace(config=HarvestConfig(source="given", site="b", url=str(tmp_path)), rows=None)
  figures = given_source.prepare(origin, None, None).figures
  assert figures["width"] == 32
  assert figures["mean_norm"] == pytest.approx(np.linalg.norm(b_NM, axis=1).mean(), rel=1e-5)


def test_leading_axes_and_unknown_places(tmp_path):
  x_ATM = np.random.default_rng(0).standard_normal((6, 5, 4)).astype(np.float32)
  with StoreWriter(tmp_path, {"a": 4}, "float32") as writer:
    writer.add({"a": x_ATM[:2]}, tokens=np.arange(10).reshape(2, 5))
    writer.add({"a": x_ATM[2:4]}, documents=np.array([[7], [8]]), positions=np.arange(5)[None])
    writer.add({"a": x_ATM[4]}, tokens=[3, 1, 4, 1, 5], documents=9)
    writer.add({"a": x_ATM[5, :0]}, tokens=[])
    writer.add({"a": x_ATM[5]})
  store = ActivationStore.open(tmp_path)
  order_N = np.random.default_rng([0, 0]).permutation(30)
  np.testing.assert_array_equal(store.rows(0, 30), x_ATM.reshape(30, 4)[order_N])
  expected_NP = np.full((30, 4), -1)
  expected_NP[:10, 0] = np.arange(10)
  expected_NP[10:20, 1], expected_NP[10:20, 2] = np.repeat([7, 8], 5), np.tile(np.arange(5), 2)
  expected_NP[20:25, 0], expected_NP[20:25, 1] = [3, 1, 4, 1, 5], 9
  np.testing.assert_array_equal(store.places(0, 30), expected_NP[order_N])


@pytest.mark.parametrize("known", [None, 0, 1])
def test_rows_of_which_not_all_tokens_are_known_are_analysed(tmp_path, known):
  """Without any token there are no labels; otherwise those that are not known are none of the vocabulary's."""
  rng = np.random.default_rng(0)
  strings = None if known is None else ["a", "\u05d0"]
  with StoreWriter(tmp_path, {"a": 24}, "float32", token_strings=strings) as writer:
    tokens = None if known is None else np.where(rng.random(600) < 0.5, known, -1)
    writer.add({"a": rng.standard_normal((600, 24)).astype(np.float32)}, documents=np.arange(600) // 20,
               positions=np.arange(600) % 20, tokens=tokens)
  found = analyze.analyze_rows(AnalysisConfig(n_tokens=0), dictionary(24, 30, 0), ActivationStore.open(tmp_path))
  assert not found.has("domain_share_FD") and found.density_F.max() > 0
  assert bool(found.labels) == (known is not None)
  if known == 0:
    assert not any("Hebrew" in label for label in found.labels)


@pytest.mark.parametrize("made", [
    np.asarray, jnp.asarray, OnlyArray, OnlyDLPack, lambda x: x.astype(np.float64), lambda x: x.astype(np.float16),
    lambda x: x.astype(ml_dtypes.bfloat16), lambda x: OnlyDLPack(jnp.asarray(x, jnp.bfloat16)), np.asfortranarray])
def test_arrays_of_any_library(tmp_path, made):
  x_NM = np.round(given(100)[0]["mlp.2"] * 8)  # exact in every type
  with StoreWriter(tmp_path, {"a": 8}, "bfloat16") as writer:
    writer.add({"a": made(x_NM)}, tokens=OnlyArray(np.arange(100)))
  store = ActivationStore.open(tmp_path)
  np.testing.assert_array_equal(store.rows(0, 100).astype(np.float32), x_NM[store.places(0, 100)[:, 0]])


def test_a_forward_hook_of_pytorch(tmp_path):
  torch = pytest.importorskip("torch")
  torch.manual_seed(0)
  model = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Linear(16, 32), torch.nn.ReLU(),
                              torch.nn.Linear(32, 50)).bfloat16()
  batches = torch.randint(0, 50, (5, 4, 10))
  writer = StoreWriter(tmp_path, widths={"mlp": 32}, dtype="bfloat16")
  with writer, model[2].register_forward_hook(lambda module, inputs, output: writer.add({"mlp": output})):
    for tokens_BT in batches:
      model(tokens_BT)
  store = ActivationStore.open(tmp_path)
  expected_NM = model[2](model[1](model[0](batches))).detach().float().numpy().reshape(-1, 32)
  found_NM = store.rows(0, store.n_rows).astype(np.float32)
  assert sorted(map(bytes, found_NM)) == sorted(map(bytes, expected_NM)) and len(np.unique(found_NM, axis=0)) > 40
  assert open_rows(tmp_path).fingerprint() == store.fingerprint()


def test_memory_is_some_shards(tmp_path):
  """80 shards of 1 MiB."""
  block_NM = np.random.default_rng(0).standard_normal((1000, 128)).astype(np.float16)
  tracemalloc.start()
  with StoreWriter(tmp_path, {"a": 128}, shard_rows=4096) as writer:
    for _ in range(330):
      writer.add({"a": block_NM})
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 10 * 2**20


def test_default_sizes(tmp_path):
  sizes = {}
  for name, widths, changes in (("small", {"a": 8}, {}), ("wide", {"a": 16384, "b": 16384}, {}),
                                ("chunks", {"a": 8}, {"chunk_rows": 1000}), ("shards", {"a": 8}, {"shard_rows": 640})):
    StoreWriter(tmp_path / name, widths, **changes)
    header = files.read_json(tmp_path / name / "header.json")
    sizes[name] = header["shard_rows"], header["chunk_rows"]
    assert header["n_rows"] is None
  assert sizes == {"small": (65536, 1024), "wide": (2048, 32), "chunks": (65000, 1000), "shards": (640, 8)}


@pytest.mark.parametrize("changes, message", [
    ({"widths": {"mlp.2": 8, "resid": 4}}, "sites.resid: 3 -> 4"), ({"widths": {"mlp.2": 8}}, "sites.resid"),
    ({"dtype": "float32"}, "dtype"), ({"compression": "zstd"}, "compression"), ({"chunk_rows": 64}, "chunk_rows"),
    ({"about": {"model": "b"}}, r'identity.about.model: "a" -> "b"'), ({"domains": ("books",)}, "identity.domains")])
def test_another_store_is_refused(copy, filled, changes, message):
  with pytest.raises(InputError, match=f"holds another store .*{message}.*delete that folder"):
    writer_of(copy, **changes)
  assert tree(copy) == tree(filled)


def test_a_harvest_is_not_gone_on_with(tmp_path):
  write_store(tmp_path, np.ones((600, 8), np.float16))
  with pytest.raises(InputError, match="holds another store"):
    writer_of(tmp_path)
  writer_of(tmp_path / "own")
  with pytest.raises(InputError, match="holds another store"):
    write_store(tmp_path / "own", np.ones((600, 8), np.float16))


@pytest.mark.parametrize("changes, message", [
    ({"widths": {}}, "widths="), ({"widths": 8}, "widths=8"), ({"widths": {"a/b": 8}}, "holds no /"),
    ({"widths": {"": 8}}, "not empty"), ({"widths": {"a": 0}}, "width of a=0"), ({"widths": {"a": 8.0}}, "width of a"),
    ({"dtype": "int4"}, "dtype='int4'"), ({"compression": "gzip"}, "compression"), ({"shard_rows": 100}, "shard_rows"),
    ({"shard_rows": -1, "chunk_rows": 0}, "shard_rows"), ({"about": {1, 2}}, "about="), ({"domains": (1,)}, "domains"),
    ({"token_strings": "abc"}, "token_strings"), ({"token_strings": ["a", None]}, "token_strings=1")])
def test_settings_are_checked(tmp_path, changes, message):
  with pytest.raises(InputError, match=message) as error:
    writer_of(tmp_path / "s", **changes)
  assert "\n" not in str(error.value) and not (tmp_path / "s").exists()


def test_what_is_given_is_checked(tmp_path):
  writer = writer_of(tmp_path, token_strings=["a", "b", "c"])
  a, b = np.ones((2, 5, 8)), np.ones((2, 5, 3))
  huge = a.copy()
  huge[1, 1, 1] = 70_000
  for rows, options, message in (
      (a, {}, "given were a ndarray: .* of mlp.2, resid"), ({"mlp.2": a}, {}, "given were mlp.2"),
      ({"mlp.2": a, "resid": b, "x": b}, {}, "given were mlp.2, resid, x"),
      ({"mlp.2": a, "resid": a}, {}, r"shape of resid=\(2, 5, 8\): must be \(..., 3\)"),
      ({"mlp.2": a, "resid": b[:1]}, {}, r"shape of resid.*those of the other sites, \(2, 5\)"),
      ({"mlp.2": a[0, 0], "resid": b[0, 0]}, {}, "at least one axis"),
      ({"mlp.2": "abc", "resid": b}, {}, "mlp.2 is a str"), ({"mlp.2": a * 1j, "resid": b}, {}, "complex"),
      ({"mlp.2": huge, "resid": b}, {}, "row 6 of what was given for mlp.2 .* not finite in float16.*bfloat16"),
      ({"mlp.2": a, "resid": b}, {"tokens": np.zeros((2, 4), int)}, r"shape of tokens=\(2, 4\): .*\(2, 5\)"),
      ({"mlp.2": a, "resid": b}, {"documents": np.arange(5)}, "shape of documents"),
      ({"mlp.2": a, "resid": b}, {"positions": np.zeros((2, 5))}, "dtype of positions='float64'"),
      ({"mlp.2": a, "resid": b}, {"tokens": 3}, "tokens=3: the writer was given 3"),
      ({"mlp.2": a, "resid": b}, {"domains": 2}, "domains=2: the writer was given 2"),
      ({"mlp.2": a, "resid": b}, {"documents": 2**31}, "documents"),
      ({"mlp.2": a, "resid": b}, {"tokens": -2}, "tokens"),
      ({"mlp.2": a, "resid": b}, {"first_row": 1}, "first_row=1: the store has 0 rows so far")):
    with pytest.raises(InputError, match=message) as error:
      writer.add(rows, **options)
    assert "\n" not in str(error.value)
  with pytest.raises(InputError, match="none were given"):
    writer.finish()
  writer.add({"mlp.2": a, "resid": b}, tokens=2, domains=1, first_row=0)
  assert writer.finish()["n_rows"] == 10


def test_an_object_store_holds_what_a_disk_would(filled, s3, tmp_path, monkeypatch):  # noqa: F811
  for name, value in s3.items():
    monkeypatch.setenv(name, value)
  url, rows = "s3://bucket/own", given()[0]
  with pytest.raises(KeyboardInterrupt):
    with writer_of(url) as writer:
      writer.add({site: x[:600] for site, x in rows.items()}, tokens=np.arange(600))
      raise KeyboardInterrupt
  forget(url, 1)
  writer = writer_of(url)
  assert writer.n_rows == 256
  with pytest.raises(InputError, match="unfinished, 256 rows"):
    ActivationStore.open(url)
  Folder(url).delete("sums/0.npz")
  meta = fill(writer_of(url))
  local, remote = Folder(filled), Folder(url)
  names = sorted(path.relative_to(filled).as_posix() for path in filled.rglob("*") if path.is_file())
  assert names == sorted(["header.json", "meta.json", "stats.npz", "zarr.json", *(
      f"{folder}/{name}" for folder in ("sites", "places", "sums") for name in remote.names(folder))])
  assert all(remote.read(name) == local.read(name) for name in names) and meta == read_description(local, "meta.json")
  assert open_rows(url).fingerprint() == open_rows(filled).fingerprint()
