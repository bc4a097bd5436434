"""Configuration: settings as frozen dataclasses, which become flags and JSON by themselves.

The settings of a stage are a frozen dataclass whose fields are made with `option(default, help)`; a field can hold
another such dataclass, made with `nested`. `define_flags` makes a flag of each field, such as `--sae.n_features`. Each
flag's own default is `None`, which stands for "not given": the defaults are in the dataclasses and nowhere else.
`to_dict` and `from_dict` turn settings to JSON and back.
"""

import dataclasses
import hashlib
import json
import sys
import types as types_
import typing
from collections.abc import Callable, Mapping, Sequence

if typing.TYPE_CHECKING:
  from _typeshed import DataclassInstance

Config = typing.TypeVar("Config", bound="DataclassInstance")


class InputError(ValueError):
  """Something that a user gave is wrong; the message says what was given, what is needed and what to do.

  Commands print the message as one line and end with exit status 2 (`monojax/cli.py`).
  """


def option(default: typing.Any, help: str, choices: Sequence[str] | None = None) -> typing.Any:
  """A dataclass field for one setting: its default, a line of help, and the values it may take if they are few."""
  return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def nested(config_class: Callable[[], Config]) -> Config:
  """A dataclass field that holds another configuration, by default that configuration's own defaults."""
  return dataclasses.field(default_factory=config_class)


def require(condition: typing.Any, field: str, value: typing.Any, rule: str) -> None:
  """Raises `InputError` unless a condition holds.

  Args:
    condition: what must be true.
    field: the name of the setting, as the message says it, for instance "sae.k".
    value: the setting's value.
    rule: what is needed, for instance "must be positive".
  """
  if not condition:
    raise InputError(f"{field}={value!r}: {rule}")


def require_positive(config: typing.Any, prefix: str, *names: str) -> None:
  """Raises `InputError` for the first of the named fields that is not above 0; `prefix` precedes its name."""
  for name in names:
    require(getattr(config, name) > 0, prefix + name, getattr(config, name), "must be positive")


def require_not_negative(config: typing.Any, prefix: str, *names: str) -> None:
  """Raises `InputError` for the first of the named fields that is below 0; a field may also be None."""
  for name in names:
    require((getattr(config, name) or 0) >= 0, prefix + name, getattr(config, name), "must not be negative")


def require_choices(config: "DataclassInstance", prefix: str) -> None:
  """Raises `InputError` for the first field whose value is not one of its choices.

  Settings that are given as flags are checked by absl already; this checks those that are given in Python.
  """
  for field in dataclasses.fields(config):
    choices, value = field.metadata.get("choices"), getattr(config, field.name)
    require(not choices or value in choices, prefix + field.name, value, f"choose one of {', '.join(choices or ())}")


def _fields(config_class: typing.Any) -> list[tuple[dataclasses.Field, typing.Any]]:
  """Each field of a configuration class with its type, which is T for an optional field of type `T | None`."""
  types = typing.get_type_hints(config_class)
  plain = lambda kind: next((arg for arg in typing.get_args(kind) if isinstance(kind, types_.UnionType)
                             and arg is not type(None)), kind)
  return [(field, plain(types[field.name])) for field in dataclasses.fields(config_class)]


def define_flags(config_class: typing.Any, prefix: str, flag_values: typing.Any, values: typing.Any = None,
                 source: str = "", only: tuple[str, ...] | None = None) -> None:
  """Defines a flag for each plain field of a configuration class and of the configurations that it nests.

  Args:
    config_class: the configuration's dataclass.
    prefix: what precedes each field's name in its flag's, for instance "sae.".
    flag_values: absl's `flags.FLAGS`.
    values: the settings that are in force where a flag is not given; the help texts show their values.
    source: who has set those of `values` that are not the class's defaults, for instance "preset demo".
    only: the names of the fields that get a flag; by default all.
  """
  from absl import flags
  for field, field_type in _fields(config_class):
    name = prefix + field.name
    if only is not None and field.name not in only:
      continue
    if dataclasses.is_dataclass(field_type):
      define_flags(field_type, name + ".", flag_values, getattr(values, field.name, None), source)
      continue
    text = f"{field.metadata['help']} ({_default_text(field, values, source)})"
    item = typing.get_args(field_type)[0] if typing.get_origin(field_type) is tuple else field_type
    define: Callable[..., typing.Any]
    if typing.get_origin(field_type) is tuple:
      define = _define_tuple(item)
    elif field.metadata["choices"]:
      define = lambda *a, **k: flags.DEFINE_enum(a[0], a[1], field.metadata["choices"], *a[2:], **k)
    else:
      of_type: dict[type, Callable[..., typing.Any]] = {
          int: flags.DEFINE_integer, float: flags.DEFINE_float, bool: flags.DEFINE_boolean, str: flags.DEFINE_string}
      define = of_type[item]
    define(name, None, text, flag_values=flag_values)
    flag_values.register_key_flag_for_module(sys.argv[0], flag_values[name])


