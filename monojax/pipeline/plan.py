"""What a run of a pretrained subject will take: memory, disk and time of a stage, from shapes and measured rates.

Letters: M width that a dictionary reads, O width that it writes, F its features.
"""

import dataclasses
import time
import typing

from monojax.activations.config import same_token
from monojax.pipeline.config import RunConfig
from monojax.sae.recipes import recipe_of

if typing.TYPE_CHECKING:
  from monojax.sae.config import SAEConfig
  from monojax.subjects.pretrained.architecture import Architecture

PLACES_BYTES = 16  # a stored row's token, document, position and domain
STATE_BYTES = 16  # of each parameter of a dictionary in training: itself, its gradient and two moments, float32
_SAVED_BYTES = 16  # of each on disk: checkpoints with parameters and moments, and the finished dictionary
_PASSES_OF_FIDELITY = 4  # as it is, spliced, with zero and with the mean
_PASSES_OF_DETECTORS = 4  # features and neurons, each on training and on held-out text
_PASSES_OF_SHARES = 6  # as it is, spliced with no feature, with all, and with those of each of three kinds
_SAMPLES = 4  # texts that a subject writes
_TEXT_BYTES = 4  # of text in a token, about
_UPDATE_PASSES = 10  # reads and writes of a dictionary's parameters in a step: gradients, moments, norms
_CODE_PASSES = 6  # those of all features of a batch, besides products: what is kept, its mask and its gradient
_READ_RATE = 5e8  # bytes of weights a second, from a disk and turned; a stage reads them anew
_MEASURED_SECONDS = 0.3


@dataclasses.dataclass(frozen=True)
class Pass:
  """What one token costs on its way through a subject, up to a layer.

  Attributes:
    products: parameters in matrix products.
    layers: layers of attention.
    heads, head_width: heads of each, and the width of one.
    wide: numbers that are read and written besides products, for each token: norms, gates, residual streams.
    parameters: all parameters that are there, of which an embedding is in no product.
  """
  products: float
  layers: int
  heads: int
  head_width: int
  wide: float
  parameters: int

  def operations(self, n_context: int, seen: float = 1.0) -> float:
    """Operations of a token in contexts of `n_context`: a parameter in a product counts 2, a pair of positions 4 A.

    Args:
      n_context: tokens of a context.
      seen: the share of all pairs of positions that are computed.
    """
    return 2 * self.products + 4 * seen * n_context * self.layers * self.heads * self.head_width

  def traffic(self, n_context: int, item: int) -> float:
    """Bytes that a token moves through memory besides products; scores of attention are written and read twice."""
    return self.wide * item + 4 * 4 * n_context * self.layers * self.heads


def pass_of(a: "Architecture", sites: typing.Sequence[str] | None, with_logits: bool = False) -> Pass:
  """The pass of a pretrained subject up to the last of some sites, or through all of its layers.

  Args:
    a: the subject.
    sites: None for all layers.
    with_logits: whether logits are computed, too.
  """
  from monojax.subjects.pretrained.model import layer_shapes, param_shapes
  from monojax.subjects.pretrained.weights import layers_for
  n = layers_for(a, sites)
  matrices = sum(_size(shape) for name, shape in layer_shapes(a).items() if name.startswith("W_"))
  head = a.vocab_size * a.d_model if with_logits and a.causal else 0
  wide = 12 * a.d_model + (3 + a.gated) * a.d_mlp + 4 * (a.n_heads + 2 * a.n_key_heads) * a.head_width
  parameters = param_shapes(a, n, "float32")
  n_parameters = sum(_size(leaf.shape) for leaf in [*parameters.pop("layers").values(), *parameters.values()])
  return Pass(n * matrices + head, n, a.n_heads, a.head_width, n * wide + (3 * a.vocab_size if head else 0),
              n_parameters)


