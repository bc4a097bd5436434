"""A finished run of which any file is damaged: whoever reads it is told in one line, or gets what was written."""

import hashlib
import random
import shutil
import warnings

import jax
import numpy as np
import pytest
from tiny_run import run

import monojax
from monojax import checkpoint, files
from monojax.activations.store import ActivationStore, faults
from monojax.config import InputError
from monojax.pipeline import load
from monojax.pipeline.folder import RunFolder
from monojax.pipeline.settings import remembered
from monojax.pipeline.stages import IN_ORDER


def rerun(place):
  """The same command again: every stage is done already."""
  folder = RunFolder(place)
  config = remembered(folder).config
  for stage in IN_ORDER.values():
    stage(folder, config)


def loaded(place):
  found = monojax.load(place)
  tables = found.features
  return [found.sae.config, as_bytes(found.sae.params), found.mean_O.tobytes(), as_bytes(tables.columns),
          tables.token_strings, tables.summary, found.token_ids("In the beginning"), as_bytes(found.subject_params)]


def tokens(place):
  found = [load.open_tokens(RunFolder(place), split) for split in ("train", "val")]
  return [(as_bytes([split.tokens_N, split.start_D, split.domain_D]), split.domains, split.eot_id, split.text_bytes)
          for split in found]


def store(place):
  found = ActivationStore.open(place / "activations")
  return [as_bytes([found.rows(0, found.n_rows), found.places(0, found.n_rows)]), as_bytes(found.statistics()),
          found.fingerprint()]


def checkpoints(place):
  found = [checkpoint.load_params(place / stage / "checkpoints") for stage in ("subject", "sae")]
  return [(as_bytes(params), config, step) for params, config, step in found]


READERS = (rerun, loaded, tokens, store, checkpoints)


def as_bytes(tree):
  return jax.tree.map(lambda array: (np.asarray(array).tobytes(), str(array.dtype)), tree)


def read(place):
  """What each reader gets from a run, or the message that it gets instead."""
  found = {}
  for reader in READERS:
    try:
      found[reader.__name__] = reader(place)
    except InputError as error:
      found[reader.__name__] = f"refused: {error}"
  return found


def damage(path, rng):
  """Flips a bit of a file, cuts it short or deletes it; returns which."""
  content, kind = bytearray(path.read_bytes()), rng.choice(("flip", "flip", "cut", "delete"))
  if kind == "delete" or not content:
    path.unlink()
    return "delete"
  at = rng.randrange(len(content))
  if kind == "cut":
    path.write_bytes(content[:at])
  else:
    content[at] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
  return kind


def damaged_at_random(whole, tmp_path, capfd, seed, times):
  """Damages random files of copies of a run; returns how many damages were named and how many did no harm."""
  rng, expected, named = random.Random(seed), read(whole), 0
  names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
  assert not any(str(value).startswith("refused") for value in expected.values()), expected
  for i in range(times):
    place = shutil.copytree(whole, tmp_path / "run")
    name = rng.choice(names)
    what = f"{i}: {damage(place / name, rng)} {name}"
    with warnings.catch_warnings():
      warnings.simplefilter("error")  # a warning would be a second line
      found = read(place)
    refused = {reader: value for reader, value in found.items() if str(value).startswith("refused")}
    for reader, value in found.items():
      assert reader in refused or value == expected[reader], f"{what}: {reader} got something else, silently"
    assert all("\n" not in message for message in refused.values()), what
    output = "".join(capfd.readouterr())
    assert "Traceback" not in output and "ERROR" not in output, f"{what}: {output}"
    named += bool(refused)
    shutil.rmtree(place)
  return named


def test_random_damage_is_named_or_does_no_harm(finished, tmp_path, capfd):
  assert damaged_at_random(finished[0], tmp_path, capfd, 0, 12) > 4


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_a_thousand_damages_are_named_or_do_no_harm(finished, tmp_path, capfd, seed):
  named = damaged_at_random(finished[0], tmp_path, capfd, seed, 100)
  print(f"{named} of 100 were named, the others did no harm")


