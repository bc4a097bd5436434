"""Metrics as JSON lines (and, where asked for, TensorBoard and Weights & Biases); progress bars."""

import dataclasses
import json
import os
import pathlib
import sys
import uuid

import tqdm

from monojax import distributed, files
from monojax.config import InputError, option


@dataclasses.dataclass(frozen=True)
class MetricsConfig:
  """Where metrics go besides `metrics.jsonl`, which is always written."""
  tensorboard: bool = option(False, "also write TensorBoard event files beside metrics.jsonl "
                                    "(pip install 'monojax[tensorboard]')")
  wandb_project: str = option("", "also log to this Weights & Biases project "
                                  "(pip install 'monojax[wandb]')")


def progress(total, unit, description, initial=0, scale=False):
  """A progress bar on standard error with rate and ETA: `bar.update(n)`, `bar.set_postfix(...)`.

  Args:
    total: what counts as done, in `unit`s.
    unit: for instance "step" or "row".
    description: the stage.
    initial: what an earlier call had done.
    scale: print 1.2M for 1,200,000.
  """
  interactive = sys.stderr.isatty()
  return tqdm.tqdm(total=total, unit=f" {unit}", desc=description, initial=initial, unit_scale=scale,
                   dynamic_ncols=interactive, mininterval=0.5 if interactive else 10.0,
                   smoothing=0.1, leave=True, disable=not distributed.is_first())


def seconds_trained(path, unit, units_per_step):
  """The time that the calls logged in a `metrics.jsonl` took, however often training was interrupted.

  Args:
    path: the file.
    unit: of its rates, "rows" or "tokens".
    units_per_step: how many of them a step used.
  """
  seconds, before = 0.0, 0
  for line in pathlib.Path(path).read_text("utf-8").splitlines():
    record = json.loads(line)
    if f"{unit}_per_second" in record:
      seconds += (record["step"] - before) * units_per_step / record[f"{unit}_per_second"]
      before = record["step"]
  return seconds


class MetricsLog:
  """Appends one JSON object a line; on resuming, lines after the resumed step are dropped."""

  def __init__(self, path, config, first_step):
    """Opens `path` for a run whose next step is `first_step`.

    Raises:
      InputError: a configured extra is not installed.
    """
    self.path = pathlib.Path(path)
    self._tensorboard = self._wandb = None
    if not distributed.is_first():
      self._file = open(os.devnull, "a")
      return
    kept = []
    if self.path.exists():
      for line in self.path.read_text("utf-8").splitlines():
        try:
          record = json.loads(line)
        except json.JSONDecodeError:  # the last line of a killed process
          continue
        if record["step"] < first_step:
          kept.append(line + "\n")
    with files.replacing(self.path) as file:
      file.write("".join(kept).encode())
    self._file = open(self.path, "a")
    if config.tensorboard:
      try:
        import tensorboardX
      except ImportError as error:
        raise InputError("--metrics.tensorboard needs: pip install 'monojax[tensorboard]'") from error
      self._tensorboard = tensorboardX.SummaryWriter(str(self.path.parent / "tensorboard"),
                                                     purge_step=first_step)
    if config.wandb_project:
      try:
        import wandb
      except ImportError as error:
        raise InputError("--metrics.wandb_project needs: pip install 'monojax[wandb]'") from error
      id_path = self.path.parent / "wandb_id.json"  # so that a resumed stage goes on in the same run
      if first_step <= 1 or not id_path.exists():
        files.write_json(id_path, uuid.uuid4().hex[:12])
      self._wandb = wandb.init(project=config.wandb_project, dir=str(self.path.parent), resume="allow",
                               id=files.read_json(id_path), name="-".join(self.path.parent.parts[-2:]))

  def write(self, step, values):
    """Logs a dict of floats at `step`."""
    self._file.write(json.dumps({"step": step, **values}) + "\n")
    self._file.flush()
    if self._tensorboard:
      for name, value in values.items():
        self._tensorboard.add_scalar(name, value, step)
    if self._wandb:
      self._wandb.log(values, step=step)

  def close(self):
    """Flushes and closes every writer."""
    self._file.close()
    if self._tensorboard:
      self._tensorboard.close()
    if self._wandb:
      self._wandb.finish()
