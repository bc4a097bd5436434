"""What a command looks at before it does anything: whether its last stage could be done, too."""

import dataclasses
from collections.abc import Iterable

from monojax import metrics
from monojax.activations.config import EARLIER, HarvestConfig, same_token
from monojax.config import InputError, require
from monojax.pipeline import load
from monojax.pipeline.config import RunConfig
from monojax.pipeline.folder import RunFolder
from monojax.sae.config import SAEConfig
from monojax.sae.recipes import recipe_of

_UNTRAINED = ("tokens", "activations", "analysis", "browser")  # stages that train nothing and log no metrics
_MAY_DIFFER = 0.01  # the share of tokens that a tokenizer may have changed and still be that of a model
_ON_ANY_DEVICES = ("tokens", "analysis", "browser")  # stages that do with one device where there are not more


def look_ahead(run: RunFolder, config: RunConfig, stages: Iterable[str]) -> None:
  """Checks what the stages of a command need besides each other; of finished stages nothing.

  Args:
    run: the run's folder.
    config: its settings.
    stages: the stages that the command does.

  Raises:
    InputError: a package that a setting needs is not installed, the place of the activations cannot be used, or a
      batch does not divide over the devices.
  """
  todo = {stage for stage in stages if not run.stage(stage)}
  if config.subject.weights and todo.intersection(("tokens", "subject", "activations")):
    _require_pretrained(config)
  if config.subject.shuffled_of and "subject" in todo:
    load.run_to_shuffle(config.subject)
  if config.sae.kl_coefficient and todo.difference((*_UNTRAINED, "subject")):
    _require_end_to_end(run, config)
  if todo.difference((*_UNTRAINED, "subject")):
    require_sites_of_run(run, config)
  if todo.difference(_UNTRAINED):
    metrics.require_packages(config.metrics)
  if "activations" in todo and config.activations.url:
    from monojax.activations.folder import Folder
    Folder(config.activations.url).reach(to_write=config.activations.source == "store")
  if todo.difference(_ON_ANY_DEVICES):
    _require_batches_divide(config, todo)


def _require_pretrained(config: RunConfig) -> None:
  """Raises `InputError` unless a pretrained subject, its tokenizer, its sites and its context fit each other."""
  from monojax import mesh as meshes
  from monojax.subjects.pretrained.weights import bytes_of, open_weights
  from monojax.subjects.subject import site_of
  from monojax.training import compute_dtype
  settings = config.subject
  a = open_weights(settings.weights).architecture
  require(settings.n_context <= a.max_context, "subject.n_context", settings.n_context,
          f"this model reads at most {a.max_context:,} tokens at a time")
  for site in config.activations.computed:
    site_of(a.site_widths, site)
  n_bytes = bytes_of(a, compute_dtype(settings.compute_dtype), a.n_layers)
  meshes.require_memory(load.model_mesh(config), n_bytes, "subject.weights",
                        settings.weights, "split it over more devices with --mesh.model, or take a smaller model")
  _require_tokenizer(config, a.vocab_size)


def _require_tokenizer(config: RunConfig, n_vocab: int) -> None:
  """Raises `InputError` if a tokenizer is that of another model than the pretrained subject."""
  from monojax.text import given
  weights, place = config.subject.weights, config.tokens.tokenizer or config.subject.weights
  vocabulary = given.vocabulary_of(config.tokens, place)
  largest = max(vocabulary.values())
  require(largest < n_vocab, "tokens.tokenizer", place, f"has the id {largest:,}, and the model embeddings for "
          f"{n_vocab:,} tokens: it is the tokenizer of another model")
  if place == weights:
    return
  try:
    own = given.vocabulary_of(config.tokens, weights)
  except InputError:  # the weights have no tokenizer beside them
    return
  n_other = sum(own.get(token) != id for token, id in vocabulary.items())
  require(n_other <= _MAY_DIFFER * len(vocabulary), "tokens.tokenizer", place,
          f"{n_other:,} of its {len(vocabulary):,} tokens have other ids than in the tokenizer of {weights!r}: it is "
          "the tokenizer of another model")


