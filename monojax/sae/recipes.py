"""Recipes: published ways to train a dictionary, one record each.

A `Recipe` holds everything that monojax knows of one: what it is, the values that its publication sets, those that a
short run needs, the setting that makes it sparser and a grid of it to sweep, and a function that builds it. Flags,
help texts, presets, sweeps and studies read these records, so that a recipe made of existing parts is added here and
nowhere else. A recipe of your own need not be in this file: give its record to `make_recipe` or
`monojax.sae.train.train_sae`, with a name that has a dot in it, such as "mylab.annealed".

This file loads no jax: a builder gets the parts, the module `monojax.sae.parts`, as an argument.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from monojax.config import require

if TYPE_CHECKING:
  from monojax.sae.config import Resolved, SAEConfig
  from monojax.sae.model import Wiring
  from monojax.sae.nonlinearity import Nonlinearity
  from monojax.sae.objectives import Error, Term
  from monojax.sae.parts import MadeRecipe

# (`monojax.sae.parts`, resolved settings, sites read and written, dtype of the matrix products) -> the recipe made
Build = Callable[[ModuleType, "Resolved", "Wiring", Any], "MadeRecipe"]
KNOBS = ("k", "sparsity_coefficient")


@dataclasses.dataclass(frozen=True)
class Recipe:
  """All that is known of a recipe.

  Attributes:
    name: the value of `--sae.recipe`. One that is not part of monojax is named OWNER.NAME.
    about: what it is, in a sentence, with its publication.
    build: makes it for given settings and sites.
    knob: the setting that makes its dictionaries sparser or denser, "k" or "sparsity_coefficient".
    grid: values of the knob that a sweep takes where none are named, from small to large.
    published: the publication's values of settings that are None by default in `SAEConfig`, and "penalty_warmup",
      the part of the steps over which the penalty rises. Settings that it does not name take `SAEConfig`'s defaults.
    quick: values that a run of some hundred steps needs, where publications take hundreds of thousands: higher
      learning rates, shorter memories, thresholds that start near where they end.
    uses: settings that mean something to this recipe and not to every other.
    pairs: whether it needs, beside each row, the activation at an earlier token of the row's context; see `earlier` of
      `monojax.activations.config.HarvestConfig`.
  """
  name: str
  about: str
  build: Build
  knob: str
  grid: tuple[float, ...]
  published: Mapping[str, float]
  quick: Mapping[str, Any]
  uses: tuple[str, ...] = ()
  pairs: bool = False

  def __post_init__(self) -> None:
    require(self.knob in KNOBS, f"{self.name}.knob", self.knob, f"choose one of {', '.join(KNOBS)}")
    require(self.grid and all(value > 0 for value in self.grid), f"{self.name}.grid", self.grid,
            "needs values of the knob, all of them positive")


def recipe_of(name: str, own: Recipe | None = None) -> Recipe:
  """The record of a recipe.

  Args:
    name: of the recipe, as settings hold it.
    own: the record, for a recipe that is not part of monojax.

  Raises:
    InputError: there is no such recipe, or `own` is another one.
  """
  if own is None or RECIPES.get(name) == own:
    require(name in RECIPES, "sae.recipe", name, f"choose one of {', '.join(RECIPES)}" + (
        "; a recipe of your own is named OWNER.NAME" if "." not in name else ", or give its record (recipe=...)"))
    return RECIPES[name]
  require("." in own.name, "recipe", own.name, "must be named OWNER.NAME, with a dot, to tell it from monojax's own")
  require(own.name == name, "sae.recipe", name, f"is not the recipe that was given: set it to {own.name!r}")
  return own


def make_recipe(config: SAEConfig, wiring: Wiring, dtype: Any, recipe: Recipe | None = None) -> MadeRecipe:
  """The recipe that `config.recipe` names, made for given settings and sites.

  Args:
    config: `SAEConfig`, resolved or not.
    wiring: which sites are read and written.
    dtype: the dtype of the matrix products.
    recipe: the record, for a recipe that is not part of monojax.

  Raises:
    InputError: there is no such recipe, or it cannot follow these settings.
  """
  from monojax.sae import parts
  resolved = config.resolved(recipe)
  require(not (config.skip and set(wiring.reads) & set(wiring.writes)), "sae.skip", True,
          "needs a dictionary that writes only what it does not read (a transcoder): others would only copy")
  if resolved.causal:
    n_sites = len(wiring.reads)
    require(n_sites == len(wiring.writes) > 1, "sae.causal", True,
            "needs several sites that are read, and as many that are written, in the order of the layers")
    require(not resolved.skip, "sae.skip", True, "cannot be with sae.causal")
    require(resolved.n_features % n_sites == 0, "sae.n_features", resolved.n_features,
            f"must be a multiple of the {n_sites} sites that are read: with sae.causal each has as many features")
  return recipe_of(config.recipe, recipe).build(parts, resolved, wiring, dtype)


def leading_groups(config: SAEConfig | Resolved) -> tuple[int, ...]:
  """The sizes n, rising, of those leading groups whose first n features must also reconstruct alone; () for none."""
  if config.group_sizes or config.recipe not in ("matryoshka", "gemmascope2", "tsae"):
    return tuple(config.group_sizes)
  if config.recipe == "tsae":
    return (max(1, config.n_features // 5),) if config.n_features > 1 else ()
  return tuple(config.n_features // n for n in (16, 8, 4, 2) if config.n_features >= n)


def _tm2023(parts: ModuleType, config: Resolved, wiring: Wiring, dtype: Any) -> MadeRecipe:
  """Mean squared error and L1; groups, none by default, add to the published loss."""
  model = parts.dictionary(config, wiring, dtype, parts.nonlinearities.ReLU(), wiring.autoencodes, config.encoder_init)
  return parts.compose(
      config, model, error=parts.objectives.mean_square, terms=[parts.objectives.l1(parts.group_weights(config))],
      unit_decoder=True, row_penalty=lambda f_BF: config.sparsity_coefficient * f_BF.sum(1))


def _apr2024(parts: ModuleType, config: Resolved, wiring: Wiring, dtype: Any) -> MadeRecipe:
  """L1 of features times decoder norms, free decoder norms, no bias subtracted before the encoder."""
  model = parts.dictionary(config, wiring, dtype, parts.nonlinearities.ReLU(), False, "decoder_transpose")
  return parts.compose(config, model, error=parts.objectives.summed_square, terms=[parts.objectives.l1_of_norms],
                       start=parts.starts.small_directions(model), normalised=True)


def _gated(parts: ModuleType, config: Resolved, wiring: Wiring, dtype: Any) -> MadeRecipe:
  """One encoder decides which features fire, and the same one rescaled says how much."""
  model = parts.dictionary(config, wiring, dtype, parts.nonlinearities.Gated(), wiring.autoencodes,
                           "decoder_transpose")
  return parts.compose(config, model, error=parts.objectives.summed_square, terms=[parts.objectives.gate],
                       unit_decoder=True, normalised=True)


def _jumprelu(parts: ModuleType, config: Resolved, wiring: Wiring, dtype: Any) -> MadeRecipe:
  """An L0 penalty, which only the learned thresholds feel."""
  jump = parts.nonlinearities.JumpReLU(math.log(config.threshold), config.bandwidth)
  model = parts.dictionary(config, wiring, dtype, jump, wiring.autoencodes, config.encoder_init)
  return parts.compose(config, model, error=parts.objectives.summed_square, terms=[parts.objectives.l0(jump)],
                       unit_decoder=True, normalised=True)


def _jan2025(parts: ModuleType, config: Resolved, wiring: Wiring, dtype: Any) -> MadeRecipe:
  """A tanh penalty that rises over the whole run, and a pull on silent features."""
  jump = parts.nonlinearities.JumpReLU(math.log(config.threshold), config.bandwidth, through_input=True, per_log=True)
  model = parts.dictionary(config, wiring, dtype, jump, False, "kaiming")
  terms = [parts.objectives.tanh_of_norms(4.0), parts.objectives.pre_activation_pull(config.pull_coefficient)]
  return parts.compose(config, model, error=parts.objectives.summed_square, terms=terms, normalised=True,
                       start=parts.starts.at_density(model, config.threshold))


def _topk(parts: ModuleType, config: Resolved, wiring: Wiring, dtype: Any) -> MadeRecipe:
  """The k largest of a row; with `multi_k_coefficient` also a loss with four times as many."""
  n_more = min(4 * config.k, config.n_features) if config.multi_k_coefficient else 0
  nonlinearity = parts.nonlinearities.TopK(config.k, n_more)
  more = [parts.objectives.multi_topk(config.multi_k_coefficient, n_more, nonlinearity)] if n_more else []
  return _topk_family(parts, config, wiring, dtype, nonlinearity, config.group_sizes, more)


def _batchtopk(parts: ModuleType, config: Resolved, wiring: Wiring, dtype: Any) -> MadeRecipe:
  """The B k largest of a batch, a constant threshold afterwards."""
  return _topk_family(parts, config, wiring, dtype, parts.nonlinearities.BatchTopK(config.k), config.group_sizes)


def _matryoshka(parts: ModuleType, config: Resolved, wiring: Wiring, dtype: Any) -> MadeRecipe:
  """Groups of 1/16, 1/16, 1/8, 1/4 and 1/2 of the features, unless the settings say otherwise."""
  return _topk_family(parts, config, wiring, dtype, parts.nonlinearities.BatchTopK(config.k), leading_groups(config))


def _ortsae(parts: ModuleType, config: Resolved, wiring: Wiring, dtype: Any) -> MadeRecipe:
  """BatchTopK and a penalty on each feature's largest cosine with another one."""
  cosines = parts.objectives.largest_cosines(config.cosine_coefficient, config.cosine_chunk, config.cosine_every_steps)
  return _topk_family(parts, config, wiring, dtype, parts.nonlinearities.BatchTopK(config.k), config.group_sizes,
                      [cosines])


