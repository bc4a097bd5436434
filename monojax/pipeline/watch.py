"""A page that shows a run in progress: which stages are done, curves of what is being trained, and its newest features.

The page opens from disk. It is written once, and the file beside it with what it shows again and again; the page loads
that file every few seconds.
"""

import html
import importlib.resources
import json
import pathlib
import time
import typing

from monojax import files
from monojax.browser.build import static_files
from monojax.browser.scripts import call
from monojax.config import require
from monojax.pipeline.folder import OTHERS, STAGES, SWEEPS, RunFolder
from monojax.pipeline.newest import newest_features

FOLDER = "watch"
_POINTS = 400  # of a curve at most
_NOT_SHOWN = ("step", "sparse_fraction")


def write_page(run: RunFolder) -> pathlib.Path:
  """Writes the page into the run's folder `watch`, and what it shows now; `write_progress` brings that up to date.

  Raises:
    InputError: there is no such run.
  """
  require(run.directory.is_dir(), "workdir", str(run.directory), "there is no such folder")
  own = importlib.resources.files("monojax.browser").joinpath("watched")
  page = own.joinpath("watch.html").read_text("utf-8").replace("{{title}}", html.escape(run.directory.resolve().name))
  for name, text in {**static_files(), "watch.js": own.joinpath("watch.js").read_text("utf-8")}.items():
    page = page.replace("{{" + name + "}}", text)
  write_progress(run)
  files.write_unless_same(run.directory / FOLDER / "index.html", page.encode())
  return run.directory / FOLDER / "index.html"


def write_progress(run: RunFolder, before: dict[str, typing.Any] | None = None) -> dict[str, typing.Any]:
  """Writes what the page shows, and returns it; see `progress_of`."""
  found = progress_of(run, before)
  with files.replacing(run.directory / FOLDER / "progress.js") as file:
    file.write(call("watch.register", found).encode())
  return found


def progress_of(run: RunFolder, before: dict[str, typing.Any] | None = None) -> dict[str, typing.Any]:
  """What there is to be seen of a run.

  Args:
    run: the run's folder.
    before: what was seen last time, of which is kept what has not changed and would take long.

  Returns:
    {"title"; "time"; "stages": [{"name", "state": done, begun or waiting, "seconds" or None}]; "logs": for each
    training whose log is there, those that are going on first, {"name", "step", "n_steps" or None, "curves": {name:
    [[step, value], ...]}}}. The newest training of a dictionary has "features", too: see `newest_features`.
  """
  stages = [_stage(run, name) for name in STAGES]
  logs = sorted((path for pattern in ("subject", "sae", "frontier", f"{OTHERS}/*", f"{SWEEPS}/*")
                 for path in run.directory.glob(f"{pattern}/metrics.jsonl")), key=lambda path: -path.stat().st_mtime)
  stages += [_stage(run, name) for path in logs
             if (name := path.parent.relative_to(run.directory).as_posix()) not in STAGES]
  shown = [log for path in logs if (log := _log(run, path))]
  last = {log["name"]: log.get("features") for log in (before or {}).get("logs", ())}
  for log in shown:
    if log["name"] == "sae" or log["name"].startswith(f"{OTHERS}/"):
      log["features"] = newest_features(run, log["name"], last.get(log["name"]))
      break
  return {"title": run.directory.resolve().name, "time": time.strftime("%H:%M:%S"), "stages": stages, "logs": shown}


def _stage(run: RunFolder, name: str) -> dict[str, typing.Any]:
  record = run.begun(name)
  state = "waiting" if record is None else "done" if record["complete"] else "begun"
  return {"name": name, "state": state, "seconds": record["seconds"] if record and record["complete"] else None}


def _log(run: RunFolder, path: pathlib.Path) -> dict[str, typing.Any] | None:
  """The curves of one log, of which some points are left out where there are many; None where it has no line yet."""
  records = []
  for line in path.read_text("utf-8").splitlines():
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:  # the line that is being written
      continue
  if not records:
    return None
  name = path.parent.relative_to(run.directory).as_posix()
  begun = run.begun(name)
  shown = [*records[::-(-len(records) // _POINTS)], records[-1]]
  names = dict.fromkeys(key for record in records for key in record if key not in _NOT_SHOWN)
  curves = {key: [[record["step"], record[key]] for record in shown if record.get(key) is not None] for key in names}
  return {"name": name, "step": records[-1]["step"], "n_steps": begun and begun["config"].get("n_steps"),
          "curves": {key: points for key, points in curves.items() if points}}
