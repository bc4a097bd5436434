"""Presets: whole configurations of a run, by name."""

import dataclasses

from monojax.activations.config import HarvestConfig
from monojax.analysis.config import AnalysisConfig
from monojax.pipeline.config import FrontierConfig, RunConfig
from monojax.sae.config import SAEConfig
from monojax.sae.recipes import recipe_of
from monojax.subjects.config import SubjectConfig
from monojax.text.config import TextConfig

# Minutes on two cores, on the text shipped in the package.
DEMO = RunConfig(
    tokens=TextConfig(vocab_size=8192, val_fraction=0.1),
    subject=SubjectConfig(
        n_context=128, n_steps=500, batch_contexts=16, optimizer="muon", learning_rate=8e-3,
        warmup_steps=50, scan_steps=10, checkpoint_every_steps=200),
    activations=HarvestConfig(),
    # The vocabulary is much larger than the dictionary: with fewer tokens than that, a feature goes to each
    # token, and few to whole scripts and formats.
    sae=SAEConfig(
        n_features=1024, batch_rows=2048, n_steps=900, learning_rate=4e-3, beta2=0.99, sparsity_coefficient=5e-3,
        group_sizes=(16, 32), group_weight=4.0, warmup_steps=50, penalty_warmup_steps=100, decay_fraction=0.2,
        encoder_init="decoder_transpose",
        resample_every_steps=200, resample_times=3, resample_rows=65_536, scan_steps=10, checkpoint_every_steps=200,
        val_tokens=65_536),
    analysis=AnalysisConfig(n_tokens=500_000, n_detector_tokens=131_072),
)

# What an hour of two cores gives on some hundreds of megabytes of text. TopK reconstructs more than the paper's loss
# with fewer features a token, groups keep broad features whole, and Muon makes a better subject
# (docs/results/index.md).
SMALL = RunConfig(
    tokens=TextConfig(vocab_size=8192, val_fraction=0.02, tokenizer_bytes=20_000_000),
    subject=SubjectConfig(
        n_context=128, n_steps=4000, batch_contexts=16, optimizer="muon", learning_rate=6e-3,
        warmup_steps=100, scan_steps=10, checkpoint_every_steps=500),
    activations=HarvestConfig(n_tokens=6_000_000),
    sae=SAEConfig(
        recipe="topk", k=10, n_features=4096, batch_rows=2048, n_steps=4000, learning_rate=3e-3, ema_decay=0.99,
        group_sizes=(12, 48), group_weight=4.0, warmup_steps=100, decay_fraction=0.2, dead_window_steps=200,
        checkpoint_every_steps=500),
    frontier=FrontierConfig(sparsities=(5, 20, 40), n_steps=500),
    analysis=AnalysisConfig(n_tokens=1_000_000),
)

# The paper's sizes, for an accelerator and a corpus of billions of tokens.
PAPER = RunConfig(
    tokens=TextConfig(vocab_size=65_536, val_fraction=0.001, tokenizer_bytes=1_000_000_000),
    subject=SubjectConfig(
        n_context=256, n_steps=12_200_000, batch_contexts=32, learning_rate=1e-3,
        warmup_steps=2000, checkpoint_every_steps=10_000, val_tokens=4_194_304),
    activations=HarvestConfig(tokens_per_context=250, batch_contexts=512),
    sae=SAEConfig(
        n_features=4096, batch_rows=8192, buffer_rows=4_194_304, n_steps=1_000_000,
        learning_rate=1e-4, sparsity_coefficient=4e-3,
        resample_every_steps=25_000, resample_times=4, resample_rows=819_200,
        checkpoint_every_steps=10_000, val_tokens=4_194_304),
    analysis=AnalysisConfig(n_tokens=100_000_000, n_detector_tokens=4_194_304, ultralow_density=1e-6,
                            effect_teraflops=100.0, batch_contexts=256),
)

# Sizes for a pretrained transformer of some hundred million parameters on a few cores.
PRETRAINED = RunConfig(
    tokens=TextConfig(val_fraction=0.05),
    subject=SubjectConfig(n_context=128, val_tokens=8192, sample_tokens=64),
    activations=HarvestConfig(site="layer.-1.mlp.hidden", n_tokens=500_000, batch_contexts=8),
    sae=SAEConfig(
        recipe="batchtopk", k=32, n_features=8192, batch_rows=1024, n_steps=1500, learning_rate=2e-3, warmup_steps=50,
        decay_fraction=0.3, dead_window_steps=200, checkpoint_every_steps=250, val_tokens=8192),
    analysis=AnalysisConfig(n_tokens=200_000, n_detector_tokens=32_768, n_scale_tokens=8192, n_share_tokens=2048,
                            batch_contexts=8),
)

PRESETS = {"demo": DEMO, "small": SMALL, "paper": PAPER, "pretrained": PRETRAINED}

# Settings of a preset's dictionary that hold for any recipe.
SHARED = ("n_features", "batch_rows", "buffer_rows", "n_steps", "warmup_steps", "scan_steps", "checkpoint_every_steps",
           "val_tokens")


def preset(name: str, recipe: str | None = None) -> RunConfig:
  """The preset of that name, its dictionary by another recipe if one is given.

  The preset's own penalty, groups and resampling belong to its recipe and are left behind. In `paper` the other recipe
  is as published, in the shorter presets it has the quick values of its record. The frontier is at the same multiples
  of its sparsity.

  Raises:
    InputError: there is no such recipe.
  """
  config = PRESETS[name]
  if recipe in (None, config.sae.recipe):
    return config
  sae = dictionary_by(name, recipe, config.sae)
  kind = round if recipe_of(recipe).knob == "k" else float
  sparsities = tuple(kind(sae.sparsity * value / config.sae.sparsity) for value in config.frontier.sparsities)
  return dataclasses.replace(config, sae=sae, frontier=dataclasses.replace(config.frontier, sparsities=sparsities))


def dictionary_by(name: str, recipe: str, base: SAEConfig) -> SAEConfig:
  """A dictionary by a recipe with nothing added to it, of the size and the steps of `base`.

  Args:
    name: of the preset: in `paper` the recipe is as published, in the shorter presets it has the quick values of its
      record.
    recipe: of the dictionary.
    base: settings of which those in `SHARED` are taken.

  Raises:
    InputError: there is no such recipe.
  """
  record, more = recipe_of(recipe), {}
  if name != "paper":
    more = {"decay_fraction": PRESETS[name].sae.decay_fraction, "dead_window_steps": 50, **record.quick}
  shared = {field: getattr(base, field) for field in SHARED}
  return SAEConfig(recipe=recipe, **shared, **more)
