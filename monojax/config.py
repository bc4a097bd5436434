"""Configuration: frozen dataclasses, their dotted absl flags, their JSON.

A stage's settings are a frozen dataclass of plain fields, each made with `option(default, help)`.
`define_flags` turns the tree into flags such as `--sae.n_features`, whose default `None` means
"not given": the defaults live in the dataclasses alone. `to_dict` and `from_dict` are its JSON.
"""

import dataclasses
import hashlib
import json
import sys
import types as types_
import typing

Config = typing.TypeVar("Config")


class InputError(ValueError):
  """Something a user gave is wrong; the message says what was given, what is needed, what to do.

  Scripts print it as one line and exit with status 2 (`monojax/cli.py`).
  """


def option(default, help, choices=None):
  """A dataclass field with a default, a line of help and optionally its allowed values."""
  return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def nested(config_class):
  """A dataclass field holding another configuration with its defaults."""
  return dataclasses.field(default_factory=config_class)


def require(condition, field, value, rule):
  """Raises `InputError` that names the field, its value and the rule, unless `condition`."""
  if not condition:
    raise InputError(f"{field}={value!r}: {rule}")


def require_positive(config, prefix, *names):
  """Raises `InputError` for the first of some fields that is not above 0."""
  for name in names:
    require(getattr(config, name) > 0, prefix + name, getattr(config, name), "must be positive")


def require_not_negative(config, prefix, *names):
  """Raises `InputError` for the first of some fields that is below 0; None is none of them."""
  for name in names:
    require((getattr(config, name) or 0) >= 0, prefix + name, getattr(config, name), "must not be negative")


def require_choices(config, prefix):
  """Raises `InputError` for a field whose value is not among its choices; flags are checked by absl already."""
  for field in dataclasses.fields(config):
    choices, value = field.metadata.get("choices"), getattr(config, field.name)
    require(not choices or value in choices, prefix + field.name, value, f"choose one of {', '.join(choices or ())}")


def _fields(config_class):
  """(field, type) pairs of a configuration class; T for the optional `T | None`."""
  types = typing.get_type_hints(config_class)
  plain = lambda kind: next((arg for arg in typing.get_args(kind) if isinstance(kind, types_.UnionType)
                             and arg is not type(None)), kind)
  return [(field, plain(types[field.name])) for field in dataclasses.fields(config_class)]


def define_flags(config_class: type, prefix: str, flag_values: typing.Any, values: typing.Any = None, source: str = "",
                 only: tuple[str, ...] | None = None) -> None:
  """Defines one dotted flag for each plain field of `config_class` and of what it nests.

  Args:
    config_class: a configuration dataclass.
    prefix: put before each name, for instance "sae.".
    flag_values: absl's `flags.FLAGS`.
    values: the settings that are in force where a flag is not given; their values are in the help texts.
    source: who has set those of `values` that are not the class's defaults, for instance "preset demo".
    only: names of the fields that get a flag; by default all.
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
    if typing.get_origin(field_type) is tuple:
      define = _define_tuple(item)
    elif field.metadata["choices"]:
      define = lambda *a, **k: flags.DEFINE_enum(a[0], a[1], field.metadata["choices"], *a[2:], **k)
    else:
      define = {int: flags.DEFINE_integer, float: flags.DEFINE_float, bool: flags.DEFINE_boolean,
                str: flags.DEFINE_string}[item]
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


def _define_tuple(item):
  """A `DEFINE_*` function for a comma-separated list whose items have type `item`."""
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
  """`config` with every flag that was given put in place of its field."""
  changes = {}
  for field, field_type in _fields(type(config)):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(field_type):
      changes[field.name] = override(value, flag_values, f"{prefix}{field.name}.")
      continue
    name = prefix + field.name
    if name in flag_values and flag_values[name].value is not None:
      changes[field.name] = flag_values[name].value
  return dataclasses.replace(config, **changes)


def to_dict(config):
  """A configuration, or a dict of several and of plain values, as JSON-able nested dicts (tuples become lists)."""
  if isinstance(config, dict):
    return {name: to_dict(value) for name, value in config.items()}
  plain = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
  return json.loads(json.dumps(plain))


def from_dict(config_class: type[Config], values: dict) -> Config:
  """The configuration of class `config_class` that `to_dict` gave `values` for, in this version or an older one.

  A field that `values` lacks takes its default. A class whose fields were renamed or moved says how old values are
  read with a static method `upgraded(values) -> values`.

  Raises:
    InputError: `values` has a field that this version does not know.
  """
  if hasattr(config_class, "upgraded"):
    values = config_class.upgraded(values)
  fields = dict((field.name, field_type) for field, field_type in _fields(config_class))
  if unknown := sorted(set(values) - set(fields)):
    raise InputError(f"a saved {config_class.__name__} has the settings {', '.join(unknown)}, which this version of "
                     "monojax does not know: use the version that wrote it, or a later one")
  made = {}
  for name, value in values.items():
    if dataclasses.is_dataclass(fields[name]):
      value = from_dict(fields[name], value)
    elif isinstance(value, list):
      value = tuple(value)
    made[name] = value
  return config_class(**made)


def differences(old, new, prefix=""):
  """Lines "name: old -> new" for the leaves in which two nested dicts differ."""
  lines = []
  for name in sorted(set(old) | set(new)):
    a, b = old.get(name), new.get(name)
    if isinstance(a, dict) and isinstance(b, dict):
      lines += differences(a, b, f"{prefix}{name}.")
    elif a != b:
      lines.append(f"{prefix}{name}: {json.dumps(a)} -> {json.dumps(b)}")
  return lines


def fingerprint(value):
  """16 hexadecimal digits that identify a JSON-able value."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
