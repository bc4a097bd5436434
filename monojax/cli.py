"""The command line: flags from settings, help with the defaults in force, one-line errors, exit codes.

`monojax NAME ...`, `python -m monojax NAME ...` and `python experiments/NAME.py ...` are the same command, each of
which is a row in `monojax/commands.py`.
"""

import dataclasses
import logging as python_logging
import os
import sys
import traceback
import typing

from absl import app, flags, logging

import monojax
from monojax import config as configs
from monojax import ending
from monojax.compiled import keep_compiled_programs
from monojax.config import InputError
from monojax.host_memory import keep_freed_memory

if typing.TYPE_CHECKING:
  from monojax.pipeline.config import RunConfig
  from monojax.pipeline.folder import RunFolder

# Flags that were called otherwise in version 0.1: the old name still works.
_RENAMED_SECTIONS, _RENAMED = {"text": "tokens"}, {"subject.model.n_context": "subject.n_context"}


@dataclasses.dataclass(frozen=True)
class Command:
  """One command.

  Attributes:
    what: one sentence, for the list of commands.
    doc: the help text; "{command}" in it is replaced by how the command was called.
    main: does it, once flags are parsed.
    sections: sections of `RunConfig` whose settings are flags; () for a command that is not about a run.
    only: {section: its settings that are flags}, for sections of which not all are.
    define: defines further flags.
    keep_memory: whether freed host memory is kept (see `host_memory`); asked once flags are parsed.
    preset: the preset that a new run starts from, unless the user names another.
  """
  what: str
  doc: str
  main: typing.Callable[[], None]
  sections: tuple[str, ...] = ()
  only: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  define: typing.Callable[[], None] = lambda: None
  keep_memory: typing.Callable[[], bool] = lambda: True
  preset: str = "demo"


def main() -> None:
  """The installed command `monojax`: the first argument names the command, the rest are its flags."""
  from monojax.commands import COMMANDS
  arguments = sys.argv[1:]
  if not arguments or arguments[0] in ("help", "-h", "-help", "--help", "--helpfull"):
    width = max(map(len, COMMANDS))
    print("monojax: dictionary learning on neural-network activations\n\nusage: monojax COMMAND [--flag=value ...]\n")
    print("\n".join(f"  {name:<{width}}  {command.what}" for name, command in COMMANDS.items()))
    print("\n`monojax COMMAND --help` explains a command and its flags.")
    return
  if arguments[0] == "--version":
    print(monojax.__version__)
    return
  if arguments[0] not in COMMANDS:
    _exit(2, f"there is no command {arguments[0]!r}; the commands are {', '.join(COMMANDS)}")
  sys.argv = [f"monojax {arguments[0]}", *arguments[1:]]
  run_command(arguments[0], f"monojax {arguments[0]}")


def run_command(name: str, called: str | None = None) -> None:
  """Does a command with the flags in `sys.argv`.

  Args:
    name: of `monojax.commands.COMMANDS`.
    called: how the user calls it; by default as the script `experiments/NAME.py`.
  """
  from monojax.commands import COMMANDS
  command = COMMANDS[name]
  sys.modules["__main__"].__doc__ = command.doc.replace("{command}", called or f"python experiments/{name}.py")
  if command.sections:
    define_run_flags(command.sections, command.only, command.preset)
  command.define()
  run(command.main, command.keep_memory)


def own(holder: typing.Any) -> None:
  """Has `--help` list a flag that is defined here."""
  flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[holder.name])


