"""The contract of a subject, the network under study, and the one place that builds a subject from its configuration.

Letters: B contexts of a batch, T positions of a context, V tokens of the vocabulary, D width of the residual stream,
M width of a site.
"""

import collections.abc
import dataclasses
import pathlib
import typing

import jax
import jax.numpy as jnp
import numpy as np

from monojax import checkpoint
from monojax import config as configs
from monojax import mesh as meshes
from monojax.config import require
from monojax.subjects.config import SubjectConfig
from monojax.training import compute_dtype

Sites = dict[str, jax.Array]
# What replaces the activation at each named site: a function of the activation that returns one of the same shape.
Edit = collections.abc.Mapping[str, collections.abc.Callable[[jax.Array], jax.Array]]
# Keys and values of the tokens read so far, and "length", the number of these tokens; what is kept beyond it does not
# count and is overwritten.
Cache = dict[str, jax.Array]
# The site that the unembedding reads, which every subject has.
LAST = "final.in"


@dataclasses.dataclass(frozen=True)
class LogitPath:
  """How a direction at a site reaches the logits directly, without passing through later layers.

  A direction d in R^M at the site adds `d @ to_residual_MD` to the residual stream. The logits are
  `norm(residual) @ W_unembed_DV`, and the norm divides by the residual stream's scale, which is known only on text: see
  `scale_site`. With `bias_D` added to what the norm gives, and with `logit_cap`, that is exact.

  Attributes:
    to_residual_MD: maps the site's activation to what it adds to the residual stream; None if the site itself is added.
    norm: "layer", which subtracts the mean over D and divides by the standard deviation; or "rms", which divides by the
      root mean square.
    gain_D: what the norm multiplies by.
    W_unembed_DV: from the normed residual stream to the logits.
    scale_site: the site that holds the last residual stream, on which the typical scale can be measured.
    only: whether this is the only way in which the site reaches the logits, so that a change of its activation changes
      the logits of its own position alone, and only through the last norm.
    epsilon: what the norm adds to the mean of squares before it takes the root.
    bias_D: what is added to what the norm gives; None for nothing.
    logit_cap: where it is not 0, logits z become cap tanh(z / cap).
  """
  to_residual_MD: jax.Array | None
  norm: typing.Literal["layer", "rms"]
  gain_D: jax.Array
  W_unembed_DV: jax.Array
  scale_site: str
  only: bool = False
  epsilon: float = 0.0
  bias_D: jax.Array | None = None
  logit_cap: float = 0.0


class Subject(collections.abc.Hashable, typing.Protocol):
  """The network under study: from tokens to logits, with its inner activations on the way.

  Subjects are linen modules without state, so that functions of them can be compiled and cached by the subject itself.
  Everything outside of `monojax/subjects/` talks to a subject through this contract alone: it neither names a
  parameter nor a class of a family.

  Attributes:
    n_vocab: how many tokens the subject knows; ids are below it.
    max_context: the longest context it can read, or None if there is no limit. How long the contexts of a run are is a
      setting of the run (`SubjectConfig.n_context`), not of the subject.
    site_widths: {site: width of the activation there}, in the order in which the forward pass computes them.
    n_heads: attention heads of a layer; `layer.L.attn.z` holds what each of them has gathered, side by side.
    sharding_rules: where its parameters are on a mesh when it is run, see `monojax.mesh.shardings`; those without a
      rule are whole on every device.
    output: what a forward pass gives beside its sites: "logits" of each next token; or, of an encoder, which predicts
      no tokens, an "embedding" of each context.
    depends_on_length: whether what is computed on a token depends on how many tokens there is room for, as with some
      scalings of rotary positions. It must then be just the room that is needed.
  """

  @property
  def n_vocab(self) -> int: ...

  @property
  def max_context(self) -> int | None: ...

  @property
  def site_widths(self) -> dict[str, int]: ...

  @property
  def n_heads(self) -> int: ...

  @property
  def sharding_rules(self) -> collections.abc.Mapping[str, jax.sharding.PartitionSpec]: ...

  @property
  def output(self) -> typing.Literal["logits", "embedding"]: ...

  @property
  def depends_on_length(self) -> bool: ...

  def apply(self, variables: dict, tokens_BT: jax.Array, edit: Edit | None = None, *,
            wanted: collections.abc.Collection[str] | None = None) -> tuple[jax.Array, Sites]:
    """(logits_BTV in float32, {site: activation of shape (B, T, width)}) of token ids; of an encoder, embedding_BD.

    Sites are named alike in every family: `embed`; then for layer L `layer.L.attn.in`, `layer.L.attn.z`,
    `layer.L.attn.out`, `layer.L.mlp.in`, `layer.L.mlp.hidden`, `layer.L.mlp.out` and `layer.L.resid`; and `final.in`.
    Some families have more. Under `jit`, what the caller does not use is not computed: asking for a site alone runs the
    subject up to there and no further.

    Args:
      variables: {"params": parameters}.
      tokens_BT: integer token ids.
      edit: {site: function}: the function's result takes the activation's place before anything reads it. Functions
        are called in the order of the sites.
      wanted: the sites to return, by default all of them. A deep subject computes layers of which none is wanted or
        edited in one compiled loop, which is faster and is compiled sooner.

    Raises:
      ValueError: `edit` or `wanted` names a site that the subject does not have.
    """
    ...

  def new_cache(self, n_contexts: int, n_positions: int) -> Cache | None:
    """An empty memory for texts of up to `n_positions` tokens; None where the subject has none.

    With it a text can be continued token by token without reading it again each time.
    """
    ...

  def extend(self, variables: dict, cache: Cache, tokens_BT: jax.Array,
             edit: Edit | None = None) -> tuple[jax.Array, Cache]:
    """(logits_BTV, the cache) of tokens that follow those in the cache; see `apply`."""
    ...

  def logit_path(self, params: dict, site: str) -> LogitPath | None:
    """How a direction at the site reaches the logits, or None where it does so only through later computation."""
    ...

  def frozen(self) -> "Subject":
    """The same network, whose derivatives take the scales of norms and the patterns of attention for constants.

    What it computes is the same. Its derivatives say how much of an activation comes from another one along all paths
    through the residual stream, heads' values and MLPs: of what lies between two MLPs, which is then linear, exactly.
    Without this, the derivative of a norm by the length of what it reads would be 0, and cancel what it is asked for.
    """
    ...


