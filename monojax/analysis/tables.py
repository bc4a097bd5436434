"""The result of an analysis: arrays with one entry for each feature of a dictionary, saved and loaded whole."""

import dataclasses
import functools
import os
import pathlib
import typing
import warnings

import numpy as np

from monojax import files
from monojax.analysis import characters
from monojax.analysis.columns import COLUMNS, axes_of
from monojax.config import InputError, require

# The groups of examples on a feature's page, in order, and how many examples each holds: the paper's
# published pages (Towards Monosemanticity, "Feature Activation Distributions").
EXAMPLE_GROUPS = (("Top activations", 20),
                  *((f"Interval {i}", 5) for i in range(11)),
                  ("Bottom activations", 20))
N_EXAMPLES = sum(size for _, size in EXAMPLE_GROUPS)

# What `features.json` can hold.
_FIELDS = {"token_strings", "domains", "summary", "token_bytes", "labels", "other_labels"}
REGULAR, ULTRALOW, DEAD, FAINT = 0, 1, 2, 3  # the values of `status_F`; `columns.STATUSES` has their names


@dataclasses.dataclass(frozen=True)
class FeatureTables:
  """What an analysis found out about each feature of a dictionary.

  `tables.density_F` is the column of that name. `monojax.analysis.columns.COLUMNS` says what each column is, and which
  of them an analysis may lack; `tables.has("top_logit_ids_FK")` says whether this one has it.

  Attributes:
    columns: the arrays by name. A column that `COLUMNS` does not describe is kept as it is.
    token_strings: a string for each token id; bytes that are not whole characters read like `\\xd8`. Empty where the
      analysis knows no tokens.
    domains: names of the D domains of the analysed text; empty where it has no labels.
    summary: facts about the whole dictionary for the page about the run, ready for JSON: see
      `monojax.analysis.analyze`.
    token_bytes: the bytes of those tokens that are not whole characters, by id. None where they are not known, as in
      analyses that monojax before 0.2 made; they are then read from `token_strings`, see `partial_tokens`.
    labels: what each feature fires on, in words, "" where no words were found; `label_score_F` says how well they
      predict. Empty where the analysis has no labels.
    other_labels: for each feature the labels that were next best, as [text, score]; empty where there are none.

  Raises:
    InputError: a column that every analysis has is missing, one has another type than `COLUMNS` says, one lacks a
      column that belongs to it, or axes of the same letter differ in length.
  """
  columns: dict[str, np.ndarray]
  token_strings: list[str]
  domains: list[str]
  summary: dict
  token_bytes: dict[int, bytes] | None = None
  labels: list[str] = dataclasses.field(default_factory=list)
  other_labels: list[list[list]] = dataclasses.field(default_factory=list)

  def __post_init__(self) -> None:
    _check_described(self.columns)
    _check_axes(self.columns, len(self.domains))
    require(isinstance(self.labels, list) and all(isinstance(text, str) for text in self.labels), "labels",
            type(self.labels).__name__, "must be a list of strings")
    for name, found in (("labels", self.labels), ("other_labels", self.other_labels)):
      require(len(found) in (0, self.n_features), name, len(found),
              f"must be none, or one for each of the {self.n_features} features")

  def __getattr__(self, name: str) -> np.ndarray:
    if name.startswith("__") or name == "columns":  # as when a copy asks an object that has no fields yet
      raise AttributeError(name)
    if name in self.columns:
      return self.columns[name]
    for column in COLUMNS:
      if column.name == name:
        raise AttributeError(f"this analysis has no {name}: an analysis lacks it where {column.lacking}")
    raise AttributeError(f"there is no feature column {name}; this analysis has {', '.join(self.columns)}")

  def __dir__(self) -> list[str]:
    return [*super().__dir__(), *self.columns]

  def has(self, name: str) -> bool:
    """Whether this analysis has the column `name`."""
    return name in self.columns

  @property
  def n_features(self) -> int:
    """The number of features, F."""
    return len(self.columns["status_F"])

  @functools.cached_property
  def partial_tokens(self) -> dict[int, bytes]:
    """The bytes of those tokens that are not whole characters, by id."""
    return characters.partial_tokens(self.token_strings) if self.token_bytes is None else self.token_bytes

  def pieces(self, ids_W: np.ndarray) -> list[characters.Piece]:
    """The text of an example's tokens, `example_tokens_FEW[feature, example]`, joined where they share a character."""
    return characters.window_pieces(ids_W, self.token_strings, self.partial_tokens)

  def save(self, directory: str | os.PathLike) -> None:
    """Writes `features.npz` and `features.json` into `directory`, each whole or not at all."""
    directory = pathlib.Path(directory)
    files.write_npz(directory / "features.npz", self.columns)
    fields: dict[str, typing.Any] = {"token_strings": self.token_strings, "domains": self.domains,
                                     "summary": self.summary}
    if self.token_bytes is not None:
      fields["token_bytes"] = {str(token): value.hex() for token, value in self.token_bytes.items()}
    if self.labels:
      fields["labels"] = self.labels
    if self.other_labels:
      fields["other_labels"] = self.other_labels
    files.write_record(directory / "features.json", fields)

  @classmethod
  def load(cls, directory: str | os.PathLike) -> "FeatureTables":
    """Reads what `save` of this or an earlier version wrote; warns of columns and fields that are not known here.

    Raises:
      InputError: `directory` holds no analysis, or what it holds contradicts itself.
    """
    directory = pathlib.Path(directory)
    fields = files.read_record(directory / "features.json")
    if fields is None or not (directory / "features.npz").is_file():
      raise InputError(f"{directory} holds no analysis, which is features.npz and features.json: run the stage "
                       "`analyze`, or give another folder")
    columns = files.read_npz(directory / "features.npz")
    known = {column.name for column in COLUMNS}
    for kind, unknown in (("columns", sorted(set(columns) - known)),
                          ("fields", sorted(set(fields) - _FIELDS))):
      if unknown:
        warnings.warn(f"the analysis in {directory} has {kind} that this version of monojax does not know: "
                      f"{', '.join(unknown)}; " + ("they are kept as they are" if kind == "columns" else
                                                   "they are left out"), stacklevel=2)
    return cls(columns, fields.get("token_strings", []), fields.get("domains", []), fields.get("summary", {}),
               _token_bytes(directory, fields.get("token_bytes")), fields.get("labels", []),
               fields.get("other_labels", []))