def seen_of(a: "Architecture", n_context: int) -> float:
  """The share of all pairs of positions whose scores `monojax.subjects.pretrained.attention` computes."""
  from monojax.subjects.pretrained.attention import n_blocks
  blocks = n_blocks(n_context)
  return (blocks + 1) / (2 * blocks) if a.causal else 1.0


def step_operations(n_read: int, n_written: int, n_features: int) -> float:
  """Operations of a dictionary's five products for each row: two that encode, three that decode."""
  return (4 * n_read + 6 * n_written) * n_features


def _size(shape: typing.Iterable[int]) -> int:
  found = 1
  for n in shape:
    found *= n
  return found


@dataclasses.dataclass(frozen=True)
class Rates:
  """What a device does.

  Attributes:
    operations: of matrix products, a second.
    bytes: that are read from memory or written to it, a second.
  """
  operations: float
  bytes: float


@dataclasses.dataclass
class Stage:
  """What a stage of a run needs.

  Attributes:
    name: the stage.
    operations: of matrix products.
    traffic: bytes that move through memory besides.
    weights: bytes of weights that are read from files.
    disk: bytes that are written.
  """
  name: str
  operations: float = 0.0
  traffic: float = 0.0
  weights: float = 0.0
  disk: float = 0.0

  def add(self, n_tokens: float, p: Pass, n_context: int, seen: float, item: int) -> None:
    """Adds `n_tokens` that go through a subject."""
    self.operations += n_tokens * p.operations(n_context, seen)
    self.traffic += n_tokens * p.traffic(n_context, item)

  def seconds(self, rates: Rates) -> float:
    return self.operations / rates.operations + self.traffic / rates.bytes + self.weights / _READ_RATE


def stages_of(config: RunConfig, a: "Architecture", item: int, n_available: int = 0) -> list[Stage]:
  """What each stage of a run needs.

  Args:
    config: its settings.
    a: its subject.
    item: bytes of a number that the subject computes with.
    n_available: training tokens that there are; 0 if that is not known.
  """
  from monojax.subjects.sample import bucket
  from monojax.subjects.subject import site_of
  harvest, sae, n_context = config.activations, config.sae.resolved(), config.subject.n_context
  resolved = lambda names: [site_of(a.site_widths, name) for name in names]
  sites = resolved(harvest.computed)
  kept, seen = (harvest.tokens_per_context or n_context) / n_context, seen_of(a, n_context)
  to_site, whole = pass_of(a, sites), pass_of(a, None, with_logits=True)
  width_of = dict(zip(harvest.computed, (a.site_widths[site] for site in sites), strict=True))
  widths = {name: width_of[same_token(name)] for name in harvest.sites}
  n_read, n_written = (sum(a.site_widths[site] for site in resolved(names)) for names in sae.wired(harvest.site))
  n_limit = n_available or float("inf")
  n_tokens = min(harvest.n_tokens or n_available, n_limit)

  all_weights = whole.parameters * item
  subject = Stage("subject")
  if a.causal:
    subject.weights = all_weights
    subject.add(config.subject.val_tokens, whole, n_context, seen, item)
    n_drawn = bucket(config.subject.sample_tokens) if config.subject.sample_tokens else 0
    subject.traffic += _SAMPLES * n_drawn * whole.products * item  # weights are read again for each token
  activations = Stage("activations")
  if harvest.source == "store":
    activations.add(n_tokens, to_site, n_context, seen, item)
    stored = {"float32": 4, "int8": 1}.get(harvest.dtype, 2)
    activations.weights = to_site.parameters * item
    activations.disk = n_tokens * kept * (sum(widths.values()) * stored + PLACES_BYTES)
  training = Stage("sae", weights=all_weights, disk=_SAVED_BYTES * (n_read + n_written) * sae.n_features)
  _add_training(training, sae, sae.n_steps, n_read, n_written)
  n_rows = sae.n_steps * sae.batch_rows
  if sae.kl_coefficient:  # forwards as it is and spliced; backwards from the logits to the site
    training.add(3 * n_rows, whole, n_context, seen, item)
    training.add(-n_rows, to_site, n_context, seen, item)
  elif harvest.source == "stream":
    training.weights += to_site.parameters * item
    training.add(n_rows / kept, to_site, n_context, seen, item)
  training.add(_PASSES_OF_FIDELITY * sae.val_tokens, whole, n_context, seen, item)
  frontier = Stage("frontier", weights=all_weights)
  for _ in config.frontier.sparsities:
    _add_training(frontier, sae, config.frontier.n_steps or sae.n_steps, n_read, n_written)
    frontier.add(2 * sae.val_tokens, whole, n_context, seen, item)
  analysis, measured = Stage("analysis", weights=all_weights), config.analysis
  n_analysed = (min(measured.n_tokens or n_available, n_limit)
                + _PASSES_OF_DETECTORS * min(measured.n_detector_tokens or n_available, n_limit))
  analysis.add(n_analysed, to_site, n_context, seen, item)
  analysis.operations += n_analysed * 2 * n_read * sae.n_features
  analysis.traffic += n_analysed * _CODE_PASSES * 4 * sae.n_features
  if a.causal:
    analysis.add(measured.n_scale_tokens, pass_of(a, None), n_context, seen, item)
    analysis.add(_PASSES_OF_SHARES * measured.n_share_tokens, whole, n_context, seen, item)
    analysis.operations += 2 * a.d_model * (a.vocab_size + n_written) * sae.n_features
  return [subject, activations, training, *([frontier] if frontier.operations else []), analysis]