def define_run_flags(sections: typing.Iterable[str], only: dict[str, tuple[str, ...]] | None = None,
                     default_preset: str = "demo") -> None:
  """Defines `--workdir`, `--preset`, those of a job, and a dotted flag for every setting of some sections.

  Each flag's help says which default is in force, given the `--workdir` and `--preset` among the arguments, and who has
  set it.
  """
  from monojax.pipeline.presets import PRESETS
  flags.DEFINE_string("workdir", None, "the run's folder; it is made if it does not exist")
  flags.DEFINE_string("preset", None, f"the settings to start from: {', '.join(PRESETS)} (default: what the run was "
                      f"begun with, or {default_preset})")
  flags.DEFINE_string("coordinator", "", "where several processes do a run together: HOST:PORT of the first one, or "
                      "auto to learn this and the next two from the cluster")
  flags.DEFINE_integer("num_processes", 1, "how many processes there are")
  flags.DEFINE_integer("process_id", 0, "which of them this is, from 0")
  for name in ("workdir", "preset", "coordinator", "num_processes", "process_id"):
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
  shown = _shown_defaults(default_preset)
  for section in sections:
    values, source = shown[section]
    configs.define_flags(type(values), f"{section}.", flags.FLAGS, values, source, (only or {}).get(section))
  _define_old_names()


def _define_old_names() -> None:
  """Accepts flags by the names that they had in version 0.1; `--help` does not list those."""
  known = list(flags.FLAGS)
  pairs = dict(_RENAMED)
  for old, new in _RENAMED_SECTIONS.items():
    pairs |= {f"{old}.{name.removeprefix(new + '.')}": name for name in known if name.startswith(f"{new}.")}
  for old_name, name in pairs.items():
    if name in known:
      flags.DEFINE_alias(old_name, name)


def _shown_defaults(default_preset: str) -> dict[str, tuple[typing.Any, str]]:
  """{section: (its settings in force, who set them)}, as far as the arguments tell before they are parsed."""
  from monojax.pipeline.folder import RunFolder
  from monojax.pipeline.settings import remembered, with_recipe
  given = {name: value for name, _, value in (argument.lstrip("-").partition("=") for argument in sys.argv[1:])}
  try:
    settings = remembered(RunFolder(given["workdir"]) if given.get("workdir") else None, given.get("preset"),
                          default=default_preset)
    settings = with_recipe(settings, given.get("sae.recipe"))
  except (InputError, OSError):  # parsing the flags says what is wrong
    settings = remembered(None, default=default_preset)
  return {field.name: (getattr(settings.config, field.name), settings.sources[field.name])
          for field in dataclasses.fields(settings.config)}


def run_and_config(dictionary: str = "sae", default_preset: str = "demo") -> "tuple[RunFolder, RunConfig]":
  """The run's folder and the settings that the flags ask for; settings that no flag names are the run's own.

  Args:
    dictionary: the stage whose settings the section `sae` starts from.
    default_preset: the preset that a new run starts from, unless the user names another.

  Raises:
    InputError: no workdir, no such preset, or a setting that breaks its rule.
  """
  from monojax.pipeline.folder import RunFolder
  from monojax.pipeline.settings import remember, remembered, with_recipe
  values = flags.FLAGS
  _require_workdir("name the run's folder")
  folder = RunFolder(values.workdir)
  settings = remembered(folder, values.preset, dictionary, default_preset)
  settings = with_recipe(settings, values["sae.recipe"].value if "sae.recipe" in values else None)
  config = configs.override(settings.config, values)
  if dictionary == "sae":
    known = {field.name for field in dataclasses.fields(config)}
    remember(folder, settings, config, known & {name.split(".")[0] for name in values if "." in name})
  return folder, config


def _require_workdir(rule: str) -> None:
  """Raises `InputError` unless there is a workdir, whose whole path is text: checkpoints cannot lie in another."""
  workdir = flags.FLAGS.workdir
  configs.require(workdir, "--workdir", workdir, rule)
  path = os.fsencode(os.path.abspath(workdir)).decode(errors="backslashreplace")
  configs.require(path == os.path.abspath(workdir), "--workdir", path, "the path must be UTF-8: rename the folder")


