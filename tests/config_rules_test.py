"""Every setting of every configuration, given bad values: accepted because its rule says so, or refused by name."""

import dataclasses
import importlib
import pkgutil

import numpy as np
import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st

import monojax
from monojax import config as configs
from monojax.config import Bounds, InputError, option
from monojax.sae.config import SAEConfig
from monojax.sae.recipes import RECIPES
from monojax.studies.toy.study import ToyStudyConfig

NUMBERS = [float("nan"), float("inf"), -float("inf"), -1, -1.0, 0, 0.0, 1e-50, -1e-9, 0.5, 1, 1.0, 1 - 1e-12,
           2**31 - 1, 2**31, 2**32, 2**63, -2**63, 2**70, 10**400, 1e39, 1e308]
OTHERS = ["1", "", True, None, b"1", 1j, [], {}, object(), (1, "a"), ("a",), (float("nan"),), (-1,), (2**70,), (None,),
          np.float32("nan"), np.int64(-1)]


def all_configurations():
  """Every dataclass in the package that has an option."""
  found = set()
  for module in pkgutil.walk_packages(monojax.__path__, "monojax."):
    if not module.name.endswith("__main__"):
      for value in vars(importlib.import_module(module.name)).values():
        if isinstance(value, type) and dataclasses.is_dataclass(value):
          if value.__name__ == "RunConfig" or any("help" in field.metadata for field in dataclasses.fields(value)):
            found.add(value)
  return sorted(found, key=lambda config_class: config_class.__name__)


CONFIGURATIONS = all_configurations()


def outcome(config_class, name, value, **more):
  """The configuration with that value, or None where an `InputError` refuses it in one line."""
  try:
    return config_class(**{name: value, **more})
  except InputError as error:
    assert "\n" not in str(error) and "=" in str(error), error
    return None


def test_all_configurations_are_found():
  names = {config_class.__name__ for config_class in CONFIGURATIONS}
  assert names >= {"SAEConfig", "SweepConfig", "SubjectConfig", "TransformerConfig", "HarvestConfig", "TextConfig",
                   "AnalysisConfig", "BrowserConfig", "MeshConfig", "MetricsConfig", "FrontierConfig", "RunConfig",
                   "ToyConfig", "ToyStudyConfig", "MLPConfig", "IndexStudyConfig", "PlantedConfig",
                   "SyntheticStudyConfig"}


@pytest.mark.parametrize("config_class", CONFIGURATIONS, ids=lambda config_class: config_class.__name__)
def test_every_value_of_every_setting_is_right_or_refused(config_class):
  for field, kind in configs._fields(config_class):
    item = {tuple: lambda kind: kind.__args__[0]}.get(getattr(kind, "__origin__", None), lambda kind: kind)(kind)
    for value in [*NUMBERS, *OTHERS, *((value,) for value in NUMBERS)]:
      made = outcome(config_class, field.name, value)
      if made is None:
        continue
      kept = getattr(made, field.name)
      configs.to_dict(made)  # JSON can hold it
      if dataclasses.is_dataclass(kind):
        assert isinstance(kept, kind)
        continue
      if kept is None:
        assert field.default is None
        continue
      for one in kept if isinstance(kept, tuple) else (kept,):
        where = f"{config_class.__name__}.{field.name}={value!r}"
        assert isinstance(one, (int, float) if item is float else item), where
        assert item is bool or not isinstance(one, bool), where
        if item in (int, float):
          rule = field.metadata["rule"]
          assert isinstance(rule, Bounds), f"{config_class.__name__}.{field.name} has no rule"
          assert rule.hold(one) and np.isfinite(np.float32(one)) and abs(one) < 1e39, where


