"""Configuration: settings as frozen dataclasses, which become flags and JSON by themselves.

The settings of a stage are a frozen dataclass whose fields are made with `option(default, help)`; a field can hold
another such dataclass, made with `nested`. `define_flags` makes a flag of each field, such as `--sae.n_features`. Each
flag's own default is `None`, which stands for "not given": the defaults are in the dataclasses and nowhere else.
`to_dict` and `from_dict` turn settings to JSON and back.
"""

import dataclasses
import functools
import hashlib
import json
import math
import struct
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


# The largest numbers of 32 bits, which counts of steps, rows and features must not exceed, and of 64 bits.
INT32, INT64 = 2**31 - 1, 2**63 - 1
# The smallest and the largest number above 0 that float32 holds with all its digits.
_SMALLEST, _LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127


@dataclasses.dataclass(frozen=True)
class Bounds:
  """Which numbers a setting may be: those that lie within all bounds that are not None."""
  at_least: float | None = None
  above: float | None = None
  at_most: float | None = None
  below: float | None = None

  def hold(self, value: float) -> bool:
    """Whether a number lies within the bounds, as float32 if it is no whole one: .99999999 is then 1."""
    if isinstance(value, float):
      value = struct.unpack("f", struct.pack("f", value))[0]
    return ((self.at_least is None or value >= self.at_least) and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most) and (self.below is None or value < self.below))

  def __str__(self) -> str:
    """For instance "at least 0 and below 1"."""
    shown = {INT32: "2**31 - 1", 2**32 - 1: "2**32 - 1"}
    return " and ".join(f"{name.replace('_', ' ')} {shown.get(bound, bound)}"
                        for name, bound in vars(self).items() if bound is not None)


POSITIVE, NOT_NEGATIVE = Bounds(above=0), Bounds(at_least=0)
COUNT, COUNT_OR_0 = Bounds(at_least=1, at_most=INT32), Bounds(at_least=0, at_most=INT32)
FRACTION, POSITIVE_FRACTION = Bounds(at_least=0, at_most=1), Bounds(above=0, at_most=1)
SEED = Bounds(at_least=0, at_most=2**32 - 1)  # jax takes no more of a seed than 32 bits: 2**32 would be 0 again
DECAY, PROPER_FRACTION = Bounds(at_least=0, below=1), Bounds(above=0, below=1)


def option(default: typing.Any, help: str, rule: Sequence[str] | Bounds | None = None) -> typing.Any:
  """A dataclass field for one setting: its default, a line of help, and the rule that its values must follow.

  The rule is the values that it may take, if they are few, or the bounds of a number, or of each number of a tuple. The
  help text of the flag says it and `require_rules` checks it. Whole numbers must have at most 64 bits in any case, and
  others must lie in the range of float32.
  """
  return dataclasses.field(default=default, metadata={"help": help, "rule": rule})


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


def require_rules(config: "DataclassInstance", prefix: str = "") -> None:
  """Raises `InputError` for the first setting whose value breaks its rule or is of another type.

  Call it in `__post_init__`, before settings are compared with each other. Scalars of NumPy become plain numbers, and
  lists tuples, so that settings can be written as JSON and compared.

  Args:
    config: the settings.
    prefix: what precedes a field's name in its flag, for instance "sae.".
  """
  for field, kind in _fields(type(config)):
    value = _plain(getattr(config, field.name))
    object.__setattr__(config, field.name, value)  # the class is frozen for its users
    name, optional = prefix + field.name, field.default is None
    if dataclasses.is_dataclass(kind):
      require(isinstance(value, typing.cast(type, kind)), name, value, f"must be a {getattr(kind, '__name__', kind)}")
    elif "help" in field.metadata and not (value is None and optional):
      several = typing.get_origin(kind) is tuple
      require(not several or isinstance(value, tuple), name, value, "must be a tuple")
      for item in value if several else (value,):
        _require_rule(field, typing.get_args(kind)[0] if several else kind, item, name, value)


def _require_rule(field: dataclasses.Field, kind: type, item: typing.Any, name: str, value: typing.Any) -> None:
  """Raises `InputError` unless a value of a setting, or an item of one that is a tuple, is right."""
  rule = field.metadata["rule"]
  if kind in (int, float):
    kinds = int if kind is int else (int, float)
    require(isinstance(item, kinds) and not isinstance(item, bool), name, value,
            "must be a whole number" if kind is int else "must be a number")
    if isinstance(item, float):
      require(math.isfinite(item), name, value, "must be a finite number")
      require(item == 0 or _SMALLEST <= abs(item) <= _LARGEST, name, value,
              f"must be 0 or of a size from {_SMALLEST:.1e} to {_LARGEST:.1e}, the range of float32")
    else:
      require(abs(item) <= INT64, name, value, "must not have more than 64 bits")
    require(rule is None or rule.hold(item), name, value, f"must be {rule}")
  else:
    require(isinstance(item, kind), name, value, f"must be {'True or False' if kind is bool else 'text'}")
    require(not rule or item in rule, name, value, f"choose one of {', '.join(rule or ())}")


def _plain(value: typing.Any) -> typing.Any:
  """A value as plain Python has it: a scalar of NumPy as a number, a list as a tuple."""
  if isinstance(value, list | tuple):
    return tuple(map(_plain, value))
  return value.item() if hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0 else value


@functools.lru_cache(maxsize=64)
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
    rule = field.metadata["rule"]
    within = f" ({rule})" if isinstance(rule, Bounds) else ""
    text = f"{field.metadata['help']}{within} ({_default_text(field, values, source)})"
    item = typing.get_args(field_type)[0] if typing.get_origin(field_type) is tuple else field_type
    define: Callable[..., typing.Any]
    if typing.get_origin(field_type) is tuple:
      define = _define_tuple(item)
    elif rule and not isinstance(rule, Bounds):
      define = lambda *a, rule=rule, **k: flags.DEFINE_enum(a[0], a[1], rule, *a[2:], **k)
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