def _default_text(field: dataclasses.Field, values: typing.Any, source: str) -> str:
  """The value that a setting has where it is not given, and who has set it if it is not the class's default.

  A setting that is None in `values` takes the value that `values.resolved()` finds for it, for instance the recipe's.
  """
  value = getattr(values, field.name, field.default)
  if value is None and hasattr(values, "resolved"):
    return f"default: {json.dumps(getattr(values.resolved(), field.name))}, from the recipe {values.recipe}"
  return f"default: {json.dumps(value)}" + ("" if value == field.default else f", from {source}")


def _define_tuple(item: type) -> Callable[..., typing.Any]:
  """A function like absl's `DEFINE_string` for a list with commas between its items, of the type `item`."""
  from absl import flags

  class Parser(flags.ListParser):
    def parse(self, argument):
      values = super().parse(argument)
      try:
        return tuple(item(value) for value in values)
      except (TypeError, ValueError) as error:
        raise ValueError(f"not a comma-separated list of {item.__name__}: {argument!r}") from error

  def define(name, default, help, flag_values):
    flags.DEFINE(Parser(), name, default, help, flag_values, flags.ListSerializer(","))
  return define


def override(config: Config, flag_values: typing.Any, prefix: str = "") -> Config:
  """A configuration in which the value of every flag that was given takes the place of the field's.

  Args:
    config: the settings where no flag is given.
    flag_values: absl's `flags.FLAGS`, after parsing.
    prefix: what precedes each field's name in its flag's, for instance "sae.".
  """
  changes: dict[str, typing.Any] = {}
  for field, field_type in _fields(type(config)):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(field_type):
      changes[field.name] = override(value, flag_values, f"{prefix}{field.name}.")
      continue
    name = prefix + field.name
    if name in flag_values and flag_values[name].value is not None:
      changes[field.name] = flag_values[name].value
  return dataclasses.replace(config, **changes)


def to_dict(config: typing.Any) -> typing.Any:
  """A configuration as nested dicts that JSON can hold, in which tuples have become lists.

  A dict of configurations and plain values becomes a dict of what this function gives for each.
  """
  if isinstance(config, dict):
    return {name: to_dict(value) for name, value in config.items()}
  plain = dataclasses.asdict(config) if dataclasses.is_dataclass(config) and not isinstance(config, type) else config
  return json.loads(json.dumps(plain))


def from_dict(config_class: type[Config], values: dict[str, typing.Any]) -> Config:
  """The configuration that `to_dict` made these values of, in this version of monojax or in an older one.

  A field that `values` lacks takes its default. A class whose fields were renamed or moved has a static method
  `upgraded(values) -> values`, which turns old values into new ones.

  Args:
    config_class: the class of the configuration.
    values: what `to_dict` returned, also by way of a JSON file.

  Raises:
    InputError: `values` has a field that this version does not know.
  """
  upgraded = getattr(config_class, "upgraded", None)
  if upgraded is not None:
    values = upgraded(values)
  fields = dict((field.name, field_type) for field, field_type in _fields(config_class))
  if unknown := sorted(set(values) - set(fields)):
    raise InputError(f"a saved {config_class.__name__} has the settings {', '.join(unknown)}, which this version of "
                     "monojax does not know: use the version that wrote it, or a later one")
  made: dict[str, typing.Any] = {}
  for name, value in values.items():
    if dataclasses.is_dataclass(fields[name]):
      value = from_dict(fields[name], value)
    elif isinstance(value, list):
      value = tuple(value)
    made[name] = value
  return config_class(**made)


def differences(old: Mapping[str, typing.Any], new: Mapping[str, typing.Any], prefix: str = "") -> list[str]:
  """What differs between two nested dicts: a line "name: old value -> new value" for each value."""
  lines: list[str] = []
  for name in sorted(set(old) | set(new)):
    a, b = old.get(name), new.get(name)
    if isinstance(a, dict) and isinstance(b, dict):
      lines += differences(a, b, f"{prefix}{name}.")
    elif a != b:
      lines.append(f"{prefix}{name}: {json.dumps(a)} -> {json.dumps(b)}")
  return lines


def fingerprint(value: typing.Any) -> str:
  """16 hexadecimal digits that stand for a JSON-able value: equal for equal values, different for others."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