@pytest.mark.parametrize("kind", ["flip", "without checksums"])
def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(finished, tmp_path, kind):
  """A run that was stopped after its last checkpoint, which is damaged since, or was not finished."""
  place = shutil.copytree(finished[0], tmp_path / "run")
  for made in ("dictionary", files.SUMS, "curves.png"):
    files.remove(place / "sae" / made)
  record = files.read_record(place / "sae" / "stage.json", without=2)
  files.write_record(place / "sae" / "stage.json", {**record, "complete": False})
  newest = max((path for path in (place / "sae" / "checkpoints").iterdir() if path.name.isdecimal()),
               key=lambda path: int(path.name))
  if kind == "flip":
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
  else:
    (newest / files.SUMS).unlink()
  result = run("train_sae", place)
  assert result.returncode == 0, result.stderr
  assert f"{newest.name} is {'damaged' if kind == 'flip' else 'not whole'}" in result.stderr
  params, expected = (monojax.SAE.load(path / "sae" / "dictionary").params for path in (place, finished[0]))
  assert as_bytes(params) == as_bytes(expected)


def test_a_first_checkpoint_that_was_not_finished_counts_for_nothing(finished, tmp_path, capfd):
  place = shutil.copytree(finished[0] / "sae" / "checkpoints", tmp_path / "checkpoints")
  for sums in place.glob(f"*/{files.SUMS}"):
    sums.unlink()
  assert checkpoint.saved_config(place) is None
  with pytest.raises(InputError, match="it was not finished"):
    checkpoint.load_params(place)
  opened = checkpoint.Checkpoints(place, {})
  assert opened.restore(None) is None
  opened.close()
  assert "training begins anew" in capfd.readouterr().err


def test_all_checkpoints_damaged_is_refused(finished, tmp_path):
  place = shutil.copytree(finished[0] / "sae", tmp_path / "sae")
  for metadata in (place / "checkpoints").glob("*/_CHECKPOINT_METADATA"):
    metadata.write_bytes(metadata.read_bytes() + b" ")
  for use in (checkpoint.saved_config, checkpoint.load_params, lambda path: checkpoint.Checkpoints(path, {})):
    with pytest.raises(InputError, match="is damaged .*_CHECKPOINT_METADATA is not what was written"):
      use(place / "checkpoints")


def test_a_record_edited_by_hand_is_refused(finished, tmp_path):
  place = shutil.copytree(finished[0], tmp_path / "run")
  path = place / "sae" / "stage.json"
  path.write_text(path.read_text().replace('"n_features": 64', '"n_features": 65'))
  with pytest.raises(InputError, match="sae/stage.json is damaged .*not what its checksum stands for"):
    monojax.load(place)


def test_damage_of_a_store_by_itself_is_named(whole, tmp_path):
  """A store far from any run: its small files have checksums of their own."""
  rng = random.Random(0)
  small = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and path.parent.name != "0"
           and path.name not in ("zarr.json",) and "c" not in path.parts]

  def everything(place):
    found = ActivationStore.open(place)
    return [found.rows(0, found.n_rows).tobytes(), as_bytes(found.statistics()), found.meta,
            [fault for _, fault in faults(place)]]
  expected = everything(whole)
  for i in range(60):
    place = shutil.copytree(whole, tmp_path / f"{i}")
    what = f"{damage(place / rng.choice(small), rng)} {i}"
    try:
      assert everything(place)[:3] == expected[:3], what
    except InputError:
      continue


def test_checksums_are_those_of_sha256sum(tmp_path):
  (tmp_path / "a b").write_bytes(b"one")
  (tmp_path / "sub").mkdir()
  (tmp_path / "sub" / "c").write_bytes(b"two")
  files.write_sums(tmp_path)
  expected = [f"{hashlib.sha256(content).hexdigest()}  {name}"
              for content, name in ((b"one", "a b"), (b"two", "sub/c"))]
  assert (tmp_path / files.SUMS).read_text().splitlines() == expected
  assert files.fault(tmp_path) is None
  (tmp_path / "sub" / "c").write_bytes(b"twO")
  assert "sub/c" in files.fault(tmp_path) and files.fault(tmp_path, "a b") is None