def _tsae(parts: ModuleType, config: Resolved, wiring: Wiring, dtype: Any) -> MadeRecipe:
  """Matryoshka of one group, whose features must also tell an earlier token of the context, which training looks at."""
  objectives, sizes = parts.objectives, leading_groups(config)
  contrasts = wiring.earlier and sizes and config.contrast_coefficient
  terms = [objectives.contrast(config.contrast_coefficient, sizes[0])] if contrasts else []
  # Of half the squared error, that of all features counts .8, and the group's .25 of that, which is .2.
  config = dataclasses.replace(config, group_weights=config.group_weights or (0.25 * config.group_weight,) * len(sizes))
  return _topk_family(parts, config, wiring, dtype, parts.nonlinearities.BatchTopK(config.k), sizes, terms,
                      error=lambda y_BO, e_BO: 0.4 * objectives.summed_square(y_BO, e_BO))


def _panneal(parts: ModuleType, config: Resolved, wiring: Wiring, dtype: Any) -> MadeRecipe:
  """ReLU and a penalty on a power of the features that falls from 1."""
  model = parts.dictionary(config, wiring, dtype, parts.nonlinearities.ReLU(), wiring.autoencodes, config.encoder_init)
  return parts.compose(config, model, error=parts.objectives.summed_square, unit_decoder=True, normalised=True,
                       terms=[parts.objectives.annealed_lp(config.p_end, config.n_steps)])