def _add_training(stage: Stage, sae: "SAEConfig", n_steps: int, n_read: int, n_written: int) -> None:
  n_rows = n_steps * sae.batch_rows
  stage.operations += n_rows * step_operations(n_read, n_written, sae.n_features)
  if recipe_of(sae.recipe).pairs:  # earlier tokens are encoded, too
    stage.operations += n_rows * 4 * n_read * sae.n_features
  stage.traffic += 4 * (n_steps * _UPDATE_PASSES * (n_read + n_written) + n_rows * _CODE_PASSES) * sae.n_features


def memory_of(a: "Architecture", n_read: int, n_written: int, n_features: int, item: int, n_split: int,
              sites: typing.Sequence[str] | None = None) -> tuple[int, int]:
  """Bytes of (weights, a dictionary in training) on each device, where so many share each.

  Args:
    a: the subject.
    n_read, n_written, n_features: M, O and F.
    item: bytes of a number of the weights.
    n_split: devices along the mesh's axis "model".
    sites: the only sites that are needed; None for the whole subject.
  """
  import jax
  import numpy as np

  from monojax import mesh as meshes
  from monojax.subjects.pretrained.model import PretrainedTransformer, param_shapes
  from monojax.subjects.pretrained.weights import layers_for
  params = param_shapes(a, layers_for(a, sites), f"float{8 * item}")
  mesh = jax.sharding.AbstractMesh((1, n_split), ("data", "model"))
  where = meshes.shardings(params, mesh, PretrainedTransformer(a).sharding_rules)
  parts = jax.tree.map(lambda leaf, place: item * int(np.prod(place.shard_shape(leaf.shape))), params, where)
  return sum(jax.tree.leaves(parts)), STATE_BYTES * (n_read + n_written) * n_features // n_split


