"""Other tools' SAE files, made by hand with NumPy, and what their dictionaries compute, by hand: for `interop_test`."""

import dataclasses
import io
import json
import pickle
import zipfile

import numpy as np
from safetensors.numpy import save_file

M, F, O, K = 12, 40, 10, 5  # noqa: E741  widths read and written, features, features kept


@dataclasses.dataclass
class Foreign:
  """A dictionary by hand: what its file is, and the features and reconstructions of rows."""
  path: object
  encode: object
  decode: object
  sites: tuple = ()


def arrays(seed=0, n_out=M, unit=False):
  """Random weights, none of which is a special case, but directions of norm 1 if asked for."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape, scale=1.0: (scale * rng.standard_normal(shape)).astype(np.float32)
  W_dec = normal(F, n_out, scale=0.4)
  W_dec = W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True) if unit else W_dec
  return {"W_enc": normal(M, F), "b_enc": normal(F, scale=0.3), "W_dec": W_dec, "b_dec": normal(n_out, scale=0.5),
          "threshold": np.abs(normal(F)) + np.float32(0.1),
          "r_mag": normal(F, scale=0.2), "b_mag": normal(F, scale=0.3), "W_skip": normal(n_out, M, scale=0.2)}


def rows(n=64, seed=9):
  return np.random.default_rng(seed).standard_normal((n, M)).astype(np.float32)


def relu(h):
  return np.maximum(h, 0)


def kept(h, k=K):
  """The k largest of each row, cut off at 0."""
  kth = np.sort(h, axis=1)[:, -k][:, None]
  return np.where(h >= kth, relu(h), 0)


def features(a, kind, x, pre_bias=False, k=K, by_norm=False):
  """Features by hand, in float64."""
  a = {name: np.asarray(value, np.float64) for name, value in a.items()}
  x = np.asarray(x, np.float64) - (a["b_dec"] if pre_bias else 0)
  h = x @ a["W_enc"] + a["b_enc"]
  if by_norm:
    h = h * np.linalg.norm(a["W_dec"], axis=1)
  if kind == "gated":
    return (h > 0) * relu(x @ (a["W_enc"] * np.exp(a["r_mag"])) + a["b_mag"])
  return {"relu": relu, "threshold": lambda h: relu(h) * (h > a["threshold"]),
          "topk": lambda h: kept(h, k)}[kind](h)


def written(a, f, x, by_norm=False, skip=False):
  """Reconstructions by hand, in float64."""
  W_dec = np.asarray(a["W_dec"], np.float64)
  f = f / np.linalg.norm(W_dec, axis=1) if by_norm else f
  return f @ W_dec + a["b_dec"] + (x @ a["W_skip"].T.astype(np.float64) if skip else 0)


def standardised(x):
  """(rows of mean 0 and standard deviation 1, means, deviations), as OpenAI's do it."""
  middle = x.mean(1, keepdims=True, dtype=np.float64)
  size = x.std(1, keepdims=True, ddof=1, dtype=np.float64)
  return (x - middle) / (size + 1e-5), middle, size


