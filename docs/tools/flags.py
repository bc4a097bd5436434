"""Every flag of every command, read from the code that defines it; the reference page and a test use it.

A run's settings are the fields of its configuration dataclasses: `run_settings` walks them, so that a table of flags
cannot differ from what the commands accept. What a script defines besides comes from the script's own `--helpxml`.
"""

import contextlib
import dataclasses
import io
import pathlib
import runpy
import sys
import typing
import xml.etree.ElementTree

from monojax import config as configs

ROOT = pathlib.Path(__file__).parent.parent.parent
EXPERIMENTS = ROOT / "experiments"


@dataclasses.dataclass(frozen=True)
class Flag:
  """One flag.

  Attributes:
    name: without the leading dashes.
    default: as a user would type it; empty where there is none.
    help: one or two sentences.
    choices: allowed values, if only some are.
  """
  name: str
  default: str
  help: str
  choices: tuple = ()


def typed(value):
  """A setting's value as one would type it after `--flag=`."""
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, list | tuple):
    return ",".join(map(typed, value))
  return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def settings(config, prefix=""):
  """[`Flag`] of a configuration's fields, depth first; the defaults are the values that `config` has."""
  found = []
  types = typing.get_type_hints(type(config))
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(types[field.name]):
      found += settings(value, f"{prefix}{field.name}.")
    else:
      rule = field.metadata["rule"]
      within = isinstance(rule, configs.Bounds)
      found.append(Flag(prefix + field.name, typed(value), field.metadata["help"] + (f" ({rule})" if within else ""),
                        () if within else tuple(rule or ())))
  return found


def run_settings(config):
  """{stage: [`Flag`]} of a `RunConfig`."""
  return {field.name: settings(getattr(config, field.name), f"{field.name}.") for field in dataclasses.fields(config)}


def script_flags(script):
  """[`Flag`] that a script accepts, without those that absl adds to every script.

  The script runs here up to the point where it prints its flags, and what it has defined is then taken back.
  """
  from absl import app, flags
  app.define_help_flags()  # absl does so once a process: without this, the first script's would be taken back, too
  before, arguments, printed = set(flags.FLAGS), sys.argv, io.StringIO()
  sys.argv = [str(script), "--helpxml"]
  try:
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
      runpy.run_path(str(script), run_name="__main__")
  finally:
    sys.argv = arguments
    for name in set(flags.FLAGS) - before:
      delattr(flags.FLAGS, name)
  text = lambda flag, name: (flag.findtext(name) or "").strip()
  found = {}
  for flag in xml.etree.ElementTree.fromstring(printed.getvalue()).iter("flag"):
    if text(flag, "name") not in before:
      found[text(flag, "name")] = Flag(text(flag, "name"), text(flag, "default"), text(flag, "meaning"),
                                       tuple(value.text for value in flag.iter("enum_value")))
  return list(found.values())


def scripts():
  """The scripts of experiments/ that have flags."""
  return [path for path in sorted(EXPERIMENTS.glob("*.py")) if "__main__" in path.read_text()]
