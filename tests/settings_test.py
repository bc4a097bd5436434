"""Settings that no flag names are those that the run was made with."""

import dataclasses
import subprocess
import sys

import pytest
from tiny_run import EXPERIMENTS

from monojax.config import InputError
from monojax.pipeline.config import RunConfig
from monojax.pipeline.folder import RunFolder
from monojax.pipeline.presets import DEMO, PRESETS
from monojax.pipeline.settings import remember, remembered, with_recipe


def changed(config, section, **values):
  return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


def test_a_stage_alone_takes_the_settings_that_the_whole_run_was_begun_with(tmp_path):
  """Version 0.1 forgot them: a stage's script that was called alone went back to the preset's."""
  run = RunFolder(tmp_path)
  settings = remembered(run)
  assert settings.config == DEMO and settings.sources["sae"] == "preset demo"
  asked = changed(settings.config, "sae", resample_every_steps=50)
  remember(run, settings, asked, ["tokens", "subject", "activations", "sae", "frontier", "analysis", "browser"])
  later = remembered(run)
  assert later.config.sae.resample_every_steps == 50 and later.sources["sae"] == str(tmp_path)
  assert later.config == changed(DEMO, "sae", resample_every_steps=50)


def test_the_record_of_a_stage_counts_more_than_what_was_asked_for_later(tmp_path):
  run = RunFolder(tmp_path)
  settings = remembered(run, "small")
  remember(run, settings, settings.config, ["tokens", "sae"])
  made = changed(settings.config, "tokens", vocab_size=999)
  run.execute("tokens", made.tokens, lambda directory, identity: {})
  remember(run, remembered(run), changed(made, "sae", k=5), ["tokens", "sae"])
  found = remembered(run)
  assert found.preset == "small" and found.config.tokens.vocab_size == 999 and found.config.sae.k == 5
  assert found.sources["tokens"].endswith("tokens")
  with pytest.raises(InputError, match="begun with --preset=small"):
    remembered(run, "demo")


def test_another_recipe_keeps_sizes_and_leaves_penalties_behind(tmp_path):
  run = RunFolder(tmp_path)
  settings = remembered(run)
  asked = changed(settings.config, "sae", n_features=64, n_steps=7, sparsity_coefficient=0.5)
  remember(run, settings, asked, ["sae"])
  sae = with_recipe(remembered(run), "topk").config.sae
  assert (sae.recipe, sae.n_features, sae.n_steps, sae.k) == ("topk", 64, 7, 12)
  assert sae.sparsity_coefficient is None and sae.group_sizes == () and sae.resample_every_steps == 0
  assert with_recipe(remembered(run), "tm2023").config.sae.sparsity_coefficient == 0.5


def test_another_recipe_on_a_small_dictionary_has_no_more_places_than_features():
  start = remembered(None)
  small = dataclasses.replace(start.config, sae=dataclasses.replace(start.config.sae, n_features=8, group_sizes=()))
  assert with_recipe(dataclasses.replace(start, config=small), "topk").config.sae.k == 8


def test_the_mesh_is_not_remembered(tmp_path):
  run = RunFolder(tmp_path)
  settings = remembered(run)
  remember(run, settings, changed(settings.config, "mesh", model=4), ["mesh", "sae"])
  assert remembered(run).config.mesh == RunConfig().mesh


def help_of(*arguments):
  command = [sys.executable, str(EXPERIMENTS / "train_sae.py"), *arguments, "--help"]
  result = subprocess.run(command, capture_output=True, text=True, timeout=60)
  return " ".join(result.stdout.split())


def test_help_says_which_default_is_in_force_and_who_has_set_it(tmp_path):
  text = help_of()
  assert "(default: 1024, from preset demo)" in text and "(default: 262144)" in text
  assert f"(default: {PRESETS['small'].sae.n_steps}, from preset small)" in help_of("--preset=small")
  text = help_of("--sae.recipe=jumprelu", "--preset=paper")
  assert "(default: 7e-05, from the recipe jumprelu)" in text
  run = RunFolder(tmp_path)
  settings = remembered(run)
  remember(run, settings, changed(settings.config, "sae", n_features=77), ["sae"])
  assert f"(default:77,from{tmp_path})" in help_of(f"--workdir={tmp_path}").replace(" ", "")


def test_flags_by_their_old_names_still_work(tmp_path):
  result = subprocess.run([sys.executable, str(EXPERIMENTS / "prepare_text.py"), f"--workdir={tmp_path}",
                           "--text.vocab_size=3"], capture_output=True, text=True, timeout=60)
  assert result.returncode == 2 and "tokens.vocab_size=3" in result.stderr
