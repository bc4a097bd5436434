"""circuit-tracer's cross-layer transcoders: for each layer its encoder, and its decoders to that and later layers.

A folder holds for each layer `W_enc_{i}.safetensors` (W_enc_i, b_enc_i, b_dec_i and, with JumpReLU, threshold_i) and
`W_dec_{i}.safetensors` (W_dec_i, whose slice j writes to layer i + j); and `config.yaml`, which names the hooks. In
monojax it is one dictionary of all layers, read and written side by side, with the setting `causal`. Weights between
layers that are not there are held as zeros, so that it takes L times the memory of the files' encoders and twice that
of their decoders.

Letters: L layers, M width of a layer, C features of a layer, F = L * C.
"""

import pathlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from monojax import host_memory
from monojax.config import InputError, require
from monojax.interop.circuit_tracer import CONFIG, HOOKS, NAME, entries, without_negative, write_config
from monojax.interop.plain import ORIGIN, refuse
from monojax.interop.sites import hook_of, layer_of, site_of
from monojax.interop.tensors import header, read_safetensors, taken, write_safetensors
from monojax.sae.config import SAEConfig
from monojax.sae.dictionary import SAE
from monojax.sae.form import Form, form_of, thresholds
from monojax.sae.model import Wiring
from monojax.training import compute_dtype

FIRST = "W_enc_0.safetensors"


def read(directory: pathlib.Path) -> SAE:
  """The cross-layer transcoder in a folder, one dictionary of all layers.

  Raises:
    InputError: a file is missing or damaged, the layers are not alike, or all of it does not fit into memory.
  """
  shape = header(directory / FIRST)[0].get("W_enc_0", ())
  if len(shape) != 2:
    raise InputError(f"{directory / FIRST}: has no matrix W_enc_0")
  each, width = shape
  n_layers = _n_layers(directory)
  n_features = each * n_layers
  n_bytes = 8 * n_features * width * n_layers
  require(n_bytes < host_memory.total_bytes(), "source", str(directory), f"of {n_layers} layers of {each} features "
          f"needs {n_bytes / 1e9:.1f} GB here, since the features of each layer are held as if they read every layer: "
          "read one of fewer layers or features")
  shapes = {"W_enc_MF": (width * n_layers, n_features), "b_enc_F": (n_features,),
            "W_dec_FO": (n_features, width * n_layers), "b_dec_O": (width * n_layers,)}
  params = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
  jumps = "threshold_0" in header(directory / FIRST)[0]
  if jumps:
    params["threshold_F"] = np.zeros(n_features, np.float32)
  for i in range(n_layers):
    own, columns = slice(each * i, each * (i + 1)), slice(width * i, width * (i + 1))
    encoder, decoder = directory / f"W_enc_{i}.safetensors", directory / f"W_dec_{i}.safetensors"
    names = [f"W_enc_{i}", f"b_enc_{i}", f"b_dec_{i}", *([f"threshold_{i}"] if jumps else [])]
    found = _only(encoder, names)
    written = _only(decoder, [f"W_dec_{i}"])[f"W_dec_{i}"]
    wanted = {f"W_enc_{i}": (each, width), f"b_enc_{i}": (each,), f"b_dec_{i}": (width,),
              **({f"threshold_{i}": (each,)} if jumps else {})}
    for name, its_shape in wanted.items():
      require(found[name].shape == its_shape, "source", str(encoder),
              f"has {name} of shape {found[name].shape}, beside other layers' of shape {its_shape}")
    require(written.shape == (each, n_layers - i, width), "source", str(decoder), f"has W_dec_{i} of shape "
            f"{written.shape}, and layer {i} of {n_layers} needs {(each, n_layers - i, width)}")
    params["W_enc_MF"][columns, own] = found[f"W_enc_{i}"].T
    params["b_enc_F"][own], params["b_dec_O"][columns] = found[f"b_enc_{i}"], found[f"b_dec_{i}"]
    params["W_dec_FO"][own, width * i:] = written.reshape(each, -1)
    if jumps:
      params["threshold_F"][own] = without_negative(found[f"threshold_{i}"], encoder)
  for name, value in params.items():
    require(np.isfinite(value).all(), "source", str(directory), f"holds numbers that are not finite in {name}")
  return _sae(directory, Form("threshold" if jumps else "relu"), params, n_layers, width)


def _n_layers(directory: pathlib.Path) -> int:
  """How many layers the first decoder writes to.

  Raises:
    InputError: there is no such decoder, or the folder has encoders of other layers.
  """
  first = directory / "W_dec_0.safetensors"
  require(first.is_file(), "source", str(directory), "has no W_dec_0.safetensors, the decoders of layer 0")
  shape = header(first)[0].get("W_dec_0", ())
  require(len(shape) == 3, "source", str(first), "has no array W_dec_0 of three axes")
  there = {path.name for path in directory.glob("W_enc_*.safetensors")}
  wanted = {f"W_enc_{i}.safetensors" for i in range(shape[1])}
  require(there == wanted, "source", str(directory), f"W_dec_0 writes to {shape[1]} layers, and of their encoders "
          f"{', '.join(sorted(wanted - there)) or 'none'} is missing, {', '.join(sorted(there - wanted)) or 'none'} "
          "is there besides")
  return shape[1]