def test_the_message_names_the_flag_the_value_and_the_rule():
  for settings_, message in [
      ({"clip_norm": -1.0}, "sae.clip_norm=-1.0: must be at least 0"),
      ({"beta2": 0.0}, "sae.beta2=0.0: must be above 0 and below 1"),
      ({"adam_epsilon": -1.0}, "sae.adam_epsilon=-1.0: must be above 0"),
      ({"resample_encoder_scale": float("nan")}, "sae.resample_encoder_scale=nan: must be a finite number"),
      ({"sparsity_coefficient": float("inf")}, "sae.sparsity_coefficient=inf: must be a finite number"),
      ({"learning_rate": 1e-50}, "sae.learning_rate=1e-50: must be 0 or of a size from 1.2e-38 to 3.4e"),
      ({"n_steps": 2**31}, r"sae.n_steps=2147483648: must be at least 1 and at most 2\*\*31 - 1"),
      ({"n_steps": 2**70}, r"sae.n_steps=\d+: must not have more than 64 bits"),
      ({"n_features": 2.5}, "sae.n_features=2.5: must be a whole number"),
      ({"seed": 2**32}, r"sae.seed=4294967296: must be at least 0 and at most 2\*\*32 - 1"),
      ({"skip": 1}, "sae.skip=1: must be True or False"), ({"reads": "a"}, "sae.reads='a': must be a tuple"),
      ({"group_sizes": (16, 0)}, r"sae.group_sizes=\(16, 0\): must be at least 1")]:
    with pytest.raises(InputError, match=message):
      SAEConfig(**settings_)


def test_what_numpy_and_lists_give_becomes_plain():
  config = SAEConfig(n_features=np.int64(64), learning_rate=np.float32(0.5), group_sizes=[8, np.int32(16)],
                     skip=np.True_)
  assert config == SAEConfig(n_features=64, learning_rate=0.5, group_sizes=(8, 16), skip=True)
  assert type(config.n_features) is int and configs.to_dict(config)["group_sizes"] == [8, 16]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(RECIPES)), st.data())
def test_any_settings_resolve_or_are_refused(recipe, data):
  """Values of several settings at once: no exception but `InputError`, also where settings are resolved."""
  fields = [field for field, kind in configs._fields(SAEConfig) if kind in (int, float)]
  chosen = data.draw(st.lists(st.sampled_from(fields), min_size=1, max_size=4, unique=True))
  number = st.one_of(st.sampled_from(NUMBERS), st.integers(0, 50), st.floats(0, 2))
  values = {field.name: data.draw(number) for field in chosen}
  try:
    config = SAEConfig(recipe=recipe, **values).resolved()
  except InputError as error:
    assert "\n" not in str(error)
    return
  assert config.window_steps >= 1 and len(config.resample_steps) <= config.resample_times
  configs.fingerprint(configs.to_dict(config))


@pytest.mark.parametrize("argument", ["effort=nan", "effort=inf", "effort=1e400", "levels=1e3", "levels=", "seed=-1",
                                      f"seed={2**70}", f"levels={10**30}", "effort=0"])
def test_flags_too(argument):
  values = flags.FlagValues()
  configs.define_flags(ToyStudyConfig, "", values)
  with pytest.raises((InputError, flags.Error)):
    values(["program", f"--{argument}"])
    configs.override(ToyStudyConfig(), values)


def test_help_says_the_rule():
  @dataclasses.dataclass(frozen=True)
  class Config:
    rate: float = option(0.5, "a rate", Bounds(at_least=0, below=1))

  values = flags.FlagValues()
  configs.define_flags(Config, "", values)
  assert values["rate"].help == "a rate (at least 0 and below 1) (default: 0.5)"


@pytest.mark.parametrize("name", ["n_features", "k", "batch_rows", "n_steps", "learning_rate", "seed"])
@pytest.mark.parametrize("value", ["64", float("nan"), -1, 2**70])
def test_the_library_refuses_them_before_it_works(name, value):
  with pytest.raises(InputError, match=f"{name}={value!r}"):
    monojax.train(np.zeros((300, 4), np.float32), **{name: value})