def _token_bytes(directory: pathlib.Path, written: typing.Any) -> dict[int, bytes] | None:
  """What `save` wrote of the tokens' bytes, in hexadecimal digits, read back; None where it wrote nothing."""
  try:
    return written if written is None else {int(token): bytes.fromhex(value) for token, value in written.items()}
  except (AttributeError, TypeError, ValueError) as error:
    raise InputError(f"{directory / 'features.json'}: token_bytes must be hexadecimal digits by token id ({error}): "
                     "run the stage `analyze` again") from error


def _check_described(columns: dict[str, np.ndarray]) -> None:
  """Raises `InputError` unless the columns that `COLUMNS` describes are as it says."""
  missing = [column.name for column in COLUMNS if not column.lacking and column.name not in columns]
  if missing:
    raise InputError(f"the feature columns {', '.join(missing)} are missing, which every analysis must have")
  for column in COLUMNS:
    if column.name in columns:
      dtype = str(columns[column.name].dtype)
      require(dtype == column.dtype, f"{column.name}.dtype", dtype, f"must be {column.dtype}")
      absent = [name for name in column.beside if name not in columns]
      if absent:
        raise InputError(f"the feature column {column.name} needs {', '.join(absent)} beside it, which the tables lack")


def _check_axes(columns: dict[str, np.ndarray], n_domains: int) -> None:
  """Raises `InputError` where an array's shape is not what its name says, or axes of one letter differ in length."""
  lengths = {"D": (n_domains, "the list of domains")}
  known = {column.name for column in COLUMNS}
  for name, array in columns.items():
    axes = axes_of(name)
    if axes[:1] != ("F",) and name not in known:
      continue  # a later version's array, whose meaning is not known here
    require(array.ndim == len(axes), f"{name}.shape", array.shape, f"must have the {len(axes)} axes of its name")
    for axis, length in zip(axes, array.shape, strict=True):
      wanted, source = lengths.setdefault(axis, (int(axis), "its name") if axis.isdigit() else (length, name))
      require(length == wanted, f"{name}.shape", array.shape, f"axis {axis} must have length {wanted}, as {source} has")
