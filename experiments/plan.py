"""What a dictionary will cost before it is trained: time, storage and network of each stage, and what limits it.

Operations and bytes follow from the shapes; rates are yours to give, and best measured: bench_sae.py prints the
products' operations a second, bench_store.py the disk's bytes a second.

  python experiments/plan.py --preset=paper
  python experiments/plan.py --preset=gemma-2-9b --n_features=131072 --n_rows=8000000000 --devices=8 --tflops=400
"""

from absl import flags

from monojax import cli
from monojax.config import InputError

# Up to the site: parameters in products, layers and width. The paper's subject: one layer of width 128, attention and
# the MLP's first matrix. Gemma-2-9B: its layer 20 of 42, embeddings aside (8.3 billion parameters without them).
PRESETS = {
    "paper": {"n_rows": 8_200_000_000, "width": 512, "n_features": 4096, "context": 1024, "tokens_per_context": 250,
              "subject_params": 131_072, "layers": 1, "d_model": 128},
    "gemma-2-9b": {"n_rows": 4_000_000_000, "width": 3584, "n_features": 16_384, "context": 1024,
                   "tokens_per_context": 1024, "subject_params": 4_150_000_000, "layers": 21, "d_model": 3584},
}
_PRESET = flags.DEFINE_enum("preset", "paper", PRESETS, "shapes to start from")
_SHAPES = {
    "n_rows": "activation vectors the dictionary is trained on, each once", "width": "numbers in each",
    "n_features": "features of the dictionary", "context": "tokens the subject reads at a time",
    "tokens_per_context": "how many of them are kept", "subject_params": "parameters in products up to the site",
    "layers": "attention layers up to the site", "d_model": "their width",
}
for _name, _help in _SHAPES.items():
  flags.DEFINE_integer(_name, None, f"{_help}; by default the preset's")
_BATCH = flags.DEFINE_integer("batch_rows", 8192, "rows of a step")
_BYTES = flags.DEFINE_integer("row_number_bytes", 2, "bytes of a stored number: 2, or 1 for int8")
_TFLOPS = flags.DEFINE_float("tflops", 400.0, "operations a second that one device sustains, in 10^12")
_DEVICES = flags.DEFINE_integer("devices", 1, "how many there are")
_MODEL = flags.DEFINE_integer("mesh.model", 1, "of these, devices that share the features")
_DEVICE_GB = flags.DEFINE_float("device_gb", 80.0, "memory of one device")
_DISK = flags.DEFINE_float("disk_gb_per_s", 1.0, "bytes a second that all processes together read and write, in 10^9")
_NETWORK = flags.DEFINE_float("network_gb_per_s", 50.0, "bytes a second between devices, in 10^9")
_STEP = flags.DEFINE_float("step_ratio", 1.1, "a step's time over that of its five dense products; sparse codes on a "
                           "CPU reach 0.35")
PLACES_BYTES = 16  # a row's token, document, position and domain


def main():
  shape = {name: getattr(flags.FLAGS, name) or value for name, value in PRESETS[_PRESET.value].items()}
  if min(shape.values()) < 1 or _DEVICES.value % getattr(flags.FLAGS, "mesh.model"):
    raise InputError(f"{shape}: numbers must be positive, and --mesh.model must divide --devices")
  print(", ".join(f"{name} {value:,}" for name, value in shape.items()))
  for line in plan(**shape):
    print(line)


def plan(n_rows, width, n_features, context, tokens_per_context, subject_params, layers, d_model):
  """Lines of text, a stage each."""
  rate, disk, model = _DEVICES.value * _TFLOPS.value * 1e12, _DISK.value * 1e9, getattr(flags.FLAGS, "mesh.model")
  n_data, n_tokens, n_steps = _DEVICES.value // model, n_rows // tokens_per_context * context, n_rows // _BATCH.value
  row_bytes = width * _BYTES.value + PLACES_BYTES
  forward = n_tokens * (2 * subject_params + 4 * context * d_model * layers) / rate
  transfer = n_rows * row_bytes / disk
  params = 2 * width * n_features
  state_gb = 16 * params / model / 1e9  # parameters, gradients and two moments, float32
  train = 10 * n_rows * width * n_features * _STEP.value / rate
  # Rings: gradients are reduced over "data", partial sums of the reconstruction and of its gradient over "model".
  reduced = 2 * (n_data - 1) / n_data * 4 * params / model
  partial = 2 * 2 * (model - 1) / model * 4 * _BATCH.value / n_data * width
  network = n_steps * (reduced + partial) / (_NETWORK.value * 1e9)

  def line(stage, **seconds):
    limit = max(seconds, key=seconds.get)
    parts = ", ".join(f"{name} {_time(value)}" for name, value in seconds.items())
    return f"{stage:<16}{_time(seconds[limit]):>9}  limited by {limit:<8} ({parts})"
  yield (f"storage          {n_rows * row_bytes / 1e12:.3g} TB, {n_rows:,} rows of {row_bytes:,} bytes; "
         "a stream needs none")
  yield line("harvest", compute=forward, disk=transfer)
  yield line("train: store", compute=train, disk=transfer, network=network)
  # Devices that share features each run the subject on the same contexts.
  yield line("train: stream", compute=train + model * forward, network=network)
  yield (f"state            {state_gb:.3g} GB a device, of {_DEVICE_GB.value:g}"
         + ("" if state_gb < _DEVICE_GB.value else f": does not fit, raise --mesh.model to {_fitting(params)}"))


def _fitting(params):
  """The smallest power of two of devices that hold a dictionary's state in four fifths of their memory."""
  n = 1
  while 16 * params / n / 1e9 > 0.8 * _DEVICE_GB.value:
    n *= 2
  return n


def _time(seconds):
  for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
    if seconds >= 2 * size:
      return f"{seconds / size:.3g} {unit}"
  return f"{seconds:.3g} s"


if __name__ == "__main__":
  cli.run(main)
