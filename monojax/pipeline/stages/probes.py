"""Probes of a dictionary's features for labels of texts; each data set is kept as soon as it is done."""

import dataclasses
import pathlib
import typing
from collections.abc import Sequence

from monojax import config as configs
from monojax import files
from monojax.analysis.config import ProbeConfig
from monojax.config import require
from monojax.pipeline import load
from monojax.pipeline.folder import OWN_DICTIONARY, RunFolder

if typing.TYPE_CHECKING:
  from monojax.analysis.labelled import Labelled
  from monojax.pipeline.loaded import LoadedRun

FOLDER = "probes"
_PROTOCOL = 1  # counted up when a result would come out otherwise with the same settings
_NAME_WIDTH = 34  # of the column of names


def probe(run: RunFolder, config: ProbeConfig, dictionary: str = OWN_DICTIONARY) -> list[dict]:
  """Probes a dictionary, and the controls beside it, on data sets of labelled texts, and prints a table.

  Results are in the folder `probes` of the dictionary's home: `points.csv` and `.json` with a row for each probe of
  this call, `summary.csv` and `.json` with the means over data sets, and `datasets/` with a record of each data set.
  A record is used again if the dictionary, the settings and the data set's content are those that it was made with.

  Args:
    run: the run's folder.
    config: the settings.
    dictionary: the name of the dictionary, by default the run's own.

  Returns:
    The rows of the summary; see `monojax.analysis.probes.summary`.

  Raises:
    InputError: scikit-learn is not installed; there is no such dictionary, or no subject; a data set is missing or
      has not two labels; or the context is longer than the subject can read.
  """
  from monojax.activations.owner import owned
  from monojax.analysis import labelled, probes
  probes.require_sklearn()
  loaded = load.load(run.directory, dictionary)
  limit = loaded.subject.max_context
  require(limit is None or config.context <= limit, "--context", config.context,
          f"this run's subject reads at most {limit} tokens at a time")
  config = dataclasses.replace(config, context=config.context or loaded.n_context)
  paths = labelled.find(config.datasets, config.only)
  sets = [labelled.read(path, config.max_rows) for path in paths]  # all of them, before the work on the first
  place = run.dictionary(dictionary)
  made_with = _made_with(run, config, place)
  home = run.directory / f"{place.home}{FOLDER}"
  points: list[dict] = []
  with owned(home):
    print(_heading(config.k))
    for texts in sets:
      wanted = {**made_with, "dataset": texts.name, "content": texts.fingerprint}
      points += (rows := _results(home / "datasets", wanted, loaded, config, texts))
      print(_line(texts.name, rows, config.k), flush=True)
    means = probes.summary(points)
    files.write_table(home / "points", points)
    files.write_table(home / "summary", means)
  print(_line(f"mean of {len(sets)}", means, config.k))
  if len(sets) > 1:
    print(_line("standard error", means, config.k, "test_auc_error"))
  return means


def _made_with(run, config, place) -> dict:
  """All that a result depends on, besides the data set."""
  settings = configs.to_dict(config)
  outputs = {stage: record["output"] for stage in ("tokens", "subject", place.stage) if (record := run.stage(stage))}
  return {"protocol": _PROTOCOL, "dictionary": place.name, "outputs": outputs,
          "settings": {name: settings[name] for name in sorted(settings) if name not in ("datasets", "only")}}


def _results(directory: pathlib.Path, wanted: dict, loaded: "LoadedRun", config: ProbeConfig,
             texts: "Labelled") -> list[dict]:
  """The rows of a data set, from its record if there is one that was made with what is `wanted`."""
  from monojax.analysis import probes
  path = directory / f"{texts.name}.{configs.fingerprint(wanted)}.json"
  if (record := files.read_record(path)) and record["made_with"] == wanted:
    return record["rows"]
  x_NM = _activations(loaded, config, texts)
  rows = [{"dataset": texts.name, **row} for row in
          probes.probe_dataset(x_NM, texts.y_N, loaded.sae.encode, config.k, config.regularisation, config.seed,
                                 f"{texts.name}, probes")]
  files.write_record(path, {"made_with": wanted, "rows": rows})
  return rows


def _activations(loaded: "LoadedRun", config: ProbeConfig, texts: "Labelled"):
  """What the dictionary reads at the last token of each text, (N, M)."""
  from monojax.analysis.last_token import last_activations
  from monojax.subjects.subject import LoadedSubject
  ids = [loaded.token_ids(text, keep_end=True, n_context=config.context) for text in texts.texts]
  subject = LoadedSubject(loaded.subject, loaded.subject_params, config.context)
  return last_activations(subject, loaded.reads, ids, f"{texts.name}, activations")


def _heading(ks: Sequence[int]) -> str:
  """The first two lines of the table."""
  groups = "".join(f"  {f'k = {k}':^20}" for k in ks)
  return (f"Test AUC\n{'':<{_NAME_WIDTH}}{'all':>7}{groups}".rstrip() + f"\n{'data set':<{_NAME_WIDTH}}{'neurons':>7}"
          + "  {:>6} {:>6} {:>6}".format("sae", "neur.", "rand.") * len(ks))


def _line(name: str, rows: Sequence[dict], ks: Sequence[int], value: str = "test_auc") -> str:
  """A line of the table: the dense probe, then for each k that on features, on neurons and on random features."""
  found = {(row["method"], row["k"]): row[value] for row in rows}
  cell = lambda method, k: f"{found[method, k]:.3f}"
  groups = "".join("  " + " ".join(f"{cell(method, k):>6}" for method in ("sae", "neurons", "random")) for k in ks)
  shown = name if len(name) < _NAME_WIDTH else name[:_NAME_WIDTH - 4] + "..."
  return f"{shown:<{_NAME_WIDTH}}{cell('dense', None):>7}{groups}"