def build(config: SubjectConfig) -> Subject:
  """The subject that a `SubjectConfig` describes, whose vocabulary size is filled in."""
  from monojax.subjects.transformer import Transformer  # imported here, since that module imports this one
  return Transformer(config.model, compute_dtype(config.compute_dtype))


@dataclasses.dataclass(frozen=True)
class LoadedSubject:
  """A subject with its parameters, as the stages of a run and a notebook use it.

  Attributes:
    model: the `Subject`.
    params: its parameters, device arrays.
    n_context: how many tokens of a text it is given to read at a time, a setting of the run.
  """
  model: Subject
  params: dict
  n_context: int

  def __post_init__(self) -> None:
    limit = self.model.max_context
    require(limit is None or self.n_context <= limit, "subject.n_context", self.n_context,
            f"this subject reads at most {limit} tokens at a time")

  def placed(self, mesh: jax.sharding.Mesh) -> "LoadedSubject":
    """The same subject with its parameters on the devices of a mesh, split over them or whole on each."""
    where = meshes.shardings(self.params, mesh, self.model.sharding_rules)
    if jax.process_count() == 1:
      return dataclasses.replace(self, params=jax.device_put(self.params, where))
    # Each process has all of it, and its devices take their parts.
    return dataclasses.replace(self, params=jax.tree.map(
        lambda leaf, place: meshes.on_mesh(np.asarray(leaf), mesh, place.spec), self.params, where))


def unembedded(model: Subject, params: dict, u_BTD: jax.Array) -> jax.Array:
  """Logits (B, T, V) of what the unembedding reads, u; under `jit` nothing else of the subject is computed."""
  nothing_BT = jnp.zeros(u_BTD.shape[:2], jnp.int32)
  return model.apply({"params": params}, nothing_BT, {LAST: lambda x: u_BTD}, wanted=())[0]


def site_of(widths: collections.abc.Mapping[str, int], name: str, flag: str = "activations.site") -> str:
  """A site's name as the subject has it; layers may be counted from the end: layer.-1.resid is of the last one.

  Args:
    widths: the subject's `site_widths`.
    name: the name as a user gives it.
    flag: what an error calls the setting.

  Raises:
    InputError: the subject has no such site; the message says which it has.
  """
  parts = name.split(".")
  n_layers = 1 + max((int(site.split(".")[1]) for site in widths if site.startswith("layer.")), default=-1)
  if len(parts) > 2 and parts[0] == "layer" and parts[1].startswith("-") and parts[1][1:].isdigit():
    parts[1] = str(n_layers + int(parts[1]))
  found = ".".join(parts)
  listed = ", ".join(widths)
  if n_layers > 1:
    inner = [site.removeprefix("layer.0") for site in widths if site.startswith("layer.0.")]
    outer = [site for site in widths if not site.startswith("layer.")]
    listed = f"layer.0 to layer.{n_layers - 1}, each with {', '.join(inner)}; and {', '.join(outer)}"
  require(found in widths, flag, name, f"the subject's sites are {listed}")
  return found


def load_pretrained(config: SubjectConfig, sites: collections.abc.Collection[str] | None = None,
                    mesh: jax.sharding.Mesh | None = None) -> LoadedSubject:
  """The pretrained subject that `config.weights` names.

  Args:
    config: the settings.
    sites: the only sites that are needed, of which no layer after the last is loaded; by default all of the model is.
    mesh: the devices that its parameters are split over; by default one device.

  Raises:
    InputError: the weights cannot be used.
  """
  from monojax.subjects.pretrained import weights as pretrained  # imported here, since that module imports this one
  weights = pretrained.open_weights(config.weights)
  n_loaded = pretrained.layers_for(weights.architecture, sites)
  model, params = pretrained.load_params(weights, compute_dtype(config.compute_dtype), mesh, n_loaded)
  return LoadedSubject(model, params, config.n_context)


def load(directory: str | pathlib.Path) -> LoadedSubject:
  """The subject whose training left its checkpoints in a folder.

  Raises:
    InputError: the folder holds no finished checkpoint.
  """
  params, saved, _ = checkpoint.load_params(directory)
  config = configs.from_dict(SubjectConfig, saved["subject"])
  return LoadedSubject(build(config), jax.tree.map(jnp.asarray, params), config.n_context)