SAE_LENS = {  # architecture: (kind, tensors, further settings)
    "standard": ("relu", ("W_enc", "b_enc", "W_dec", "b_dec"), {}),
    "topk": ("topk", ("W_enc", "b_enc", "W_dec", "b_dec"), {"k": K, "rescale_acts_by_decoder_norm": False}),
    "topk by norm": ("topk", ("W_enc", "b_enc", "W_dec", "b_dec"), {"k": K, "rescale_acts_by_decoder_norm": True}),
    "jumprelu": ("threshold", ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"), {}),
    "gated": ("gated", ("W_enc", "b_gate", "W_dec", "b_dec", "r_mag", "b_mag"), {}),
    "transcoder": ("relu", ("W_enc", "b_enc", "W_dec", "b_dec"), {"d_out": O}),
    "skip_transcoder": ("relu", ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip"), {"d_out": O}),
    "jumprelu_transcoder": ("threshold", ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"), {"d_out": O}),
    "jumprelu_skip_transcoder": ("threshold", ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "W_skip"),
                                 {"d_out": O})}


def sae_lens(directory, name, pre_bias=False, seed=0, **cfg):
  """A folder of SAELens with an architecture."""
  kind, tensors, more = SAE_LENS[name]
  transcodes = "d_out" in more
  a = arrays(seed, O if transcodes else M)
  directory.mkdir(parents=True)
  save_file({tensor: a["b_enc" if tensor == "b_gate" else tensor] for tensor in tensors},
            directory / "sae_weights.safetensors")
  metadata = {"sae_lens_version": "6.54.12", "model_name": "toy", "context_size": 64, "prepend_bos": True,
              "hook_name": "blocks.3.mlp.hook_in" if transcodes else "blocks.3.hook_resid_post",
              **({"hook_name_out": "blocks.3.hook_mlp_out"} if transcodes else {})}
  settings = {"d_in": M, "d_sae": F, "dtype": "float32", "device": "cpu", "architecture": name.split()[0],
              "apply_b_dec_to_input": pre_bias, "normalize_activations": "none", "reshape_activations": "none",
              "metadata": metadata, **more, **cfg}
  (directory / "cfg.json").write_text(json.dumps(settings))
  by_norm, skip = bool(more.get("rescale_acts_by_decoder_norm")), "W_skip" in tensors
  return Foreign(directory, lambda x: features(a, kind, x, pre_bias, K, by_norm),
                 lambda f, x: written(a, f, x, by_norm, skip),
                 ("layer.3.mlp.in", "layer.3.mlp.out") if transcodes else ("layer.3.resid",))


def sparsify(directory, transcode=False, skip=False):
  """A folder of sparsify, for the output of an MLP."""
  directory = directory / "layers.3.mlp"
  directory.mkdir(parents=True)
  a = arrays(2)
  save_file({"encoder.weight": np.ascontiguousarray(a["W_enc"].T), "encoder.bias": a["b_enc"], "W_dec": a["W_dec"],
             "b_dec": a["b_dec"], **({"W_skip": a["W_skip"]} if skip else {})}, directory / "sae.safetensors")
  (directory / "cfg.json").write_text(json.dumps({
      "activation": "topk", "expansion_factor": 32, "normalize_decoder": False, "num_latents": F, "k": K,
      "multi_topk": False, "skip_connection": skip, "transcode": transcode, "d_in": M}))
  return Foreign(directory, lambda x: features(a, "topk", x, not transcode), lambda f, x: written(a, f, x, skip=skip),
                 ("layer.3.mlp.in", "layer.3.mlp.out") if transcode else ("layer.3.mlp.out",))


def gemma_scope(directory):
  """A file of Gemma Scope's first edition, in its folders."""
  directory = directory / "gemma-scope-2b-pt-res" / "layer_7" / "width_16k" / "average_l0_82"
  directory.mkdir(parents=True)
  a = arrays(3)
  np.savez(directory / "params.npz", **{name: a[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")})
  return Foreign(directory, lambda x: features(a, "threshold", x), lambda f, x: written(a, f, x), ("layer.7.resid",))


def gemma_scope_2(directory, skip=False):
  """A file of Gemma Scope's second edition: a transcoder, with an affine skip or without."""
  name = "layer_7_width_16k_l0_small" + ("_affine" if skip else "")
  directory = directory / "gemma-scope-2-270m-pt" / "transcoder" / name
  directory.mkdir(parents=True)
  a = arrays(4, O)
  tensors = {"w_enc": a["W_enc"], "w_dec": a["W_dec"], "b_enc": a["b_enc"], "b_dec": a["b_dec"],
             "threshold": a["threshold"]}
  if skip:
    tensors["affine_skip_connection"] = np.ascontiguousarray(a["W_skip"].T)
  save_file(tensors, directory / "params.safetensors")
  (directory / "config.json").write_text(json.dumps({"architecture": "jump_relu", "affine_connection": skip}))
  return Foreign(directory, lambda x: features(a, "threshold", x), lambda f, x: written(a, f, x, skip=skip),
                 ("layer.7.mlp.in", "layer.7.mlp.out"))


def circuit_tracer(directory, jump=False, skip=False):
  """A file of circuit-tracer's per-layer transcoders, with the configuration of its folder."""
  directory.mkdir(parents=True)
  a = arrays(5)
  tensors = {"W_enc": np.ascontiguousarray(a["W_enc"].T), "W_dec": a["W_dec"], "b_enc": a["b_enc"], "b_dec": a["b_dec"],
             **({"activation_function.threshold": a["threshold"]} if jump else {}),
             **({"W_skip": a["W_skip"]} if skip else {})}
  save_file(tensors, directory / "layer_3.safetensors")
  (directory / "config.yaml").write_text('model_name: toy\nmodel_kind: "transcoder_set"\n'
                                         "feature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n")
  kind = "threshold" if jump else "relu"
  return Foreign(directory / "layer_3.safetensors", lambda x: features(a, kind, x),
                 lambda f, x: written(a, f, x, skip=skip), ("layer.3.mlp.in", "layer.3.mlp.out"))


class Storage:
  """Stands for a storage while a file of PyTorch's is pickled."""

  def __init__(self, key, array):
    self.key, self.array = key, array


class Named:
  """Stands for a function or type of PyTorch's: pickled as its name alone."""

  def __init__(self, module, name):
    self.module, self.name = module, name


class Pickler(pickle._Pickler):
  """Pickles NumPy arrays as `torch.save` does tensors: calls of torch's functions on references to storages."""

  kinds = {"<f4": "FloatStorage", "<f2": "HalfStorage", "<i8": "LongStorage", "<i4": "IntStorage",
           "<u2": "BFloat16Storage"}

  def __init__(self, file):
    super().__init__(file, protocol=2)
    self.storages = []

  def save(self, obj, save_persistent_id=True):
    if isinstance(obj, Named):
      self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
    elif isinstance(obj, np.ndarray):
      key = str(len(self.storages))
      flat = np.array(obj, order="C")
      self.storages.append(flat.tobytes())
      self.save(Named("torch._utils", "_rebuild_tensor_v2"))
      self.write(pickle.MARK)
      super().save(("storage", Named("torch", self.kinds[obj.dtype.str]), key, "cpu", obj.size))
      self.write(pickle.BINPERSID)
      steps = tuple(step // obj.itemsize for step in flat.strides)
      for value in (0, tuple(obj.shape), steps, False):
        super().save(value)
      self.save(Named("collections", "OrderedDict"))
      self.write(pickle.EMPTY_TUPLE + pickle.REDUCE + pickle.TUPLE + pickle.REDUCE)
    else:
      super().save(obj, save_persistent_id)


def torch_save(state, path):
  """Writes what `torch.save` would of a dict of arrays and plain values; uint16 arrays stand for bfloat16."""
  buffer = io.BytesIO()
  pickler = Pickler(buffer)
  pickler.dump(state)
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
    archive.writestr("archive/data.pkl", buffer.getvalue())
    archive.writestr("archive/version", b"3\n")
    archive.writestr("archive/byteorder", b"little")
    for key, content in enumerate(pickler.storages):
      archive.writestr(f"archive/data/{key}", content)


def dictionary_learning(directory, kind, config=True):
  """`ae.pt` of a class of dictionary_learning, with `config.json` or without."""
  directory.mkdir(parents=True)
  a = arrays(6)
  linear = {"encoder.weight": np.ascontiguousarray(a["W_enc"].T), "decoder.weight": np.ascontiguousarray(a["W_dec"].T)}
  plain = {name: a[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
  k, one = np.array(K, np.int32), np.array(0.7, np.float32)
  constant = {**a, "threshold": np.full(F, 0.7, np.float32)}
  norm = np.linalg.norm(a["W_dec"], axis=1)
  unit = {**a, "W_enc": a["W_enc"] * norm, "b_enc": a["b_enc"] * norm, "W_dec": a["W_dec"] / norm[:, None]}
  state, used, form = {
      "AutoEncoder": ({**linear, "encoder.bias": a["b_enc"], "bias": a["b_dec"]}, unit, ("relu", True)),
      "AutoEncoderNew": ({**linear, "encoder.bias": a["b_enc"], "decoder.bias": a["b_dec"]}, a, ("relu", False)),
      "GatedAutoEncoder": ({**linear, "decoder_bias": a["b_dec"], "gate_bias": a["b_enc"], "r_mag": a["r_mag"],
                            "mag_bias": a["b_mag"]}, a, ("gated", True)),
      "JumpReluAutoEncoder": ({**plain, "threshold": a["threshold"]}, a, ("threshold", False)),
      "AutoEncoderTopK": ({**linear, "encoder.bias": a["b_enc"], "b_dec": a["b_dec"], "k": k,
                           "threshold": np.array(-1, np.float32)}, a, ("topk", True)),
      "BatchTopKSAE": ({**linear, "encoder.bias": a["b_enc"], "b_dec": a["b_dec"], "k": k, "threshold": one},
                       constant, ("threshold", True)),
      "MatryoshkaBatchTopKSAE": ({**plain, "k": k, "threshold": one, "group_sizes": np.array([8, 12, 20])}, constant,
                                 ("threshold", True))}[kind]
  torch_save(state, directory / "ae.pt")
  if config:
    (directory / "config.json").write_text(json.dumps({"trainer": {
        "dict_class": kind, "k": K, "layer": 3, "submodule_name": "resid_post_layer_3"}, "buffer": {}}))
  return Foreign(directory, lambda x: features(used, form[0], x, form[1]), lambda f, x: written(used, f, x),
                 ("layer.3.resid",) if config else ())


def openai(path):
  """A state dict of OpenAI's: TopK of standardised rows."""
  a = arrays(7)
  torch_save({"encoder.weight": np.ascontiguousarray(a["W_enc"].T), "latent_bias": a["b_enc"], "pre_bias": a["b_dec"],
              "decoder.weight": np.ascontiguousarray(a["W_dec"].T), "stats_last_nonzero": np.zeros(F, np.int64),
              "activation": "TopK", "activation_state_dict": {"k": K, "postact_fn": "ReLU"}}, path)

  def decode(f, x):
    _, middle, size = standardised(x)
    return written(a, f, x) * size + middle
  return Foreign(path, lambda x: features(a, "topk", standardised(x)[0], True), decode)


def qwen_scope(directory):
  """A file of Qwen-Scope, in a folder that is named as its repository."""
  directory = directory / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_5"
  directory.mkdir(parents=True)
  a = arrays(8)
  torch_save({"W_enc": np.ascontiguousarray(a["W_enc"].T), "W_dec": np.ascontiguousarray(a["W_dec"].T),
              "b_enc": a["b_enc"], "b_dec": a["b_dec"]}, directory / "layer4.sae.pt")
  return Foreign(directory / "layer4.sae.pt", lambda x: features(a, "topk", x), lambda f, x: written(a, f, x),
                 ("layer.4.resid",))


MAKERS = {
    **{f"sae_lens {name}": lambda d, name=name: sae_lens(d / "sae", name) for name in SAE_LENS},
    **{f"sae_lens {name} centred": lambda d, name=name: sae_lens(d / "sae", name, True)
       for name in ("standard", "topk", "jumprelu", "gated")},
    "sparsify": sparsify, "sparsify skip": lambda d: sparsify(d, skip=True),
    "sparsify transcoder": lambda d: sparsify(d, True), "sparsify skip transcoder": lambda d: sparsify(d, True, True),
    "gemma_scope": gemma_scope, "gemma_scope_2": gemma_scope_2, "gemma_scope_2 skip": lambda d: gemma_scope_2(d, True),
    "circuit_tracer": lambda d: circuit_tracer(d / "set"),
    "circuit_tracer jump": lambda d: circuit_tracer(d / "set", True),
    "circuit_tracer skip": lambda d: circuit_tracer(d / "set", True, True),
    **{f"dictionary_learning {kind}": lambda d, kind=kind: dictionary_learning(d / "ae", kind)
       for kind in ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK",
                    "BatchTopKSAE", "MatryoshkaBatchTopKSAE")},
    "openai": lambda d: openai(d / "3.pt"), "qwen_scope": qwen_scope}
