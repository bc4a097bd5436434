"""What goes wrong while text is read but does not stop the reading: it is counted, and told at the end."""

import typing
from collections.abc import Iterable

from monojax.config import InputError

_FIELDS_REMEMBERED = 20  # names of fields that an error message lists at most


class Problems:
  """What was skipped or repaired while reading: how many problems of each kind there were, and where the first was.

  Attributes:
    counts: {kind of problem: how many there were}.
    first: {kind of problem: where the first was}.
    fields: names of fields of records, for messages.
    n_records: how many records (JSON lines, rows of tables) were read.
    n_labelled: how many of them have the field of the domain.
    opened: the names of the sources that were opened.
  """

  def __init__(self) -> None:
    self.counts: dict[str, int] = {}
    self.first: dict[str, str] = {}
    self.fields: set[str] = set()
    self.n_records = 0
    self.n_labelled = 0
    self.opened: set[str] = set()

  def add(self, kind: str, location: str) -> None:
    """Counts one problem; `location` says where it is, for instance "file:line"."""
    self.counts[kind] = self.counts.get(kind, 0) + 1
    self.first.setdefault(kind, location)

  def saw_fields(self, names: Iterable[str]) -> None:
    """Remembers some names of a record's fields, so that an error message can list them."""
    if len(self.fields) < _FIELDS_REMEMBERED:
      self.fields.update(sorted(names)[:_FIELDS_REMEMBERED])

  def summary(self) -> dict[str, dict[str, typing.Any]]:
    """The problems for JSON: {kind: {"count": number, "first": "file:line"}}."""
    return {kind: {"count": n, "first": self.first[kind]} for kind, n in sorted(self.counts.items())}

  def message(self) -> str:
    """The problems as one line for people, which is empty where there were none."""
    lines = [f"{n} x {kind} (first: {self.first[kind]})" for kind, n in sorted(self.counts.items())]
    return "; ".join(lines)

  def no_documents(self) -> InputError:
    """The error for a corpus in which no document can be used."""
    cause = self.message() or "the files hold no text"
    if self.fields:
      cause += f"; {self._fields_seen()} (choose with --tokens.text_field)"
    return InputError(f"tokens.paths: no usable document: {cause}")

  def no_label(self, field: str) -> InputError:
    """The error for a corpus of which no record has the field that the domain is to be read from."""
    seen = self._fields_seen() if self.fields else "plain text has no fields"
    return InputError(f"tokens.domain_field={field!r}: none of the {self.n_records} records read has this field; "
                      f"{seen}: give one of these, or --tokens.domain_field= to label documents by their file")

  def _fields_seen(self) -> str:
    return f"fields seen: {', '.join(sorted(self.fields))}"