def _gemmascope2(parts: ModuleType, config: Resolved, wiring: Wiring, dtype: Any) -> MadeRecipe:
  """JumpReLU whose leading groups must also reconstruct alone, and a penalty on the distance from k features a row."""
  jump = parts.nonlinearities.JumpReLU(math.log(config.threshold), config.bandwidth)
  model = parts.dictionary(config, wiring, dtype, jump, wiring.autoencodes, config.encoder_init)
  coefficient = config.l0_coefficient * wiring.n_outputs  # the error is a sum over as many numbers
  return parts.compose(config, model, error=parts.objectives.summed_square, unit_decoder=True, normalised=True,
                       terms=[parts.objectives.squared_l0(jump, coefficient, config.k)],
                       group_sizes=leading_groups(config))


def _topk_family(parts: ModuleType, config: Resolved, wiring: Wiring, dtype: Any, nonlinearity: Nonlinearity,
                 group_sizes: Sequence[int], more_terms: Sequence[Term] = (), error: Error | None = None) -> MadeRecipe:
  """Unit directions, a bias subtracted before the encoder, AuxK, the encoder started as the decoder's transpose."""
  model = parts.dictionary(config, wiring, dtype, nonlinearity, wiring.autoencodes, "decoder_transpose")
  require(config.batch_rows > config.accumulate, "sae.accumulate", config.accumulate, "leaves one row to a part, "
          f"and {config.recipe} divides a part's error by the variance of its rows: take fewer parts or more rows")
  aux_k = config.aux_k or parts.starts.default_aux_k(wiring)
  aux = [parts.objectives.auxk(config.aux_coefficient, aux_k)] if config.aux_coefficient else []
  return parts.compose(config, model, error=error or parts.objectives.unexplained, terms=[*aux, *more_terms],
                       start=parts.starts.scaled_encoder(wiring, config.k), unit_decoder=True, normalised=True,
                       group_sizes=group_sizes)


