"""The bookkeeping of a run's folder: which stages are finished, what each was made from, and when one must be refused.

A run is one folder, and each of its stages is a folder in it. A finished stage is skipped, an interrupted one goes on
where it stopped, and one whose settings or inputs have changed says so and stops. A stage reads what the stages before
it left in the folder, and nothing else.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import threading
import time
import typing

from monojax import config as configs
from monojax import distributed, files, places
from monojax.config import InputError, require

# The stages of a run in order, and for each the stages whose results it reads.
STAGES = {
    "tokens": (), "subject": ("tokens",), "activations": ("tokens", "subject"), "sae": ("activations",),
    "frontier": ("sae",), "analysis": ("sae",), "browser": ("analysis",),
}
OTHERS = "dictionaries"  # the folder of further dictionaries, each a stage of its own
SWEEPS = "sweeps"  # the folder of grids of dictionaries, each grid a stage of its own
OWN_DICTIONARY = "sae"  # the name of the dictionary that the run's own analysis and pages are of
# Of the records. Version 0.1 of monojax wrote none; those up to version 2 had no checksums, of themselves or of files.
VERSION = 3
_RECORD = "stage.json"
_FIELDS = {"config", "inputs", "identity", "complete", "seconds"}  # what every record has had from the start
# Folders in a stage's that are no part of what it made, or whose content has checksums of its own.
_OTHERS = ("checkpoints", "tensorboard", "wandb")


@dataclasses.dataclass(frozen=True)
class DictionaryPlace:
  """Where a dictionary of a run is.

  Attributes:
    name: its name: "sae" for the run's own; the folder's path in the run otherwise.
    stage: the stage that trains it.
    weights: the folder of its finished parameters.
    home: the folder in the run, as a prefix that ends in "/", that holds its analysis and pages; "" for the run's own.
  """
  name: str
  stage: str
  weights: pathlib.Path
  home: str


class RunFolder:
  """A run's folder: which stages are done, and what later stages read from them."""

  def __init__(self, directory: str | pathlib.Path, stages: dict[str, tuple[str, ...]] | None = None):
    """Looks at nothing yet.

    Args:
      directory: the folder, which need not exist.
      stages: {stage: the stages it reads}, in order; by default those of a run, `STAGES`. Studies have others.

    Raises:
      InputError: a run cannot be kept under that path.
    """
    self.directory = places.folder(directory, "--workdir", checkpoints=True)
    self.stages = STAGES if stages is None else stages

  def begun(self, name: str) -> dict | None:
    """The record of a stage that has begun, finished or not: config, inputs, identity, complete, seconds, version.

    Raises:
      InputError: the record is damaged, was changed by hand, or is of a later version of monojax.
    """
    path = self.directory / name / _RECORD
    record = files.read_record(path, without=2)
    if record is None:
      return None
    if missing := _FIELDS - set(record):
      raise files.damaged(path, f"it lacks {', '.join(sorted(missing))}")
    if record.get("version", 0) > VERSION:
      raise InputError(f"{path} has version {record['version']}, this version of monojax reads up to {VERSION}: use "
                       "the version that wrote it, or a later one")
    return record

  def stage(self, name: str) -> dict | None:
    """The record of a finished stage: that of `begun`, with figures and output; None if it is not finished."""
    record = self.begun(name)
    return record if record and record["complete"] else None

  def require_stage(self, name: str) -> dict:
    """The record of a finished stage.

    Raises:
      InputError: it has not been finished.
    """
    record = self.stage(name)
    if record is None:
      raise InputError(f"{self.directory / name} is not finished: run that stage first, or all of them with "
                       "`monojax monosemanticity`")
    return record

  def made(self, name: str, file: str) -> pathlib.Path:
    """The path of a file (or of a folder) that a finished stage made, once its content is verified.

    Args:
      name: the stage.
      file: the file's path in the stage's folder.

    Raises:
      InputError: the stage is not finished, or the file is not what it was then.
    """
    self._verify(name, self.require_stage(name), file)
    return self.directory / name / file

  def _verify(self, name: str, record: dict, within: str = "") -> None:
    """Compares what a finished stage made, or the part of it `within` a path, with the checksums that it left."""
    directory = self.directory / name
    if record.get("version", 1) > 2 and (fault := files.fault(directory, within)):
      raise InputError(f"{directory} is damaged, or was changed since it was made ({fault}): restore it from a copy, "
                       "or delete that folder and run the same command again, which makes it once more")

  def execute(self, name: str, config: typing.Any, work: typing.Callable[[pathlib.Path, str], dict],
              after: tuple[str, ...] | None = None, alone: bool = False, extends: bool = False,
              given: dict | None = None) -> dict:
    """Does a stage unless it is done; several processes of a job do it together.

    Args:
      name: the stage's folder in the run.
      config: its configuration dataclass, or a dict of several.
      work: (stage directory, identity) -> dict of headline figures. The identity names the settings and inputs of what
        is made.
      after: the stages whose results it reads; by default what the run's table of stages says.
      alone: whether a job's first process does it while the others wait.
      given: JSON-able facts about further inputs that are not in the run's folder, such as the fingerprint of an array.
      extends: whether a stage that was done with another configuration is to go on with this one, instead of being
        refused. `work` must know how.

    Returns:
      The stage's record.

    Raises:
      InputError: an earlier stage is missing, or this one was begun with other settings or inputs.
    """
    distributed.wait(f"{name} begins")
    inputs = {stage: self.require_stage(stage)["output"] for stage in (self.stages[name] if after is None else after)}
    wanted = {"config": configs.to_dict(config), "inputs": inputs | (given or {})}
    look_up = functools.partial(self._looked_up, name, config, wanted, extends)
    found = look_up()
    if found and found["complete"]:
      return self._already_done(name, found)
    from monojax.activations.owner import owned
    with owned(self.directory / name):
      found = look_up()  # another process may have been at it until now
      if found and found["complete"]:
        return self._already_done(name, found)
      return self._do(name, wanted, found, work, alone)

  def _already_done(self, name, record) -> dict:
    self._verify(name, record)
    print(f"{name}: already done ({record['seconds']:.0f} s)", flush=True)
    return record

  def _looked_up(self, name, config, wanted, extends) -> dict | None:
    """The record of a stage that has begun with the settings and inputs `wanted`; see `execute`."""
    found = self.begun(name)
    if found is None:
      return None
    changes = configs.differences({"config": _upgraded(config, found["config"]), "inputs": found["inputs"]}, wanted)
    if not changes:
      return found  # whose identity stays: an older version may have written the same settings differently
    if not extends:
      raise InputError(f"{self.directory / name} was begun with other settings ({'; '.join(changes)}): give the old "
                       f"settings, {self._remedy(name)}")
    return {**found, "complete": False, "identity": configs.fingerprint(wanted)}

  def _do(self, name, wanted, found, work, alone) -> dict:
    """Does a stage, whose folder this job owns; `found` is its record, if it was begun. See `execute`."""
    path = self.directory / name / _RECORD
    identity = found["identity"] if found else configs.fingerprint(wanted)
    record = {"version": VERSION, **wanted, "identity": identity, "complete": False}
    distributed.wait(f"{name} is looked up")
    if alone and not distributed.is_first():
      distributed.wait(f"{name} is done")
      return self.require_stage(name)
    try:
      with _clock(path, record, found["seconds"] if found else 0.0) as elapsed:
        figures = work(path.parent, identity)
    except InputError:
      # A stage that was refused before it made anything may be begun again with other settings.
      if distributed.is_first() and {file.name for file in path.parent.iterdir()} <= {_RECORD, files.LOCK}:
        path.unlink()
      raise
    if not alone:
      distributed.wait(f"{name} is written")
    # Later stages depend on what was made, too: the same settings can find other text.
    output = configs.fingerprint({"identity": identity, "figures": figures})
    record |= {"complete": True, "seconds": elapsed(), "figures": figures, "output": output}
    if distributed.is_first():
      files.write_sums(path.parent, _made_by(path.parent))
    files.write_record(path, record)
    self.write_summary()
    distributed.wait(f"{name} is done")
    print(f"{name}: done in {record['seconds']:.0f} s", flush=True)
    return record

  def _remedy(self, name: str) -> str:
    if name in self.stages:
      return "use another --workdir, or delete that folder and those of the stages after it"
    return "use another name, or delete that folder"

  def reopen(self, name: str) -> None:
    """Has a finished stage done again where something of it is missing; the stages after it stay as they are."""
    files.write_record(self.directory / name / _RECORD, {**self.require_stage(name), "complete": False})

  def write_summary(self, study: str | None = None) -> dict:
    """Writes `summary.json`: every finished stage's figures under `STAGE/name`, and the seconds that it took.

    With the name of a study, the seconds of all its stages together are there as well, under `STUDY/seconds`.
    """
    summary: dict = {}
    for name in self.stages:
      if record := self.stage(name):
        summary |= {f"{name}/seconds": record["seconds"], **record["figures"]}
    if study:
      summary[f"{study}/seconds"] = sum(value for name, value in summary.items() if name.endswith("/seconds"))
    files.write_unless_same(self.directory / "summary.json", files.json_bytes(summary))
    return summary

  def dictionaries(self) -> dict[str, DictionaryPlace]:
    """{name: place} of every finished dictionary in the run's folder; links that lead out of it are left out."""
    found = {}
    if self.stage(OWN_DICTIONARY):
      found[OWN_DICTIONARY] = DictionaryPlace(OWN_DICTIONARY, OWN_DICTIONARY, self.directory / "sae" / "dictionary", "")
    within = lambda path: path.resolve().is_relative_to(self.directory.resolve())
    for path in sorted(self.directory.glob(f"{OTHERS}/*/dictionary")):
      name = f"{OTHERS}/{path.parent.name}"
      if within(path) and self.stage(name):
        found[name] = DictionaryPlace(name, name, path, f"{name}/")
    members = [*self.directory.glob(f"{SWEEPS}/*/dictionaries/*"), *self.directory.glob("frontier/dictionaries/*")]
    for path in sorted(members):
      name = path.relative_to(self.directory).as_posix()
      stage = name.partition("/dictionaries/")[0]
      if path.is_dir() and within(path) and self.stage(stage):
        found[name] = DictionaryPlace(name, stage, path, f"{name}/")
    return found

  def dictionary(self, name: str) -> DictionaryPlace:
    """The place of the dictionary that a user means by `name`: its name, the last part of it, or its folder.

    Raises:
      InputError: there is no such dictionary, or several.
    """
    places = self.dictionaries()
    wanted = name.strip("/").removesuffix("/dictionary")
    matches = [place for key, place in places.items() if key == wanted] or [
        place for key, place in places.items() if key.rpartition("/")[2] == wanted]
    there = ", ".join(places) or "none: run the stage that trains one first"
    require(matches, "dictionary", name, f"the finished dictionaries of {self.directory} are {there}")
    require(len(matches) == 1, "dictionary", name,
            f"can be any of {', '.join(place.name for place in matches)}: give one of these names")
    return matches[0]