def of_run(config: RunConfig, n_available: int = 0, each_site: bool = False) -> str:
  """A table of what a run of a pretrained subject will take on these devices, at rates that are measured here.

  Args:
    config: its settings.
    n_available: training tokens that there are, where the text has been prepared already.
    each_site: whether each further site gets a dictionary, too; they are a row of the table together.
  """
  import numpy as np

  from monojax.subjects.pretrained.weights import open_weights
  from monojax.subjects.subject import site_of
  from monojax.training import compute_dtype
  dtype = np.dtype(compute_dtype(config.subject.compute_dtype))
  weights = open_weights(config.subject.weights)
  a, sae, rates = weights.architecture, config.sae.resolved(), measured_rates(dtype)
  about = n_available or int(config.tokens.max_bytes * (1 - config.tokens.val_fraction)) // _TEXT_BYTES
  stages = stages_of(config, a, dtype.itemsize, about)
  if each_site:
    stages.append(_of_other_sites(config, a, dtype.itemsize, about))
  n_read, n_written = (sum(a.site_widths[site_of(a.site_widths, name)] for name in names)
                       for names in sae.wired(config.activations.site))
  model, state = memory_of(a, n_read, n_written, sae.n_features, dtype.itemsize, config.mesh.model)
  lines = [f"plan for {weights.description}",
           f"  {'stage':<12}{'time':>10}{'disk':>12}",
           *(f"  {stage.name:<12}{shown_time(stage.seconds(rates)):>10}{shown_bytes(stage.disk):>12}"
             for stage in stages),
           f"  memory of each device: {shown_bytes(model)} of weights and {shown_bytes(state)} for training, besides "
           "batches",
           f"  times follow from {rates.operations / 1e9:,.0f} GFLOP/s of products in {dtype.name} and "
           f"{rates.bytes / 1e9:,.1f} GB/s of memory, measured just now on one device; compiling takes some seconds "
           "a stage besides, and how long tokens and pages take is not in the table"]
  if not about and not config.activations.n_tokens:
    lines.append("  activations.n_tokens=0 takes all of the text, whose length is not known yet: its time and disk "
                 "are not in this table")
  return "\n".join(lines)


def _of_other_sites(config: RunConfig, a: "Architecture", item: int, n_available: int) -> Stage:
  """What the dictionaries of all further sites need together: training and analysis."""
  total = Stage("other sites")
  for site in config.activations.computed[1:]:
    sae = dataclasses.replace(config.sae, reads=(site,), writes=(site,))
    for stage in stages_of(dataclasses.replace(config, sae=sae), a, item, n_available):
      if stage.name in ("sae", "analysis"):
        total.operations += stage.operations
        total.traffic += stage.traffic
        total.weights += stage.weights
        total.disk += stage.disk
  return total


def measured_rates(dtype: typing.Any) -> Rates:
  """The rates of one device, measured on a product of matrices and on one of a matrix and a vector."""
  import jax
  import jax.numpy as jnp
  product = jax.jit(lambda a, b: a @ b)
  a, b = jnp.ones((1024, 2048), dtype), jnp.ones((2048, 2048), dtype)
  large = jnp.ones((4096, 8192), jnp.float32)  # larger than caches
  total = jax.jit(lambda x: x * 2 + 1)
  operations = 2 * 1024 * 2048 * 2048 / _seconds(lambda: product(a, b))
  return Rates(operations, 2 * large.nbytes / _seconds(lambda: total(large)))


def _seconds(call: typing.Callable[[], typing.Any]) -> float:
  """The time of a call, once it is compiled: the mean over some tenths of a second."""
  import jax
  jax.block_until_ready(call())
  n, start = 0, time.perf_counter()
  while time.perf_counter() - start < _MEASURED_SECONDS:
    jax.block_until_ready(call())
    n += 1
  return (time.perf_counter() - start) / n


def shown_time(seconds: float) -> str:
  """A time in the largest unit of which there are two."""
  for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
    if seconds >= 2 * size:
      return f"{seconds / size:.3g} {unit}"
  return f"{seconds:.3g} s" if seconds >= 1 or not seconds else "< 1 s"


def shown_bytes(n_bytes: float) -> str:
  """A number of bytes in the largest unit of which there is one; "-" for none."""
  for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if n_bytes >= size:
      return f"{n_bytes / size:,.1f} {unit}"
  return f"{n_bytes:,.0f} B" if n_bytes else "-"
