"""A trained dictionary for use: encode, decode, measure, save and load it.

Letters: N rows, M width read, O width written, F features.
"""

import dataclasses
import functools
import pathlib
import typing

import jax
import jax.numpy as jnp
import numpy as np

from monojax import checkpoint, hub
from monojax import config as configs
from monojax.activations.arrays import as_numpy
from monojax.config import require
from monojax.sae.begin import settings_of
from monojax.sae.config import SAEConfig
from monojax.sae.form import Form
from monojax.sae.model import Dictionary, Wiring
from monojax.sae.recipes import Recipe, make_recipe
from monojax.training import compute_dtype
from monojax.variance import joined, share_unexplained, spread

_OWN = ("sae", "wiring", "sites", "form")  # what is kept beside the parameters in any case
_CHUNK_ROWS = 8192  # rows of a NumPy array that are computed at a time
Array = np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class SAE:
  """A sparse autoencoder (or a transcoder, or a crosscoder) with its parameters, for raw activations.

  A NumPy array is computed in chunks and gives a NumPy array. A JAX array is computed at once and gives a JAX array,
  also inside of `jit` and `grad`.

  Attributes:
    config: how it was trained; of a dictionary that was read from another tool's files, the recipe nearest to it.
    model: the linen module: `sae.model.apply({"params": sae.params}, x_NM, method="encode")`.
    params: its parameters, device arrays. Directions `params["W_dec_FO"]` have unit norm (in the TopK family their mean
      has), unless it was read from another tool's files: `direction_FO` is right for all.
    sites: names of the sites that it was trained on, in the order of `model.wiring`; () where they have no names.
    about: further facts that were saved beside it, such as what it was trained on.
    form: what it computes, where that is not what its recipe would; None where it is.
  """
  config: SAEConfig
  model: Dictionary
  params: dict
  sites: tuple[str, ...] = ()
  about: dict = dataclasses.field(default_factory=dict)
  form: Form | None = None

  @property
  def n_features(self) -> int:
    """F."""
    return self.model.n_features

  @property
  def reads(self) -> tuple[str, ...]:
    """Names of the sites whose activations, side by side, it reads."""
    return tuple(self.sites[i] for i in self.model.wiring.reads) if self.sites else ()

  @property
  def writes(self) -> tuple[str, ...]:
    """Names of the sites whose activations, side by side, it reconstructs."""
    return tuple(self.sites[i] for i in self.model.wiring.writes) if self.sites else ()

  @property
  def direction_FO(self) -> np.ndarray:
    """What one unit of each feature adds to a reconstruction, shape (F, O)."""
    return np.asarray(self.model.apply({"params": self.params}, method="directions"))

  def encode(self, x_NM: Array) -> Array:
    """Features f_NF of activations x_NM; NaN for a row that holds a number that is not finite.

    Raises:
      InputError: the activations have another width.
    """
    return self._by_chunks(self._encode, x_NM, self.model.wiring.n_inputs, "x")

  def decode(self, f_NF: Array, x_NM: Array | None = None) -> Array:
    """Reconstructions y_NO of features f_NF.

    A dictionary with a skip connection, or that changes each row by itself, needs the activations read, too.

    Raises:
      InputError: the features have another width, or the activations are missing.
    """
    require(not self.model.needs_input or x_NM is not None, "x", None,
            "what this dictionary writes also depends on its input directly: call decode(f, x)")
    if not self.model.needs_input:
      return self._by_chunks(self._decode, f_NF, self.n_features, "f")
    f_NF, x_NM = (x if isinstance(x, jax.Array) else as_numpy(x, name) for x, name in ((f_NF, "f"), (x_NM, "x")))
    together = (jnp if isinstance(f_NF, jax.Array) else np).concatenate([f_NF, x_NM], axis=1)
    return self._by_chunks(self._decode_with_input, together, self.n_features + self.model.wiring.n_inputs, "f, x")

  def metrics(self, x_NM: Array, y_NO: Array | None = None) -> dict[str, typing.Any]:
    """How sparse and how faithful it is on some rows.

    Args:
      x_NM: activations, for instance held-out ones.
      y_NO: what is to be reconstructed; by default `x_NM`.

    Returns:
      "n_rows"; "l0", features that fire on a row, on average; "explained_variance", 1 - E|y - y_hat|^2 / E|y - E y|^2,
      which is None where all rows are equal; "mse", the mean of (y - y_hat)^2 over rows and columns; "dead_fraction",
      the features that fire on none of the rows; "density_F", the fraction of the rows on which each feature fires.
      Sums are in float64.

    Raises:
      InputError: the shapes do not fit, or a number is not finite.
    """
    x_NM = as_numpy(x_NM, "x")
    require(y_NO is not None or self.model.wiring.autoencodes, "y", None,
            "this dictionary reconstructs other activations than it reads: give them, too")
    y_NO = x_NM if y_NO is None else as_numpy(y_NO, "y")
    require(len(x_NM) == len(y_NO) > 0, "y", y_NO.shape, f"must have a row for each of the {len(x_NM)} rows of x")
    require(y_NO.ndim == 2 and y_NO.shape[1] == self.model.wiring.n_outputs, "y.shape", y_NO.shape,
            f"needs rows of {self.model.wiring.n_outputs} numbers")
    total: dict[str, typing.Any] = {}
    rows = None
    for first in range(0, len(x_NM), _CHUNK_ROWS):
      part = slice(first, first + _CHUNK_ROWS)
      x_part_NM, part_NO = x_NM[part].astype(np.float32), y_NO[part].astype(np.float64)
      for name, rows_NJ in (("x", x_part_NM), ("y", part_NO)):
        require(np.isfinite(rows_NJ).all(), name, "NaN or infinite", "in some rows: leave these out")
      f_NF = self.encode(x_part_NM)
      y_hat_NO = self.decode(f_NF, x_part_NM).astype(np.float64)
      sums = {"fired_F": (f_NF > 0).sum(0), "error": np.square(part_NO - y_hat_NO).sum()}
      rows = joined(rows, spread(part_NO))
      total = {name: total.get(name, 0) + value for name, value in sums.items()}
    n_rows = len(x_NM)
    assert rows is not None  # there is at least one row
    unexplained = share_unexplained(total["error"], rows)
    return {"n_rows": n_rows, "l0": float(total["fired_F"].sum() / n_rows),
            "explained_variance": None if unexplained is None else 1 - unexplained,
            "mse": float(total["error"] / y_NO.size), "dead_fraction": float((total["fired_F"] == 0).mean()),
            "density_F": total["fired_F"] / n_rows}

  def save(self, directory: str | pathlib.Path) -> None:
    """Writes it to a folder, in the place of what an earlier `save` left there; `SAE.load` reads it.

    The folder is an orbax checkpoint of the parameters. The configuration is its metadata. `monojax.interop.write`
    writes other tools' files.
    """
    checkpoint.save_params(directory, self.params, settings_of(self.config, self.model.wiring, kept_about(self)))

  @classmethod
  def load(cls, directory: str | pathlib.Path, sites: tuple[str, ...] = (), recipe: Recipe | None = None) -> "SAE":
    """Reads a dictionary that `save` wrote, one that a run trained, or one in another tool's files.

    Args:
      directory: the folder, for instance `RUN/sae/dictionary`; a file or folder that `monojax.interop.read` reads; or
        either on the Hugging Face hub, as `hf:NAME[@REVISION][/FOLDER]`.
      sites: names of its sites, where what is read does not say: dictionaries of version 0.1 were saved without.
      recipe: the record of its recipe, if that is not part of monojax.

    Raises:
      InputError: the folder holds no dictionary.
    """
    if hub.is_hub(directory) or _is_foreign(pathlib.Path(directory)):
      from monojax import interop
      return interop.read(directory, sites=sites, recipe=recipe)
    params, kept, step = checkpoint.load_params(directory)
    require(step == 0, "directory", str(directory), "holds checkpoints of training; name the folder of the finished "
            "parameters beside it, dictionary/")
    return cls.of(params, kept, str(directory), sites, recipe)

  @classmethod
  def of(cls, params: dict, kept: dict, place: str, sites: tuple[str, ...] = (), recipe: Recipe | None = None) -> "SAE":
    """The dictionary of some parameters and of the settings that `save` keeps with them.

    Args:
      params: {name: array}.
      kept: "sae", "wiring", "sites", "form" and further facts.
      place: where they were read, for the error.
      sites, recipe: as for `load`.

    Raises:
      InputError: the settings are none of a dictionary.
    """
    require("sae" in kept and "wiring" in kept, "directory", place,
            "holds parameters without a dictionary's configuration")
    config, wiring = configs.from_dict(SAEConfig, kept["sae"]), configs.from_dict(Wiring, kept["wiring"]).in_use()
    form = configs.from_dict(Form, kept["form"]) if "form" in kept else None
    dtype, own = compute_dtype(config.compute_dtype), recipe if recipe and recipe.name == config.recipe else None
    model = (form.model(wiring, config.n_features, dtype) if form else make_recipe(config, wiring, dtype, own).model)
    about = {name: value for name, value in kept.items() if name not in _OWN}
    names = tuple(kept.get("sites", sites))[:len(wiring.widths)]
    return cls(config, model, jax.tree.map(jnp.asarray, params), names, about, form)

  def push(self, spec: str, folder: str = "", format: str = "safetensors", private: bool = False,
           figures: dict[str, typing.Any] | None = None, **options: typing.Any) -> str:
    """Sends it to the Hugging Face hub with a model card; `SAE.load` reads it there.

    Args:
      spec: "hf:NAME[@BRANCH]", the repository, which is made if there is none.
      folder: where in the repository it goes; by default its root.
      format: in which files, a name of `monojax.interop.FORMATS`.
      private: whether a repository that is made here can be seen only by its owner.
      figures: {name: number or text} for the card, such as what `metrics` returns.
      **options: further arguments of `monojax.interop.write`, such as `model_name`.

    Returns:
      The commit's address.

    Raises:
      InputError: the format cannot hold it, or it could not be sent.
    """
    from monojax import interop
    return interop.push(self, spec, folder, format, private, figures, **options)

  def _by_chunks(self, function, x, width, name):
    """`function(params, x)` at once for a JAX array; otherwise chunk by chunk, on the host."""
    x = x if isinstance(x, jax.Array) else as_numpy(x, name)
    require(x.ndim == 2 and x.shape[1] == width, f"{name}.shape", tuple(x.shape), f"needs rows of {width} numbers")
    if isinstance(x, jax.Array):
      return function(self.params, x)
    if len(x) <= _CHUNK_ROWS:
      return np.asarray(function(self.params, x))
    parts = []
    for first in range(0, len(x), _CHUNK_ROWS):
      part = x[first:first + _CHUNK_ROWS]
      padded = np.pad(part, ((0, _CHUNK_ROWS - len(part)), (0, 0)))  # one shape, so that it is compiled once
      parts.append(np.asarray(function(self.params, padded))[:len(part)])
    return np.concatenate(parts)

  @functools.cached_property
  def _encode(self):
    def encode(params, x_NM):
      f_NF = self.model.apply({"params": params}, x_NM.astype(jnp.float32), method="encode")
      return jnp.where(jnp.isfinite(x_NM).all(axis=1, keepdims=True), f_NF, jnp.nan)
    return jax.jit(encode)

  @functools.cached_property
  def _decode(self):
    return jax.jit(lambda params, f_NF: self.model.apply({"params": params}, f_NF, method="decode"))

  @functools.cached_property
  def _decode_with_input(self):
    n = self.n_features
    return jax.jit(lambda params, both: self.model.apply({"params": params}, both[:, :n], None, both[:, n:],
                                                         method="decode"))


def kept_about(sae: SAE) -> dict[str, typing.Any]:
  """What is kept beside a dictionary's parameters, besides its settings and wiring."""
  return {**sae.about, "sites": list(sae.sites), **({"form": configs.to_dict(sae.form)} if sae.form else {})}


def _is_foreign(place: pathlib.Path) -> bool:
  """Whether a path is a file, or a folder that holds something and no checkpoint."""
  if not place.is_dir():
    return place.is_file()
  return any(place.iterdir()) and not checkpoint.is_checkpoint(place)