def require_subject(settings: SAEConfig, activations: HarvestConfig) -> None:
  """Raises `InputError` if a dictionary is to be trained end to end on activations that came without their subject."""
  require(not settings.kl_coefficient or activations.source != "given", "sae.kl_coefficient", settings.kl_coefficient,
          "end-to-end training runs the subject in every step, and activations.source=given has none: harvest from a "
          "subject, or set it to 0")


def require_sites_of_run(run: RunFolder, config: RunConfig) -> None:
  """Raises `InputError` unless a run's activations, made or still to be made, suit its dictionary: `require_sites`."""
  activations = load.activations_config(run) if run.stage("activations") else config.activations
  settings = config.sae
  subject = load.subject_config(run) if run.stage("subject") else config.subject
  if subject.weights and activations.source != "given":
    named = lambda names: load.names_of_sites(subject.weights, names, "activations.site")
    site, *more = named(activations.sites)
    activations = dataclasses.replace(activations, site=site, more_sites=tuple(more))
    settings = dataclasses.replace(settings, reads=named(settings.reads), writes=named(settings.writes))
  require_sites(settings, activations)


def require_sites(settings: SAEConfig, activations: HarvestConfig) -> None:
  """Raises `InputError` if a dictionary is of an earlier token, or learns from pairs of tokens and there are none.

  Args:
    settings: the dictionary's.
    activations: those that it is to learn from, with names of sites as in `settings`.
  """
  reads, writes = settings.wired(activations.site)
  named = [site for site in dict.fromkeys(reads + writes) if site != same_token(site)]
  require(activations.source == "given" or not named, "sae.reads", ",".join(named), "is of an earlier token: a "
          "dictionary is of the row's own, and the recipe tsae looks at the earlier one by itself")
  if not recipe_of(settings.recipe).pairs:
    return
  require(not settings.kl_coefficient, "sae.kl_coefficient", settings.kl_coefficient,
          f"must be 0 with {settings.recipe}, whose rows are not whole contexts")
  missing = [site for site in (site + EARLIER for site in reads) if site not in activations.sites]
  require(activations.source != "store" or not missing, "sae.recipe", settings.recipe, "needs pairs of activations, of "
          f"a row's token and of an earlier one: make them with --activations.more_sites={','.join(missing)}, in "
          "another --workdir or once this run's activations are deleted")


def _require_end_to_end(run: RunFolder, config: RunConfig) -> None:
  """Raises `InputError` unless dictionaries can be trained end to end, as far as that can be known by now."""
  from monojax import mesh as meshes
  activations = load.activations_config(run) if run.stage("activations") else config.activations
  require_subject(config.sae, activations)
  settings = load.subject_config(run) if run.stage("subject") else config.subject
  activations = activations.for_subject(bool(settings.weights))
  if settings.weights:
    from monojax.activations.contexts import require_predicts
    from monojax.subjects.pretrained.weights import open_weights
    require_predicts("logits" if open_weights(settings.weights).architecture.causal else "embedding", activations.site)
  if run.stage("tokens"):
    from monojax.activations.contexts import require_fits
    require_fits(activations, load.open_tokens(run, "train"), settings.n_context, config.sae.batch_rows,
                 config.sae.accumulate, meshes.make_mesh(config.mesh))


def _require_batches_divide(config: RunConfig, todo: set[str]) -> None:
  from monojax import mesh as meshes
  mesh = meshes.make_mesh(config.mesh)
  if "subject" in todo:
    meshes.require_divides(mesh, "data", config.subject.batch_contexts, "subject.batch_contexts")
  if "activations" in todo and config.activations.source == "store":
    from monojax.activations.harvest import mesh_of
    mesh_of(config.activations, mesh, bool(config.subject.weights))
  if todo.difference((*_ON_ANY_DEVICES, "subject", "activations")):
    meshes.require_divides(mesh, "data", config.sae.batch_rows, "sae.batch_rows")
