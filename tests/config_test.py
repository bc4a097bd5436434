import dataclasses

import pytest
from absl import flags

from monojax import config as configs
from monojax.config import InputError, option
from monojax.pipeline.config import RunConfig
from monojax.pipeline.presets import PRESETS, preset
from monojax.sae.config import SAEConfig, SweepConfig
from monojax.sae.recipes import RECIPES


@dataclasses.dataclass(frozen=True)
class Inner:
  rate: float = option(0.5, "a rate")
  kind: str = option("a", "a kind", ("a", "b"))


@dataclasses.dataclass(frozen=True)
class Outer:
  inner: Inner = configs.nested(Inner)
  n: int = option(3, "a count")
  sizes: tuple[float, ...] = option((), "sizes")
  quick: bool = option(False, "a switch")


def parsed(*arguments):
  values = flags.FlagValues()
  configs.define_flags(Outer, "top.", values)
  values(["program", *arguments])
  return configs.override(Outer(), values, "top.")


def test_flags_override_only_what_is_given():
  assert parsed() == Outer()
  given = parsed("--top.inner.rate=0.25", "--top.n=7", "--top.sizes=1,2.5", "--top.quick")
  assert given == Outer(Inner(0.25, "a"), 7, (1.0, 2.5), True)


@pytest.mark.parametrize("argument", ["--top.n=x", "--top.inner.kind=c", "--top.sizes=1,y", "--top.m=1"])
def test_bad_flags_are_rejected(argument):
  with pytest.raises(flags.Error):
    parsed(argument)


def test_another_recipe_leaves_the_presets_own_behind():
  sae = preset("demo", "topk").sae
  assert (sae.recipe, sae.n_features, sae.n_steps) == ("topk", 1024, 900)
  assert (sae.group_sizes, sae.resample_every_steps, sae.sparsity_coefficient) == ((), 0, None)
  assert preset("demo", "tm2023") is preset("demo") is PRESETS["demo"]
  assert preset("paper", "apr2024").sae.resolved().learning_rate == 5e-5
  for recipe in RECIPES:
    assert all(preset(name, recipe).sae.recipe == recipe for name in PRESETS)
  assert preset("small", "batchtopk").frontier.sparsities == (6, 24, 48)  # half, twice and four times its k
  assert preset("small", "apr2024").frontier.sparsities == (2.0, 8.0, 16.0)


@pytest.mark.parametrize("settings, field", [
    ({"recipe": "topk", "sparsity_coefficient": 0.1}, "sae.sparsity_coefficient"),
    ({"recipe": "jumprelu", "threshold": 0.0}, "sae.threshold"), ({"ema_decay": 1.0}, "sae.ema_decay"),
    ({"recipe": "batchtopk", "multi_k_coefficient": 0.1}, "sae.multi_k_coefficient"),
    ({"encoder_init": "transposed"}, "sae.encoder_init"), ({"recipe": "none"}, "sae.recipe")])
def test_settings_that_a_recipe_cannot_follow_are_named(settings, field):
  with pytest.raises(InputError, match=field):
    SAEConfig(**settings)


def test_a_sweep_that_names_nothing_takes_the_recipes_own_grid():
  sparsities = lambda **settings: [config.sparsity for config in SweepConfig().configs(SAEConfig(**settings))]
  assert sparsities(recipe="topk") == list(RECIPES["topk"].grid)
  assert sparsities(recipe="topk", n_features=32) == [6, 12, 24]  # k does not exceed the features
  assert sparsities(recipe="gated") == list(RECIPES["gated"].grid)
  assert len(SweepConfig(seeds=(0, 1)).configs(SAEConfig(recipe="topk"))) == 2


def test_a_preset_of_a_recipe_that_is_not_known_is_refused():
  with pytest.raises(InputError, match="sae.recipe='tm2024': choose one of tm2023"):
    preset("demo", "tm2024")


def test_a_grid_is_checked_where_it_is_whole():
  base = SAEConfig(recipe="topk", n_features=32, k=4)
  grid = SweepConfig(sparsities=(8.0, 64.0), n_features=(128, 256)).configs(base)
  assert [(config.n_features, config.k) for config in grid] == [(128, 8), (128, 64), (256, 8), (256, 64)]
  with pytest.raises(InputError, match="sae.k=8.5"):
    SweepConfig(sparsities=(8.5,)).configs(base)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_json_round_trip(preset):
  assert configs.from_dict(RunConfig, configs.to_dict(preset)) == preset


def test_saved_by_another_version():
  values = configs.to_dict(SAEConfig(n_features=77))
  del values["seed"]
  assert configs.from_dict(SAEConfig, values) == SAEConfig(n_features=77)
  with pytest.raises(InputError, match="settings moods, new_ones, which this version"):
    configs.from_dict(SAEConfig, {**values, "new_ones": 1, "moods": 2})


def test_every_setting_has_help_and_every_rule_names_its_field():
  def walk(config_class):
    for field, field_type in configs._fields(config_class):
      if dataclasses.is_dataclass(field_type):
        yield from walk(field_type)
      else:
        yield field
  fields = list(walk(RunConfig))
  assert len(fields) > 50
  assert all(len(field.metadata["help"]) > 5 for field in fields)
  with pytest.raises(InputError, match=r"sae.n_features=0: must be at least 1"):
    SAEConfig(n_features=0)


def test_differences_and_fingerprint():
  old, new = {"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}}
  assert configs.differences(old, new) == ["b.c: 2 -> 3"]
  assert configs.fingerprint(old) != configs.fingerprint(new)
  assert configs.fingerprint({"x": 1, "y": 2}) == configs.fingerprint({"y": 2, "x": 1})