def _upgraded(config: typing.Any, saved: dict) -> dict:
  """A saved configuration as this version would write it, `config` saying of what class it is."""
  if dataclasses.is_dataclass(config) and not isinstance(config, type):
    return configs.to_dict(configs.from_dict(type(config), saved))
  if isinstance(config, dict):
    return {name: _upgraded(config[name], value) if name in config else value for name, value in saved.items()}
  return saved


def _made_by(directory: pathlib.Path) -> typing.Iterator[str]:
  """Paths of the files that a stage has made in its folder; those that have checksums of their own are left out."""
  for folder, folders, names in os.walk(directory):
    is_stage = lambda name, folder=folder: (pathlib.Path(folder) / name / _RECORD).exists()
    is_chunks = lambda name, names=names: name == "c" and "zarr.json" in names
    folders[:] = [name for name in folders if name not in _OTHERS and not is_stage(name) and not is_chunks(name)]
    for name in names:
      if name not in (_RECORD, files.LOCK) and not name.endswith((files.PARTIAL, ".__lock")):
        yield (pathlib.Path(folder) / name).relative_to(directory).as_posix()


@contextlib.contextmanager
def _clock(path, record, seconds_before, every_seconds=10.0):
  """Writes `record` with the `seconds` spent so far, now and again: a killed stage's time is not lost.

  Yields a function that returns those seconds.
  """
  start, stop = time.time(), threading.Event()
  elapsed = lambda: round(seconds_before + time.time() - start, 2)

  def tick():
    while not stop.wait(every_seconds):
      with contextlib.suppress(OSError):  # a full disk ends the stage where it writes something that matters
        files.write_record(path, {**record, "seconds": elapsed()})

  files.write_record(path, {**record, "seconds": elapsed()})
  thread = threading.Thread(target=tick, daemon=True)
  thread.start()
  try:
    yield elapsed
  finally:
    stop.set()
    thread.join()
