"""What a dictionary will cost before it is trained: time, storage, network, memory, and what limits each stage.

Operations and bytes follow from the shapes; rates are yours to give, and best measured: bench_sae.py prints the
products' operations a second, bench_store.py the disk's bytes a second.

  python experiments/plan.py --preset=paper
  python experiments/plan.py --preset=gemma-2-9b --n_features=131072 --n_rows=8000000000 --devices=8 --tflops=400
  python experiments/plan.py --preset=llama-3-8b --site=layer.15.resid --devices=8
  python experiments/plan.py --weights=FOLDER --site=layer.-1.mlp.hidden --n_features=65536

The subject is a preset's; or a pretrained one, of which the folder's config.json or the .gguf file's head is read.
"""

import json
import pathlib

from absl import flags

from monojax import cli
from monojax.config import InputError, require
from monojax.pipeline import plan as plans
from monojax.pipeline.plan import shown_time

# Up to the site: parameters in products, layers and width. The paper's subject: one layer of width 128, attention and
# the MLP's first matrix. Gemma-2-9B: its layer 20 of 42, embeddings aside (8.3 billion parameters without them).
PRESETS = {
    "paper": {"n_rows": 8_200_000_000, "width": 512, "n_features": 4096, "context": 1024, "tokens_per_context": 250,
              "subject_params": 131_072, "layers": 1, "d_model": 128},
    "gemma-2-9b": {"n_rows": 4_000_000_000, "width": 3584, "n_features": 16_384, "context": 1024,
                   "tokens_per_context": 1024, "subject_params": 4_150_000_000, "layers": 21, "d_model": 3584},
}
# Shapes of pretrained subjects that need no files, as their config.json has them.
_LLAMA_3 = {"model_type": "llama", "num_key_value_heads": 8, "vocab_size": 128_256, "max_position_embeddings": 8192}
CONFIGS = {
    "llama-3-8b": {**_LLAMA_3, "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14_336,
                   "num_attention_heads": 32},
    "llama-3-70b": {**_LLAMA_3, "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28_672,
                    "num_attention_heads": 64},
}
_OF_PRETRAINED = {"n_rows": 100_000_000, "n_features": 32_768, "context": 1024}
_PRESET = flags.DEFINE_enum("preset", "paper", (*PRESETS, *CONFIGS), "shapes to start from")
_WEIGHTS = flags.DEFINE_string("weights", "", "a pretrained subject in place of the preset's: a Hugging Face folder, "
                               "hf:NAME, or a .gguf file")
_SITE = flags.DEFINE_string("site", "layer.-1.mlp.hidden", "the site of a pretrained subject")
_SHAPES = {
    "n_rows": "activation vectors the dictionary is trained on, each once", "width": "numbers in each",
    "n_features": "features of the dictionary", "context": "tokens the subject reads at a time",
    "tokens_per_context": "how many of them are kept", "subject_params": "parameters in products up to the site",
    "layers": "attention layers up to the site", "d_model": "their width",
}
for _name, _help in _SHAPES.items():
  flags.DEFINE_integer(_name, None, f"{_help}; by default the preset's or the pretrained subject's")
_BATCH = flags.DEFINE_integer("batch_rows", 8192, "rows of a step")
_BUFFER = flags.DEFINE_integer("buffer_rows", 262_144, "rows of the window that is shuffled")
_BYTES = flags.DEFINE_integer("row_number_bytes", 2, "bytes of a stored number: 2, or 1 for int8")
_TFLOPS = flags.DEFINE_float("tflops", 400.0, "operations a second that one device sustains, in 10^12")
_DEVICES = flags.DEFINE_integer("devices", 1, "how many there are")
_MODEL = flags.DEFINE_integer("mesh.model", 1, "of these, devices that share the features")
_DEVICE_GB = flags.DEFINE_float("device_gb", 80.0, "memory of one device")
_DISK = flags.DEFINE_float("disk_gb_per_s", 1.0, "bytes a second that all processes together read and write, in 10^9")
_NETWORK = flags.DEFINE_float("network_gb_per_s", 50.0, "bytes a second between devices, in 10^9")
_STEP = flags.DEFINE_float("step_ratio", 1.1, "a step's time over that of its five dense products; sparse codes on a "
                           "CPU reach 0.35")
_SPLITS = (1, 2, 4, 8)  # devices for which memory is shown


def main():
  a = subject()
  start = shapes_of(a) if a else PRESETS[_PRESET.value]
  shape = {name: getattr(flags.FLAGS, name) or value for name, value in start.items()}
  if min(shape.values()) < 1 or _DEVICES.value % getattr(flags.FLAGS, "mesh.model"):
    raise InputError(f"{shape}: numbers must be positive, and --mesh.model must divide --devices")
  print(", ".join(f"{name} {value:,}" for name, value in shape.items()))
  for line in plan(a, **shape):
    print(line)
  print(window(shape["width"]))
  for line in memory(a, shape["width"], shape["n_features"]) if a else ():
    print(line)


