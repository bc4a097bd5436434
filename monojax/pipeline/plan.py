"""What a run of a pretrained subject will take: memory, disk and time of a stage, from shapes and a measured rate."""

import dataclasses
import time
import typing

from monojax.pipeline.config import RunConfig

if typing.TYPE_CHECKING:
  from monojax.subjects.pretrained.architecture import Architecture

_PLACES_BYTES = 16  # a row's token, document, position and domain
_PRODUCTS_OF_TRAINING = 10  # operations of a step for each row, input and feature: five products of 2
_PASSES_OF_FIDELITY = 4  # as it is, spliced, with zero and with the mean
_MEASURED_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Shapes:
  """What a pass over a subject costs.

  Attributes:
    width: numbers in a row of the sites together.
    site_operations: operations of a token up to the last of the sites.
    all_operations: those up to the logits.
    site_parameters, parameters: numbers to load for either.
  """
  width: int
  site_operations: float
  all_operations: float
  site_parameters: int
  parameters: int


def shapes(a: "Architecture", sites: typing.Sequence[str], n_context: int) -> Shapes:
  """The cost of a subject for contexts of `n_context` tokens; a product of n parameters counts 2 n operations."""
  from monojax.subjects.pretrained.weights import bytes_of, layers_for
  embedding = a.vocab_size * a.d_model * (1 if a.tied or not a.causal else 2)
  n_site = layers_for(a, sites)
  in_layers = bytes_of(a, "float32", a.n_layers) // 4 - embedding
  layer = in_layers / a.n_layers
  attention = 2 * n_context * a.n_heads * a.head_width  # scores and mixing, half of them for causal attention
  head = a.vocab_size * a.d_model if a.causal else 0
  return Shapes(sum(a.site_widths[site] for site in sites), n_site * (2 * layer + attention),
                a.n_layers * (2 * layer + attention) + 2 * head, bytes_of(a, "float32", n_site) // 4,
                bytes_of(a, "float32", a.n_layers) // 4)


def of_run(config: RunConfig) -> str:
  """A table of what a run of a pretrained subject will take on these devices, at their measured rate of products."""
  import numpy as np

  from monojax.subjects.pretrained.weights import open_weights
  from monojax.subjects.subject import site_of
  from monojax.training import compute_dtype
  dtype = compute_dtype(config.subject.compute_dtype)
  weights = open_weights(config.subject.weights)
  a, harvest, sae = weights.architecture, config.activations, config.sae.resolved()
  sites = [site_of(a.site_widths, site) for site in harvest.sites]
  cost, rate = shapes(a, sites, config.subject.n_context), _rate(dtype)
  n_tokens = harvest.n_tokens or 0
  item = {"float32": 4, "int8": 1}.get(harvest.dtype, 2)
  kept = (harvest.tokens_per_context or config.subject.n_context) / config.subject.n_context
  disk = n_tokens * kept * (cost.width * item + _PLACES_BYTES) if harvest.source == "store" else 0
  n_read = cost.width // max(1, len(sites))
  train = sae.n_steps * sae.batch_rows * _PRODUCTS_OF_TRAINING * n_read * sae.n_features
  if sae.kl_coefficient:  # forwards as it is and spliced; backwards from the logits to the site
    train += sae.n_steps * sae.batch_rows * (3 * cost.all_operations - cost.site_operations)
  elif harvest.source == "stream":
    train += sae.n_steps * sae.batch_rows / kept * cost.site_operations
  causal = a.causal
  rows = [
      ("subject", config.subject.val_tokens * cost.all_operations * causal, 0),
      ("activations", n_tokens * cost.site_operations * (harvest.source == "store"), disk),
      ("sae", train + _PASSES_OF_FIDELITY * sae.val_tokens * cost.all_operations, 16 * 2 * n_read * sae.n_features),
      ("analysis", config.analysis.n_tokens * (cost.site_operations + 2 * n_read * sae.n_features), 0)]
  memory = cost.parameters * np.dtype(dtype).itemsize + 16 * 2 * n_read * sae.n_features
  lines = [f"plan for {weights.description}",
           f"  {'stage':<12}{'time':>10}{'disk':>12}",
           *(f"  {name:<12}{_time(operations / rate):>10}{_bytes(n_bytes):>12}" for name, operations, n_bytes in rows),
           f"  memory for weights and training: {_bytes(memory)}; the device does {rate / 1e9:,.0f} GFLOP/s in "
           f"{np.dtype(dtype).name}, at which alone these times are computed"]
  if not n_tokens:
    lines.append("  activations.n_tokens=0 takes all of the text, whose length is not known yet")
  return "\n".join(lines)


def _rate(dtype: typing.Any) -> float:
  """Operations a second of matrix products on one device, measured."""
  import jax
  import jax.numpy as jnp
  a, b = jnp.ones((1024, 2048), dtype), jnp.ones((2048, 2048), dtype)
  product = jax.jit(lambda a, b: a @ b)
  jax.block_until_ready(product(a, b))
  n, start = 0, time.perf_counter()
  while time.perf_counter() - start < _MEASURED_SECONDS:
    jax.block_until_ready(product(a, b))
    n += 1
  return n * 2 * 1024 * 2048 * 2048 / (time.perf_counter() - start)


def _time(seconds: float) -> str:
  for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
    if seconds >= 2 * size:
      return f"{seconds / size:,.1f} {unit}"
  return f"{seconds:,.0f} s"


def _bytes(n_bytes: float) -> str:
  for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
    if n_bytes >= size:
      return f"{n_bytes / size:,.1f} {unit}"
  return "-" if not n_bytes else f"{n_bytes:,.0f} B"
