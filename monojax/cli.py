"""What every script does around its work: flags, one-line errors, exit codes."""

import dataclasses
import os
import sys
import traceback

from absl import app, flags, logging

from monojax import config as configs
from monojax.config import InputError
from monojax.host_memory import keep_freed_memory


def define_run_flags(fields=None):
  """Defines `--workdir`, `--preset` and a dotted flag for every setting of a run.

  Args:
    fields: names of the `RunConfig` fields whose settings become flags; all by default.
  """
  from monojax.pipeline.presets import PRESETS
  from monojax.pipeline.runs import RunConfig
  flags.DEFINE_string("workdir", None, "the run's folder; made if it is not there")
  flags.DEFINE_string("preset", "demo", f"defaults to start from: {', '.join(PRESETS)}")
  flags.DEFINE_string("coordinator", "", "HOST:PORT of the first of several processes that run this script "
                      "together (docs/scaling.md), or auto to learn all three from the cluster")
  flags.DEFINE_integer("num_processes", 1, "how many they are")
  flags.DEFINE_integer("process_id", 0, "which of them this is")
  for name in ("workdir", "preset", "coordinator", "num_processes", "process_id"):
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
  for field in dataclasses.fields(RunConfig):
    if fields is None or field.name in fields:
      configs.define_flags(field.type, f"{field.name}.", flags.FLAGS)


def run_and_config():
  """(`Run`, `RunConfig`) that the flags ask for.

  Raises:
    InputError: no workdir, no such preset, or a setting that breaks its rule.
  """
  from monojax.pipeline.presets import PRESETS, preset
  from monojax.pipeline.runs import Run
  values = flags.FLAGS
  configs.require(values.workdir, "--workdir", values.workdir, "name the run's folder")
  configs.require(values.preset in PRESETS, "--preset", values.preset, f"choose one of {', '.join(PRESETS)}")
  recipe = values["sae.recipe"].value if "sae.recipe" in values else None
  return Run(values.workdir), configs.override(preset(values.preset, recipe), values)


def define_study_flags(config_class):
  """Defines `--workdir` and a flag for every setting of a study, whose configuration is of that class."""
  flags.DEFINE_string("workdir", None, "the study's folder; made if it is not there")
  flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["workdir"])
  configs.define_flags(config_class, "", flags.FLAGS)


def study_run_and_config(config, inputs):
  """(`Run` of a study's stages, its configuration with the flags that were given).

  Args:
    config: the study's default configuration.
    inputs: (configuration) -> {stage: the stages it depends on}.

  Raises:
    InputError: no workdir, or a setting that breaks its rule.
  """
  from monojax.pipeline.runs import Run
  configs.require(flags.FLAGS.workdir, "--workdir", flags.FLAGS.workdir, "name the study's folder")
  config = configs.override(config, flags.FLAGS)
  return Run(flags.FLAGS.workdir, inputs(config)), config


def run_stage(stage):
  """The `main` of a script that does one stage and prints its figures."""
  def main():
    from monojax.pipeline.stages import STAGES
    run_, config = run_and_config()
    record = STAGES[stage](run_, config)
    print_figures(record["figures"])
  return main


def print_figures(figures):
  """Prints a dict of figures as two aligned columns."""
  width = max((len(name) for name in figures), default=0)
  for name, value in figures.items():
    shown = ("undefined" if value is None else value if isinstance(value, str)
             else f"{value:,.4f}" if isinstance(value, float) else f"{value:,}")
    print(f"{name:<{width}}  {shown}")


def run(main, keep_memory=lambda: True):
  """Runs `main()` after parsing flags, which the caller has defined.

  `keep_memory` is asked, once flags are parsed, whether to keep freed host memory (`host_memory`).
  Exits with 0, with 2 and one line on standard error for what the user gave (`InputError`), with 1 for
  a run that went wrong (`FloatingPointError`, a full disk), and with 130 when interrupted.
  """
  def guarded(arguments):
    if len(arguments) > 1:
      raise InputError(f"unexpected argument {arguments[1]!r}: options are --name=value, see --help")
    logging.set_verbosity(logging.WARNING)
    if keep_memory():
      keep_freed_memory()
    _join_job()
    main()

  try:
    app.run(guarded, flags_parser=_parse)
  except InputError as error:
    _exit(2, error)
  except BrokenPipeError:  # what reads the output, such as head, has seen enough
    sys.exit(0)
  except (FloatingPointError, OSError) as error:
    _exit(1, error)
  except KeyboardInterrupt:
    _exit(130, "interrupted; the same command goes on from the last checkpoint")
  except Exception:
    traceback.print_exc()
    from monojax import distributed
    distributed.leave(1)
    raise SystemExit(1) from None


def _join_job():
  """Joins the other processes, if there are any; only the first goes on printing."""
  if not flags.FLAGS["coordinator"].value if "coordinator" in flags.FLAGS else True:
    return
  from monojax import distributed, files
  distributed.start(flags.FLAGS.coordinator, flags.FLAGS.num_processes, flags.FLAGS.process_id)
  if files.written_elsewhere:
    sys.stdout = open(os.devnull, "w")


def _parse(arguments):
  """Parses flags; `--help` prints the script's docstring and its own flags."""
  try:
    return flags.FLAGS(arguments)
  except flags.Error as error:
    raise InputError(f"{error}; see --help") from error


def _exit(code, message):
  print(f"error: {message}", file=sys.stderr, flush=True)
  from monojax import distributed
  distributed.leave(code)
  sys.exit(code)
