"""Which settings a command works with: those of its flags, and for all others those the run was made with.

A setting that no flag names is taken from the run's own records: from the record of its stage, where that stage has
begun; otherwise from `run.json`, which keeps the settings of the command that began the run; otherwise from the preset.
So a stage's script that is called alone does what the whole run would have done.
"""

import dataclasses
import typing

from monojax import config as configs
from monojax import distributed, files, places
from monojax.config import InputError, require
from monojax.pipeline.config import RunConfig
from monojax.pipeline.folder import OTHERS, OWN_DICTIONARY, SWEEPS, RunFolder
from monojax.pipeline.presets import PRESETS, SHARED, preset

DEFAULT_PRESET = "demo"
VERSION = 2  # of run.json; version 1 had no checksum
_REMEMBERED = ("tokens", "subject", "activations", "sae", "frontier", "analysis", "browser", "metrics")  # not the mesh


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings to start from, before flags are looked at.

  Attributes:
    preset: the name of the preset that the run was begun with.
    config: all settings.
    sources: {section: where its settings are from}, for `--help` and messages: "the preset demo", "runs/mine/sae".
  """
  preset: str
  config: RunConfig
  sources: dict[str, str]


def remembered(folder: RunFolder | None, preset_name: str | None = None, dictionary: str = OWN_DICTIONARY,
               default: str = DEFAULT_PRESET) -> Settings:
  """The settings that a run was made with, as far as it has been made; otherwise a preset's.

  Args:
    folder: the run's folder, which need not exist; None for no run.
    preset_name: the preset that the user asks for, if any.
    dictionary: the stage whose record the section `sae` is from: "sae", or "dictionaries/NAME" for another one.
    default: the preset that a run starts from which was not begun and for which the user asks for none.

  Raises:
    InputError: there is no such preset, or the run was begun with another one.
  """
  require(preset_name is None or preset_name in PRESETS, "--preset", preset_name, f"choose one of {', '.join(PRESETS)}")
  saved = files.read_record(folder.directory / "run.json", without=1) if folder else None
  name = preset_name or (saved["preset"] if saved else default)
  config, sources = PRESETS[name], dict.fromkeys(configs.to_dict(PRESETS[name]), f"preset {name}")
  if folder is None:
    return Settings(name, config, sources)
  if saved:
    if preset_name not in (None, saved["preset"]):
      raise InputError(f"--preset={preset_name!r}: {folder.directory} was begun with --preset={saved['preset']}: leave "
                       "the flag out, or use another --workdir")
    kept = {section: values for section, values in saved["config"].items() if section in _REMEMBERED}
    config = configs.from_dict(RunConfig, configs.to_dict(config) | kept)
    sources |= dict.fromkeys(kept, f"{folder.directory}")
  for section in ("tokens", "subject", "activations", "sae", "frontier", "analysis", "browser"):
    stage = dictionary if section == "sae" and folder.begun(dictionary) else section
    if record := folder.begun(stage):
      found = configs.from_dict(type(getattr(config, section)), record["config"])
      config = dataclasses.replace(config, **{section: found})
      sources[section] = f"{folder.directory / stage}"
  return Settings(name, config, sources)


def with_recipe(settings: Settings, recipe: str | None) -> Settings:
  """The settings with the dictionary's recipe replaced by another.

  The penalty, the groups and the resampling that the old recipe was given belong to it and are left behind; sizes,
  batches and numbers of steps stay. The frontier is at the same multiples of the other recipe's sparsity.
  """
  config = settings.config
  if recipe in (None, config.sae.recipe):
    return settings
  other = preset(settings.preset, recipe)
  shared = {field: getattr(config.sae, field) for field in SHARED}
  sae = dataclasses.replace(other.sae, **shared, k=min(other.sae.k, config.sae.n_features))
  return dataclasses.replace(settings, config=dataclasses.replace(config, sae=sae, frontier=other.frontier))


def remember(folder: RunFolder, settings: Settings, config: RunConfig, sections: typing.Iterable[str]) -> None:
  """Keeps the settings of `sections` in run.json, for the stages that have not begun yet.

  Args:
    folder: the run's folder.
    settings: what `remembered` gave.
    config: what the flags made of it.
    sections: those that the command knows; the others stay as `settings` has them.
  """
  path = folder.directory / "run.json"
  saved = files.read_record(path, without=1)
  kept = saved["config"] if saved else configs.to_dict(settings.config)
  kept = {**kept, **{section: configs.to_dict(getattr(config, section)) for section in sections
                     if not folder.begun(section)}}
  value = {"version": VERSION, "preset": settings.preset,
           "config": {section: kept[section] for section in _REMEMBERED}}
  if distributed.is_first() and (saved or {}) | {"version": VERSION} != value:
    files.write_record(path, value)


def stage_of_name(name: str, what: str) -> str:
  """The stage's folder of the dictionary (or, in `SWEEPS`, of the grid) that a user calls `name`.

  Raises:
    InputError: it is no name for a folder.
  """
  return f"{SWEEPS if what == '--sweep.name' else OTHERS}/{places.name(name, what)}"