def _only(path: pathlib.Path, names: Sequence[str]) -> dict[str, np.ndarray]:
  """The tensors of a file.

  Raises:
    InputError: some are missing, or there are others, which monojax's cross-layer transcoders have not.
  """
  require(path.is_file(), "source", str(path), "is missing")
  found, _ = read_safetensors(path)
  others = sorted(set(found) - set(names))
  require(not others, "source", str(path), f"has {', '.join(others)}, which monojax's cross-layer transcoders have not")
  return taken(found, path, list(names))


def _sae(directory: pathlib.Path, form: Form, params: dict[str, np.ndarray], n_layers: int, width: int) -> SAE:
  """The `SAE` of these parameters, between the sites that the folder's `config.yaml` names."""
  layers = range(n_layers)
  wiring = Wiring((width,) * 2 * n_layers, tuple(layers), tuple(n_layers + i for i in layers))
  n_features = len(params["b_enc_F"])
  config = SAEConfig(recipe="jan2025" if form.nonlinearity == "threshold" else "apr2024", n_features=n_features,
                     k=min(32, n_features), causal=True)
  said = entries(directory / CONFIG) if (directory / CONFIG).exists() else {}
  sites = tuple(site_of(f"blocks.{i}.{said[hook]}") for hook in HOOKS for i in layers) if all(
      said.get(hook) for hook in HOOKS) else ()
  model = form.model(wiring, n_features, compute_dtype(config.compute_dtype))
  about = {ORIGIN: {"format": NAME}}
  return SAE(config, model, {name: jnp.asarray(value) for name, value in params.items()}, sites, about, form)


def write(sae: SAE, directory: pathlib.Path, model_name: str) -> None:
  """Writes a dictionary that was trained with `causal`; `model_name` is the subject's, for `config.yaml`.

  Raises:
    InputError: circuit-tracer has nothing that computes the same, it is not of all layers from 0 on, or the folder
      holds files of another dictionary.
  """
  wiring, form = sae.model.wiring, form_of(sae.model)
  n_layers = len(wiring.reads)
  require(sae.config.causal and not wiring.autoencodes, "format", NAME, "holds dictionaries of several sites only if "
          "they are transcoders whose features each belong to a layer (sae.causal)")
  if form.nonlinearity not in ("relu", "threshold"):
    raise refuse(NAME, f"a cross-layer transcoder of the kind {form.nonlinearity}", "safetensors or monojax")
  widths = {wiring.widths[i] for i in (*wiring.reads, *wiring.writes)}
  if len(widths) > 1:
    raise refuse(NAME, f"sites of different widths ({', '.join(map(str, sorted(widths)))})", "safetensors or monojax")
  hooks = [_hook(sites) for sites in (sae.reads, sae.writes)]
  there = sorted(path.name for path in directory.glob("*.safetensors")) if directory.is_dir() else []
  replaced = {f"W_{kind}_{i}.safetensors" for kind in ("enc", "dec") for i in range(n_layers)}
  others = [name for name in there if name not in replaced]
  require(not others, "target", str(directory), f"holds {', '.join(others[:3])} of another dictionary: choose another "
          "folder")
  width, each = widths.pop(), sae.n_features // n_layers
  params = {name: np.asarray(value, np.float32) for name, value in sae.params.items()}
  threshold_F = np.asarray(thresholds(sae.model, sae.params)) if form.nonlinearity == "threshold" else None
  for i in range(n_layers):
    own, columns = slice(each * i, each * (i + 1)), slice(width * i, width * (i + 1))
    tensors = {f"W_enc_{i}": params["W_enc_MF"][columns, own].T, f"b_enc_{i}": params["b_enc_F"][own],
               f"b_dec_{i}": params["b_dec_O"][columns]}
    if threshold_F is not None:  # there, features are not cut off at 0, so that no threshold may be below
      tensors[f"threshold_{i}"] = np.maximum(threshold_F[own], 0)
    write_safetensors(directory / f"W_enc_{i}.safetensors", tensors)
    write_safetensors(directory / f"W_dec_{i}.safetensors", {
        f"W_dec_{i}": params["W_dec_FO"][own, width * i:].reshape(each, n_layers - i, width)})
  write_config(directory / CONFIG, model_name, "cross_layer_transcoder", hooks)


def _hook(sites: tuple[str, ...]) -> str:
  """The hook that some sites are, one in each layer from 0 on, without the layer's number."""
  hooks = {hook_of(site).removeprefix(f"blocks.{layer_of(site)}.") for site in sites}
  require(len(hooks) == 1 and [layer_of(site) for site in sites] == list(range(len(sites))), "sites", ", ".join(sites),
          f"{NAME} needs the same site of every layer, from layer 0 on, to be read, and one to be written")
  return hooks.pop()
