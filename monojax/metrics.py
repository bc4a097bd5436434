"""Where the metrics of training go: lines of JSON, and if asked for TensorBoard and Weights & Biases; progress bars."""

import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import sys
import uuid
from collections.abc import Mapping
from typing import Any

import tqdm

from monojax import distributed, files
from monojax.config import InputError, option, require_rules


@dataclasses.dataclass(frozen=True)
class MetricsConfig:
  """Where metrics go besides `metrics.jsonl`, which is always written."""
  tensorboard: bool = option(False, "whether to write TensorBoard event files beside metrics.jsonl, too "
                                    "(needs: pip install 'monojax[tensorboard]')")
  wandb_project: str = option("", "the Weights & Biases project to log to, too; none by default "
                                  "(needs: pip install 'monojax[wandb]')")

  def __post_init__(self) -> None:
    require_rules(self, "metrics.")


def require_packages(config: MetricsConfig) -> None:
  """Raises `InputError` if a package that the settings need is not installed."""
  for field, package, extra in (("tensorboard", "tensorboardX", "tensorboard"), ("wandb_project", "wandb", "wandb")):
    if getattr(config, field) and importlib.util.find_spec(package) is None:
      raise InputError(f"--metrics.{field} needs a package that is not installed: pip install 'monojax[{extra}]'")


def progress(total: int | None, unit: str, description: str, initial: int = 0, scale: bool = False,
             hidden: bool = False) -> Any:
  """A progress bar of tqdm on standard error, with its rate and the time left.

  Only the first process of a job shows it. Call `bar.update(n)` when n more units are done.

  Args:
    total: the number of units when all is done, or None where it is not known.
    unit: what is counted, for instance "step" or "row".
    description: what is being done, shown in front of the bar.
    initial: the number of units that were done before the bar was made.
    scale: whether numbers are shortened, as in 1.2M for 1,200,000.
    hidden: whether it is not shown, for work that is too short to watch.
  """
  interactive = sys.stderr.isatty()
  return tqdm.tqdm(total=total, unit=f" {unit}", desc=description, initial=initial, unit_scale=scale,
                   dynamic_ncols=interactive, mininterval=0.5 if interactive else 10.0,
                   smoothing=0.1, leave=True, disable=hidden or not distributed.is_first())


def seconds_trained(path: str | os.PathLike[str], unit: str, units_per_step: int) -> float:
  """The seconds that the steps logged in a `metrics.jsonl` took, however often training was interrupted.

  Args:
    path: the file.
    unit: what the rates in it count, "rows" or "tokens".
    units_per_step: how many of these units one step used.
  """
  seconds, before = 0.0, 0
  for line in pathlib.Path(path).read_text("utf-8").splitlines():
    record = json.loads(line)
    if f"{unit}_per_second" in record:
      seconds += (record["step"] - before) * units_per_step / record[f"{unit}_per_second"]
      before = record["step"]
  return seconds


class MetricsLog:
  """A log of metrics: a file with one JSON object on each line, and other places if settings ask for them.

  When training resumes, lines of steps that it is about to do again are dropped. In a job of several processes only the
  first one writes.
  """

  def __init__(self, path: str | os.PathLike[str], config: MetricsConfig, first_step: int,
               settings: Mapping[str, Any] | None = None) -> None:
    """Opens the log of a training whose next step is `first_step`.

    Args:
      path: the file, which is made if it does not exist.
      config: the other places that metrics go to.
      first_step: the next step's number, from 1 on.
      settings: what is trained, ready for JSON; TensorBoard shows it as the text "config", Weights & Biases as the
        run's config.

    Raises:
      InputError: a package that the settings need is not installed.
    """
    require_packages(config)
    self.path = pathlib.Path(path)
    self._tensorboard: Any = None
    self._wandb: Any = None
    if not distributed.is_first():
      self._file = open(os.devnull, "a")
      return
    kept = []
    if self.path.exists():
      for line in self.path.read_text("utf-8").splitlines():
        try:
          record = json.loads(line)
        except json.JSONDecodeError:  # a process that was killed may leave half a line at the end
          continue
        if record["step"] < first_step:
          kept.append(line + "\n")
    with files.replacing(self.path) as file:
      file.write("".join(kept).encode())
    self._file = open(self.path, "a")
    if config.tensorboard:
      import tensorboardX
      self._tensorboard = tensorboardX.SummaryWriter(str(self.path.parent / "tensorboard"),
                                                     purge_step=first_step)
      if settings:
        self._tensorboard.add_text("config", f"```\n{json.dumps(settings, indent=1)}\n```", first_step - 1)
    if config.wandb_project:
      import wandb
      id_path = self.path.parent / "wandb_id.json"  # a resumed stage finds its id here and goes on under it
      if first_step <= 1 or not id_path.exists():
        files.write_json(id_path, uuid.uuid4().hex[:12])
      self._wandb = wandb.init(project=config.wandb_project, dir=str(self.path.parent), resume="allow",
                               config=dict(settings or {}), id=files.read_json(id_path),
                               name="-".join(self.path.parent.parts[-2:]))

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Logs metrics, {name: value}, under the number of a step.

    A value that is not finite is undefined: it is null in the file, since JSON has no NaN, and left out elsewhere.
    """
    defined = {name: value for name, value in values.items() if math.isfinite(value)}
    record = {"step": step, **{name: defined.get(name) for name in values}}
    with files.naming(self.path):
      self._file.write(json.dumps(record, allow_nan=False) + "\n")
      self._file.flush()
    if self._tensorboard:
      for name, value in defined.items():
        self._tensorboard.add_scalar(name, value, step)
    if self._wandb:
      self._wandb.log(defined, step=step)

  def close(self) -> None:
    """Writes what is still buffered, and closes the file and the other places."""
    with files.naming(self.path):
      self._file.close()
    if self._tensorboard:
      self._tensorboard.close()
    if self._wandb:
      self._wandb.finish()