_ALL = (
    Recipe(
        "tm2023",
        "ReLU features with an L1 penalty and unit directions, dead ones resampled if asked for "
        "(Towards Monosemanticity, Anthropic, October 2023)",
        _tm2023, "sparsity_coefficient", (0.002, 0.004, 0.007, 0.012),
        published={"sparsity_coefficient": 4e-3, "learning_rate": 1e-3},
        quick={"learning_rate": 4e-3, "beta2": 0.99, "encoder_init": "decoder_transpose"},
        uses=("encoder_init",)),
    Recipe(
        "apr2024",
        "ReLU features with an L1 penalty on features times the norms of their directions, which are free "
        "(Anthropic, April 2024 update)",
        _apr2024, "sparsity_coefficient", (1.0, 2.0, 4.0, 8.0),
        published={"sparsity_coefficient": 5.0, "learning_rate": 5e-5, "decay_fraction": 0.2, "clip_norm": 1.0,
                   "penalty_warmup": 0.05},
        quick={"sparsity_coefficient": 4.0, "learning_rate": 3e-3}),
    Recipe(
        "gated",
        "a gate decides which features fire and a second scale of the same encoder how much, so that the L1 penalty "
        "does not shrink them (arXiv 2404.16014)",
        _gated, "sparsity_coefficient", (3.0, 6.0, 10.0, 16.0),
        published={"sparsity_coefficient": 0.1, "learning_rate": 5e-5, "beta1": 0.0},
        quick={"sparsity_coefficient": 6.0, "learning_rate": 5e-3, "beta1": 0.9}),
    Recipe(
        "topk",
        "the k largest features of each row, with dead ones fitted to what is left (TopK with AuxK, arXiv 2406.04093)",
        _topk, "k", (6, 12, 24, 48),
        published={"learning_rate": 1e-4, "adam_epsilon": 6.25e-10, "ema_decay": 0.999},
        quick={"k": 12, "learning_rate": 3e-3, "ema_decay": 0.99},
        uses=("aux_coefficient", "aux_k", "multi_k_coefficient")),
    Recipe(
        "batchtopk",
        "the largest features of a whole batch, k a row on average, and one threshold in use (BatchTopK, "
        "arXiv 2412.06410)",
        _batchtopk, "k", (6, 12, 24, 48),
        published={"learning_rate": 3e-4, "beta2": 0.99},
        quick={"k": 12, "learning_rate": 3e-3},
        uses=("aux_coefficient", "aux_k")),
    Recipe(
        "matryoshka",
        "BatchTopK whose leading groups of features must also reconstruct alone, which keeps broad features whole "
        "(arXiv 2503.17547)",
        _matryoshka, "k", (6, 12, 24, 48),
        published={"learning_rate": 3e-4, "beta2": 0.99},
        quick={"k": 12, "learning_rate": 3e-3},
        uses=("aux_coefficient", "aux_k")),
    Recipe(
        "jumprelu",
        "features count above a threshold that each learns under a penalty on how many fire (JumpReLU, "
        "arXiv 2407.14435)",
        _jumprelu, "sparsity_coefficient", (0.1, 0.5, 2.0, 8.0),
        published={"sparsity_coefficient": 1e-2, "learning_rate": 7e-5, "beta1": 0.0, "threshold": 1e-3,
                   "bandwidth": 1e-3},
        quick={"sparsity_coefficient": 2.0, "learning_rate": 5e-3, "beta1": 0.9, "threshold": 1.0, "bandwidth": 1.0,
               "encoder_init": "decoder_transpose"},
        uses=("threshold", "bandwidth", "encoder_init")),
    Recipe(
        "jan2025",
        "JumpReLU features with a tanh penalty that rises over the run, silent ones pulled to their thresholds "
        "(Anthropic, January 2025 update)",
        _jan2025, "sparsity_coefficient", (0.125, 0.25, 0.5, 1.0),
        published={"sparsity_coefficient": 20.0, "learning_rate": 2e-4, "decay_fraction": 0.2, "clip_norm": 1.0,
                   "penalty_warmup": 1.0, "threshold": 1.10517, "bandwidth": 2.0},
        quick={"sparsity_coefficient": 0.5, "learning_rate": 3e-3, "pull_coefficient": 1e-3},
        uses=("threshold", "bandwidth", "pull_coefficient")),
    Recipe(
        "gemmascope2",
        "JumpReLU whose leading groups of features must also reconstruct alone, drawn to k features on each row (after "
        "Gemma Scope 2, December 2025, whose weights are not all published)",
        _gemmascope2, "k", (6, 12, 24, 48),
        published={"learning_rate": 7e-5, "beta1": 0.0, "threshold": 1e-2, "bandwidth": 5e-2},
        quick={"k": 12, "learning_rate": 5e-3, "beta1": 0.9, "threshold": 1.0, "bandwidth": 1.0,
               "encoder_init": "decoder_transpose"},
        uses=("threshold", "bandwidth", "encoder_init", "l0_coefficient")),
    Recipe(
        "ortsae",
        "BatchTopK with a penalty on each feature's largest cosine with another, against features that are parts or "
        "doubles of others (after OrtSAE, arXiv 2509.22033)",
        _ortsae, "k", (6, 12, 24, 48),
        published={"learning_rate": 3e-4, "beta2": 0.99},
        quick={"k": 12, "learning_rate": 3e-3},
        uses=("aux_coefficient", "aux_k", "cosine_coefficient", "cosine_chunk", "cosine_every_steps")),
    Recipe(
        "tsae",
        "BatchTopK whose leading fifth of the features must also reconstruct alone, and tell an earlier token of the "
        "same context from those of others, so that they follow what a text is about (after T-SAE, arXiv 2511.05541)",
        _tsae, "k", (6, 12, 24, 48),
        published={"learning_rate": 3e-4, "clip_norm": 1.0},
        quick={"k": 12, "learning_rate": 3e-3},
        uses=("aux_coefficient", "aux_k", "contrast_coefficient"), pairs=True),
    Recipe(
        "panneal",
        "ReLU features with a penalty on a power of them that falls from 1, which presses less on large ones "
        "(p-annealing, arXiv 2408.00113)",
        _panneal, "sparsity_coefficient", (0.5, 1.0, 2.0, 4.0),
        published={"sparsity_coefficient": 0.1, "learning_rate": 1e-3},
        quick={"sparsity_coefficient": 1.0, "learning_rate": 4e-3, "encoder_init": "decoder_transpose"},
        uses=("encoder_init", "p_end")),
)
RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in _ALL}
# Those that need nothing but rows.
OF_ROWS = tuple(recipe.name for recipe in _ALL if not recipe.pairs)
