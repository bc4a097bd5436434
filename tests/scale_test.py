"""Kills by the hundred and rows by the hundred million; slow."""

import hashlib
import multiprocessing
import os
import random
import threading
import time

import numpy as np
import pytest

from monojax import checkpoint, files

# Children begin with everything imported, and take each other's compiled programs.
_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["scale_test", "monojax.sae.train", "monojax.activations.stream"])
CONTEXT, BATCH = 32, 64


def small_job(text_tokens, width):
  """(subject, tokens): a subject that runs fast, and text for it."""
  import jax
  import jax.numpy as jnp

  from monojax.subjects.config import TransformerConfig
  from monojax.subjects.subject import LoadedSubject
  from monojax.subjects.transformer import Transformer
  from monojax.text.tokens import Tokens
  config = TransformerConfig(n_layers=1, d_model=8, n_heads=1, d_mlp=width, vocab_size=64)
  model = Transformer(config)
  params = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
  starts = np.arange(0, len(text_tokens), 250)
  tokens = Tokens("train", text_tokens, starts, np.zeros(len(starts), np.int32), ("a",), 64, 0, len(text_tokens))
  return LoadedSubject(model, params, CONTEXT), tokens


def harvested(directory, text_tokens, width, **settings):
  from monojax.activations.config import HarvestConfig
  from monojax.activations.harvest import harvest
  from monojax.mesh import MeshConfig, make_mesh
  harvest(HarvestConfig(**settings), *small_job(text_tokens, width), directory, {}, make_mesh(MeshConfig(data=1)))


def do_harvest(directory, _):
  harvested(directory, np.random.default_rng(0).integers(0, 64, 400_000).astype(np.uint16), 16,
            batch_contexts=64, shard_rows=8192, chunk_rows=1024, tokens_per_context=25)


def do_train(directory, store):
  """A dictionary from `store`, or from a stream where it is `None`."""
  from monojax.activations.config import HarvestConfig
  from monojax.activations.origin import Order
  from monojax.activations.reader import ShuffledRows
  from monojax.activations.store import ActivationStore
  from monojax.activations.stream import Stream
  from monojax.mesh import MeshConfig, make_mesh
  from monojax.metrics import MetricsConfig
  from monojax.sae.config import SAEConfig
  from monojax.sae.model import Wiring
  from monojax.sae.train import train_sae
  mesh = make_mesh(MeshConfig(data=1))
  config = SAEConfig(n_features=32, batch_rows=BATCH, n_steps=1200, checkpoint_every_steps=60, scan_steps=10,
                     buffer_rows=4096, start_rows=1024, resample_every_steps=500, resample_rows=512).resolved()
  if store is None:
    text_tokens = np.random.default_rng(0).integers(0, 64, 100_000).astype(np.uint16)
    source = Stream(HarvestConfig(batch_contexts=16), *small_job(text_tokens, 16), Order(BATCH, 4096, 0), mesh)
  else:
    source = ShuffledRows(ActivationStore.open(store), BATCH, 4096, 0)
  train_sae(config, source, Wiring((source.width,)), directory, {}, mesh, MetricsConfig())


def job(function, directory, cache, *given):
  import jax
  jax.config.update("jax_compilation_cache_dir", str(cache))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  with open(os.devnull, "w") as nowhere:
    os.dup2(nowhere.fileno(), 1)
    os.dup2(nowhere.fileno(), 2)
  function(directory, *given)


def started(*arguments):
  process = _FORKED.Process(target=job, args=arguments)
  process.start()
  return process


def outcome(function, directory):
  """What must not depend on kills: the bytes of a store, the parameters of a dictionary."""
  if function is do_harvest:
    return {path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(directory.rglob("*")) if path.is_file()}
  params, _, step = checkpoint.load_params(directory / "checkpoints")
  assert step == 1200
  return {name: np.asarray(value).tobytes() for name, value in params.items()}


@pytest.mark.slow
@pytest.mark.parametrize("what", ["harvest", "store", "stream"])
def test_killed_at_70_random_moments_nothing_is_lost(tmp_path, what):
  """Of 210 in all: every run is killed until it has had 10, then let to its end, which is that of one left alone."""
  rng, cache = random.Random(what), tmp_path / "cache"
  function = do_harvest if what == "harvest" else do_train
  given = [None]
  if what == "store":
    given = [tmp_path / "given"]
    process = started(do_harvest, given[0], cache, None)
    process.join()
  for name in ("first", "alone"):  # the second takes the first's programs, as the killed ones will
    begun = time.time()
    process = started(function, tmp_path / name, cache, *given)
    process.join()
    assert process.exitcode == 0
  seconds, expected = time.time() - begun, outcome(function, tmp_path / "alone")
  assert outcome(function, tmp_path / "first") == expected
  n_killed, trial, of_trial = 0, 0, 0
  while n_killed < 70 or of_trial:
    directory = tmp_path / str(trial)
    process = started(function, directory, cache, *given)
    process.join(rng.uniform(0, 0.6 * seconds) if of_trial < 10 else None)
    if process.exitcode is None:
      process.kill()
      process.join()
      n_killed, of_trial = n_killed + 1, of_trial + 1
      continue
    assert process.exitcode == 0
    assert outcome(function, directory) == expected, (trial, of_trial)
    trial, of_trial = trial + 1, 0
  print(f"{what}: {n_killed} kills in {trial} runs")


class PeakMemory:
  """The largest anonymous resident memory of this process in a block, in bytes: what files it maps is the system's."""

  def __enter__(self):
    self.n_bytes, self._stop = 0, threading.Event()
    self._thread = threading.Thread(target=self._watch)
    self._thread.start()
    return self

  def _watch(self):
    while not self._stop.wait(0.02):
      line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
      self.n_bytes = max(self.n_bytes, 1024 * int(line.split()[1]))

  def __exit__(self, *unused):
    self._stop.set()
    self._thread.join()


def harvest_and_read(directory, n_rows):
  """Harvests so many rows, takes dictionary steps on rows from all over them; leaves the peak of either."""
  from monojax.activations.reader import ShuffledRows
  from monojax.activations.store import ActivationStore
  directory.mkdir()
  path = directory / "tokens.bin"
  with open(path, "wb") as file:
    for i in range(0, n_rows, 2**20):
      ids_N = np.random.default_rng(i).integers(0, 64, min(2**20, n_rows - i)).astype(np.uint16)
      file.write(ids_N.tobytes())
  with PeakMemory() as harvest_peak:
    harvested(directory / "store", np.memmap(path, np.uint16, "r"), 4, batch_contexts=1024, shard_rows=2**16,
              chunk_rows=4096)
  with PeakMemory() as read_peak:
    source = ShuffledRows(ActivationStore.open(directory / "store"), 8192, 2**18, 0)
    last = source._store.n_rows // 8192 - 1
    for first in np.linspace(0, last, 12).astype(int):
      for step in range(first, first + 40):
        source.batch(step)
  files.write_json(directory / "peak.json", {"harvest": harvest_peak.n_bytes, "read": read_peak.n_bytes,
                                             "rows": source._store.n_rows})


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path):
  found = {}
  for n_rows in (10**6, 10**8):
    process = started(harvest_and_read, tmp_path / str(n_rows), tmp_path / "cache", n_rows)
    process.join()
    assert process.exitcode == 0
    found[n_rows] = files.read_json(tmp_path / str(n_rows) / "peak.json")
  print(found)
  assert found[10**8]["rows"] > 99 * found[10**6]["rows"] > 0
  for phase in ("harvest", "read"):
    assert found[10**8][phase] < 1.05 * found[10**6][phase], found
