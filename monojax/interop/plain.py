"""What every format is read into and written from: a dictionary as plain arrays, and what it computes with them.

Letters: M width read, O width written, F features.
"""

import dataclasses
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from monojax.config import InputError, require
from monojax.sae.config import SAEConfig
from monojax.sae.dictionary import SAE
from monojax.sae.form import Form, form_of, thresholds
from monojax.sae.model import Wiring
from monojax.training import compute_dtype

ORIGIN = "interop"  # the entry of `SAE.about` that keeps what a file said and monojax has no other place for
# The entry of that which says that the sites are those of modules' outputs, before any norm behind a module.
OF_MODULE = "of_module"
_NEAREST = {"relu": "tm2023", "threshold": "jumprelu", "topk": "topk", "gated": "gated"}


@dataclasses.dataclass(frozen=True)
class Plain:
  """A dictionary of one site, or from one site to another.

  Attributes:
    form: what it computes.
    params: float32 arrays by monojax's names, those that the form's model has.
    reads, writes: the sites, "" where they are not known; the same in an autoencoder.
    autoencodes: whether what is read is what is written.
    origin: {"format": its name, "config": what its files said}, kept so that the same can be written again.
    settings: settings of the recipe that is nearest to it, in which fine-tuning may go on.
  """
  form: Form
  params: dict[str, np.ndarray]
  reads: str = ""
  writes: str = ""
  autoencodes: bool = True
  origin: dict[str, Any] = dataclasses.field(default_factory=dict)
  settings: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def n_inputs(self) -> int:
    """M."""
    return self.params["W_enc_MF"].shape[0]

  @property
  def n_outputs(self) -> int:
    """O."""
    return self.params["W_dec_FO"].shape[1]

  @property
  def n_features(self) -> int:
    """F."""
    return self.params["W_enc_MF"].shape[1]


def shapes(form: Form, n_inputs: int, n_outputs: int, n_features: int) -> dict[str, tuple[int, ...]]:
  """{name: shape} of the parameters that a dictionary of a form has."""
  m, o, f = n_inputs, n_outputs, n_features
  beside = {"threshold": ("threshold_F",), "gated": ("r_F", "b_mag_F")}.get(form.nonlinearity, ())
  return {"W_enc_MF": (m, f), "b_enc_F": (f,), "W_dec_FO": (f, o), "b_dec_O": (o,), **{name: (f,) for name in beside},
          **({"W_skip_MO": (m, o)} if form.skip else {})}


def checked(plain: Plain, path: pathlib.Path) -> Plain:
  """The same, whose parameters are of the right shapes.

  Raises:
    InputError: they are not, or are not finite.
  """
  encoder, decoder = plain.params["W_enc_MF"], plain.params["W_dec_FO"]
  if encoder.ndim != 2 or decoder.ndim != 2:
    raise InputError(f"{path}: its encoder and decoder are no matrices, but of shape {encoder.shape} and "
                     f"{decoder.shape}")
  wanted = shapes(plain.form, plain.n_inputs, plain.n_outputs, plain.n_features)
  for name, shape in wanted.items():
    value = plain.params[name]
    if value.shape != shape:
      raise InputError(f"{path}: what is {name} here has shape {value.shape}, and beside an encoder of "
                       f"{plain.n_inputs} x {plain.n_features} it needs {shape}")
    if not np.isfinite(value).all():
      raise InputError(f"{path}: what is {name} here holds numbers that are not finite")
  require(not plain.autoencodes or plain.n_inputs == plain.n_outputs, "source", str(path),
          f"reads {plain.n_inputs} numbers and writes {plain.n_outputs}, and says that it is no transcoder")
  if plain.form.nonlinearity == "topk":
    require(plain.form.k <= plain.n_features, "source", str(path),
            f"keeps {plain.form.k} of {plain.n_features} features")
  return plain


def sae_of(plain: Plain) -> SAE:
  """The `SAE` that computes the same."""
  recipe = {"recipe": _NEAREST[plain.form.nonlinearity], **plain.settings}
  if plain.form.nonlinearity == "topk":
    recipe["k"] = plain.form.k
  recipe["k"] = min(recipe.get("k", 32), plain.n_features)
  config = SAEConfig(n_features=plain.n_features, skip=plain.form.skip and not plain.autoencodes, **recipe)
  widths = (plain.n_inputs,) if plain.autoencodes else (plain.n_inputs, plain.n_outputs)
  wiring = Wiring(widths, (0,), (len(widths) - 1,))
  named = (plain.reads,) if plain.autoencodes else (plain.reads, plain.writes)
  model = plain.form.model(wiring, plain.n_features, compute_dtype(config.compute_dtype))
  params = {name: jnp.asarray(value) for name, value in plain.params.items()}
  about = {ORIGIN: plain.origin} if plain.origin else {}
  return SAE(config, model, params, named if all(named) else (), about, plain.form)


def plain_of(sae: SAE, format: str) -> Plain:
  """An `SAE` as plain arrays, to be written in some format.

  Raises:
    InputError: it reads or writes several sites, which only monojax's own formats hold.
  """
  wiring = sae.model.wiring
  require(len(wiring.reads) == len(wiring.writes) == 1, "format", format, "holds dictionaries that read one site and "
          "write one: the formats safetensors and monojax hold crosscoders, too")
  form = form_of(sae.model)
  params = dict(sae.params)
  if form.nonlinearity == "threshold":
    params["threshold_F"] = thresholds(sae.model, sae.params)
  wanted = shapes(form, wiring.n_inputs, wiring.n_outputs, sae.n_features)
  arrays = {name: np.asarray(params[name], np.float32) for name in wanted}
  reads, writes = sae.reads or ("",), sae.writes or ("",)
  return Plain(form, arrays, reads[0], writes[0], wiring.autoencodes, sae.about.get(ORIGIN, {}))


def refuse(format: str, what: str, others: str) -> InputError:
  """The error for a dictionary that a format cannot express."""
  return InputError(f"format={format!r}: cannot hold {what}: choose {others}")


def without_norms(plain: Plain) -> Plain:
  """The same dictionary whose features are in units of their own, where they were in those of directions' norms."""
  if not plain.form.by_norm:
    return plain
  norm_F = np.linalg.norm(plain.params["W_dec_FO"], axis=1)  # a feature without a direction never fires
  folded = {"W_enc_MF": plain.params["W_enc_MF"] * norm_F[None], "b_enc_F": plain.params["b_enc_F"] * norm_F,
            "W_dec_FO": plain.params["W_dec_FO"] / np.where(norm_F > 0, norm_F, np.float32(1))[:, None]}
  return dataclasses.replace(plain, form=dataclasses.replace(plain.form, by_norm=False),
                             params={**plain.params, **folded})


def with_pre_bias(plain: Plain, pre_bias: bool) -> Plain:
  """The same dictionary with, or without, the decoder's bias subtracted first; the encoder's bias makes up for it."""
  if plain.form.pre_bias == pre_bias:
    return plain
  shift_F = plain.params["b_dec_O"].astype(np.float64) @ plain.params["W_enc_MF"].astype(np.float64)
  shift_F = shift_F if pre_bias else -shift_F
  moved = {"b_enc_F": (plain.params["b_enc_F"] + shift_F).astype(np.float32)}
  if "b_mag_F" in plain.params:
    moved["b_mag_F"] = (plain.params["b_mag_F"] + np.exp(plain.params["r_F"]) * shift_F).astype(np.float32)
  return dataclasses.replace(plain, form=dataclasses.replace(plain.form, pre_bias=pre_bias),
                             params={**plain.params, **moved})