def define_study_flags(config_class: type, folder: str = "the study's folder; it is made if it does not exist") -> None:
  """Defines `--workdir`, the `folder` that its help says, and a flag for every setting of a study.

  The study's configuration is of the class that is given; a command on a finished run that has settings of its own
  counts as one.
  """
  flags.DEFINE_string("workdir", None, folder)
  flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["workdir"])
  configs.define_flags(config_class, "", flags.FLAGS, config_class(), "the study")


def study_run_and_config(config: configs.Config, stages: typing.Callable,
                         of: str = "study") -> "tuple[RunFolder, configs.Config]":
  """The folder of a study, and its configuration with the flags that were given.

  Args:
    config: the study's default configuration.
    stages: (configuration) -> {stage: the stages it reads}, or None for the stages of a run.
    of: what has the folder, for the error.

  Raises:
    InputError: no workdir, or a setting that breaks its rule.
  """
  from monojax.pipeline.folder import RunFolder
  _require_workdir(f"name the {of}'s folder")
  config = configs.override(config, flags.FLAGS)
  return RunFolder(flags.FLAGS.workdir, stages(config)), config


def print_figures(figures: dict) -> None:
  """Prints a dict of figures as two aligned columns."""
  width = max((len(name) for name in figures), default=0)
  for name, value in figures.items():
    shown = ("undefined" if value is None else value if isinstance(value, str)
             else f"{value:,.4f}" if isinstance(value, float) else f"{value:,}")
    print(f"{name:<{width}}  {shown}")


def run(main: typing.Callable[[], None], keep_memory: typing.Callable[[], bool] = lambda: True) -> None:
  """Runs `main()` after parsing flags, which the caller has defined.

  Exits with 0; with 2 and one line on standard error for something wrong that the user gave (`InputError`); with 1 and
  one line for a run or a machine that went wrong (`FloatingPointError`, a full disk); and with 130 when interrupted.

  Args:
    main: what to do.
    keep_memory: is asked, once flags are parsed, whether to keep freed host memory (`host_memory`).
  """
  def guarded(arguments):
    if len(arguments) > 1:
      raise InputError(f"unexpected argument {arguments[1]!r}: options are --name=value, see --help")
    # What fails in a thread of a library is logged there and raised here: it is said once.
    logging.set_verbosity(logging.FATAL)
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)
    keep_compiled_programs()
    if keep_memory():
      keep_freed_memory()
    _join_job()
    main()

  try:
    app.run(guarded, argv=sys.argv, flags_parser=_parse)
  except KeyboardInterrupt:
    ending.interrupted()
  except Exception as error:
    _fail(error)


def _fail(error: Exception) -> typing.NoReturn:
  """Says what went wrong, and ends with the exit status for it."""
  if isinstance(error, InputError):
    _exit(2, error)
  if isinstance(error, BrokenPipeError):  # what reads the output, such as head, has seen enough
    sys.exit(0)
  if isinstance(error, FloatingPointError):
    _exit(1, error)
  if isinstance(error, OSError):
    _exit(1, ending.described(error))
  traceback.print_exception(error)
  from monojax import distributed
  distributed.leave(1)
  sys.exit(1)


def _join_job() -> None:
  """Joins the other processes of the job, if there are any; only the first goes on printing."""
  if "coordinator" not in flags.FLAGS or not flags.FLAGS["coordinator"].value:
    return
  from monojax import distributed
  distributed.start(flags.FLAGS.coordinator, flags.FLAGS.num_processes, flags.FLAGS.process_id)
  if not distributed.is_first():
    sys.stdout = open(os.devnull, "w")


def _parse(arguments: list[str]) -> list[str]:
  """Parses flags; `--help` prints the command's text and its own flags."""
  try:
    return flags.FLAGS(arguments)
  except flags.Error as error:
    raise InputError(f"{error}; see --help") from error


def _exit(code: int, message: typing.Any) -> typing.NoReturn:
  print(f"error: {' '.join(str(message).splitlines())}", file=sys.stderr, flush=True)
  from monojax import distributed
  distributed.leave(code)
  sys.exit(code)