def subject():
  """The architecture of a pretrained subject; None for the numbers of a preset."""
  from monojax.subjects.pretrained.families import read_config
  from monojax.subjects.pretrained.weights import open_weights
  config = pathlib.Path(_WEIGHTS.value) / "config.json"
  if _WEIGHTS.value and config.is_file():  # the tensors need not be there
    return read_config(json.loads(config.read_text()), _WEIGHTS.value)[1]
  if _WEIGHTS.value:
    return open_weights(_WEIGHTS.value).architecture
  return read_config(CONFIGS[_PRESET.value], _PRESET.value)[1] if _PRESET.value in CONFIGS else None


def shapes_of(a):
  """The numbers of a pretrained subject up to the site, in place of a preset's."""
  from monojax.subjects.subject import site_of
  site = site_of(a.site_widths, _SITE.value, "--site")
  context = flags.FLAGS.context or min(_OF_PRETRAINED["context"], a.max_context)
  require(context <= a.max_context, "--context", context, f"the subject reads at most {a.max_context:,} tokens")
  to_site = plans.pass_of(a, [site])
  return {**_OF_PRETRAINED, "width": a.site_widths[site], "context": context, "tokens_per_context": context,
          "subject_params": to_site.products, "layers": to_site.layers, "d_model": to_site.heads * to_site.head_width}


def plan(a, n_rows, width, n_features, context, tokens_per_context, subject_params, layers, d_model):
  """Lines of text, a stage each."""
  rate, disk, model = _DEVICES.value * _TFLOPS.value * 1e12, _DISK.value * 1e9, getattr(flags.FLAGS, "mesh.model")
  n_data, n_tokens, n_steps = _DEVICES.value // model, n_rows // tokens_per_context * context, n_rows // _BATCH.value
  row_bytes = width * _BYTES.value + plans.PLACES_BYTES
  to_site = plans.Pass(subject_params, layers, 1, d_model, 0, 0)
  forward = n_tokens * to_site.operations(context, plans.seen_of(a, context) if a else 1.0) / rate
  transfer = n_rows * row_bytes / disk
  params = 2 * width * n_features
  state_gb = plans.STATE_BYTES * params / model / 1e9
  train = n_rows * plans.step_operations(width, width, n_features) * _STEP.value / rate
  # Rings: gradients are reduced over "data", partial sums of the reconstruction and of its gradient over "model".
  reduced = 2 * (n_data - 1) / n_data * 4 * params / model
  partial = 2 * 2 * (model - 1) / model * 4 * _BATCH.value / n_data * width
  network = n_steps * (reduced + partial) / (_NETWORK.value * 1e9)

  def line(stage, **seconds):
    limit = max(seconds, key=seconds.get)
    parts = ", ".join(f"{name} {shown_time(value)}" for name, value in seconds.items())
    return f"{stage:<16}{shown_time(seconds[limit]):>9}  limited by {limit:<8} ({parts})"
  yield (f"storage          {n_rows * row_bytes / 1e12:.3g} TB, {n_rows:,} rows of {row_bytes:,} bytes; "
         "a stream needs none")
  # Devices of "model" share a pretrained subject, and add up what each layer's attention and MLP give; one that is
  # trained here runs whole on each.
  shared = 4 * layers * 2 * (model - 1) / model * a.d_model * n_tokens / n_data / (_NETWORK.value * 1e9) if a else 0.0
  yield line("harvest", compute=forward, disk=transfer, **({"network": shared} if a else {}))
  yield line("train: store", compute=train, disk=transfer, network=network)
  # Devices that share features each run a subject that is not split on the same contexts.
  yield line("train: stream", compute=train + (1 if a else model) * forward, network=network + shared)
  yield (f"state            {state_gb:.3g} GB a device, of {_DEVICE_GB.value:g}"
         + ("" if state_gb < _DEVICE_GB.value else f": does not fit, raise --mesh.model to {_fitting(params)}"))


def window(width):
  """A line of text: memory of the window within which rows are shuffled."""
  gigabytes, n_data = _BUFFER.value * width * 2 / 1e9, _DEVICES.value // getattr(flags.FLAGS, "mesh.model")
  return (f"window           {gigabytes / n_data:.3g} GB a device for a stream's rows in 16 bits, or "
          f"{2 * gigabytes:.3g} GB of the host's for two of a store's")


def memory(a, width, n_features):
  """Lines of text: memory of each device, for several --mesh.model."""
  from monojax.subjects.subject import site_of
  site = site_of(a.site_widths, _SITE.value, "--site")
  yield "\nGB a device, weights in bfloat16, where --mesh.model devices share each of them:"
  yield f"{'--mesh.model':>14}{'up to the site':>16}{'whole subject':>16}{'dictionary':>12}{'together':>10}"
  for n_split in _SPLITS:
    part, _ = plans.memory_of(a, width, width, n_features, 2, n_split, [site])
    whole, state = plans.memory_of(a, width, width, n_features, 2, n_split)
    yield (f"{n_split:>14}{part / 1e9:>16.2f}{whole / 1e9:>16.2f}{state / 1e9:>12.2f}{(whole + state) / 1e9:>10.2f}"
           + ("" if whole + state < _DEVICE_GB.value * 1e9 else f"  more than {_DEVICE_GB.value:g}"))


def _fitting(params):
  """The smallest power of two of devices that hold a dictionary's state in four fifths of their memory."""
  n = 1
  while plans.STATE_BYTES * params / n / 1e9 > 0.8 * _DEVICE_GB.value:
    n *= 2
  return n


if __name__ == "__main__":
  cli.run(main)
