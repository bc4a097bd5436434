"""All benchmarks of an accelerator in one command: what to run first on a machine with a GPU or a TPU.

Needs nothing but this repository with its base packages. The parts are run one after the other, each in a process of
its own, until --minutes are over; what has no time left is left out, and said. Figures are written after each part, so
that a machine that is taken away leaves what it has measured:

  python experiments/bench_accelerator.py --out=bench_gpu
  python experiments/bench_accelerator.py --out=bench_gpu --parts=rates,profile
  python experiments/bench_accelerator.py --out=/tmp/toy --toy

OUT/figures.json has every figure by part, OUT/index.html shows them, and OUT/profile holds a trace of some training
steps, for TensorBoard or Perfetto. --toy takes shapes that any machine has room for: it tells that the parts run, not
how fast anything is. Rows a second are of one training step whose rows are on the device; `ratio_to_matmuls` is a
step's time over that of its five dense matrix products, which a dense step cannot do without.
"""

import dataclasses
import html
import json
import pathlib
import subprocess
import sys
import tempfile
import time

from absl import flags

from monojax import cli, files

_OUT = flags.DEFINE_string("out", "bench_accelerator", "the folder of the results")
_MINUTES = flags.DEFINE_float("minutes", 9.0, "when to stop", lower_bound=0.1)
_PARTS = flags.DEFINE_list("parts", None, "names of the parts to run, in this order; by default all")
_TOY = flags.DEFINE_boolean("toy", False, "tiny shapes, to try the command itself")
_ONE = flags.DEFINE_string("one", "", "runs this one part here and writes its figures to --one_out; for the command "
                                      "itself")
_ONE_OUT = flags.DEFINE_string("one_out", "", "see --one")

HERE = pathlib.Path(__file__).parent
_LEAST_SECONDS = 20  # with less time left a part is not begun


@dataclasses.dataclass(frozen=True)
class Part:
  """A benchmark: what it tells, and the script with its flags, or those of a toy; "" is a function of this file."""
  what: str
  script: str = ""
  flags: tuple[str, ...] = ()
  toy: tuple[str, ...] = ()


def _step(width, n_features, batch_rows, recipes, *more):
  shapes = (f"--width={width}", f"--n_features={n_features}", f"--batch_rows={batch_rows}")
  common = (f"--recipes={recipes}", "--dtypes=bfloat16", "--nopeers", *more)
  return Part(f"a training step of {n_features:,} features on {batch_rows:,} rows of width {width:,}, in bfloat16",
              "bench_sae", (*shapes, *common, "--rounds=4"),
              ("--width=16", "--n_features=64", "--batch_rows=128", "--active=4", *common, "--rounds=1"))


PARTS = {
    "rates": Part("the device's rate of bfloat16 and float32 products, and of its memory"),
    "step_small": _step(512, 4096, 8192, "tm2023,topk,batchtopk,jumprelu"),
    "profile": Part("where the time of a training step goes, by the device's own count"),
    "step_middle": _step(768, 24_576, 8192, "tm2023,topk"),
    "step_large": _step(2304, 65_536, 4096, "topk"),
    "sweep": _step(512, 4096, 2048, "tm2023", "--members=8"),
    "subject": Part("a training step of the demo's subject, with four times the contexts, in float32", "bench_subject",
                    ("--quick", "--batch_contexts=64"), ("--quick", "--batch_contexts=2", "--vocab_size=512")),
    "feeds": Part("a step fed by a store on the disk, and by a stream through a subject", "bench_store", ("--quick",),
                  ("--quick", "--n_rows=65536", "--shard_rows=8192", "--chunk_rows=256", "--buffer_rows=16384",
                   "--batch_rows=256", "--n_features=64", "--width=32")),
}


def main():
  if _ONE.value:
    files.write_json(_ONE_OUT.value, {"rates": _rates, "profile": _profile}[_ONE.value]())
    return
  out = pathlib.Path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  chosen = _PARTS.value or list(PARTS)
  for name in chosen:
    cli.configs.require(name in PARTS, "--parts", name, f"choose from {', '.join(PARTS)}")
  end = time.monotonic() + 60 * _MINUTES.value
  found = files.read_json(out / "figures.json") or {}  # those of parts that were run before stay
  for name in chosen:
    left = end - time.monotonic()
    if left < _LEAST_SECONDS:
      found[name] = {"left out": f"{max(left, 0):.0f} s were left"}
    else:
      print(f"{name}: {PARTS[name].what}", flush=True)
      found[name] = _run(name, out, left)
    files.write_json(out / "figures.json", found)
    files.write_unless_same(out / "index.html", _page(found).encode())
    for figure, value in found[name].items():
      print(f"  {figure:50s} {value:.6g}" if isinstance(value, float) else f"  {figure:50s} {value}", flush=True)
  print(f"See {out / 'index.html'}")


def _run(name, out, left):
  """The figures of a part, from a process that may take so many seconds."""
  with tempfile.TemporaryDirectory(dir=out) as scratch:  # where a part that is stopped may leave something
    return _run_in(scratch, name, out, left)


def _run_in(scratch, name, out, left):
  part, figures = PARTS[name], out / f"{name}.json"
  more = [f"--directory={scratch}"] if part.script == "bench_store" else []
  command = ([str(HERE / f"{part.script}.py"), *(part.toy if _TOY.value else part.flags), *more, f"--out={figures}"]
             if part.script else [__file__, f"--one={name}", f"--one_out={figures}", f"--out={out}",
                                  *(["--toy"] if _TOY.value else [])])
  start = time.monotonic()
  try:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=left)
  except subprocess.TimeoutExpired:
    return {"stopped": f"after {left:.0f} s, when the time was over"}
  if done.returncode:
    return {"failed": (done.stderr.strip().splitlines() or ["without a word"])[-1][:500]}
  measured = json.loads(figures.read_text())
  figures.unlink()
  return {**measured, "seconds in all": time.monotonic() - start}


def _rates():
  """Products and passes over memory, in one process."""
  import jax
  import jax.numpy as jnp

  from monojax.pipeline.plan import measured_rates
  device = jax.devices()[0]
  found = {"device": device.device_kind, "devices": jax.device_count(), "platform": jax.default_backend()}
  n = 256 if _TOY.value else 8192
  for dtype in (jnp.bfloat16, jnp.float32):
    a = jnp.ones((n, n), dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    found[f"{jnp.dtype(dtype).name} products of {n}, TFLOP/s"] = 2 * n ** 3 / _seconds(lambda: product(a, a)) / 1e12
  found["memory, GB/s"] = measured_rates(jnp.float32).bytes / 1e9
  return found


def _seconds(call, n=10):
  """The time of a call, once it is compiled: the least of some."""
  import jax
  jax.block_until_ready(call())
  found = []
  for _ in range(n):
    start = time.perf_counter()
    jax.block_until_ready(call())
    found.append(time.perf_counter() - start)
  return min(found)


def _profile():
  """Traces some steps of TopK; the share of each kind of the device's events."""
  import collections

  import jax
  import jax.numpy as jnp

  from monojax import mesh as meshes
  from monojax.sae.config import SAEConfig
  from monojax.sae.model import Wiring
  from monojax.sae.recipes import make_recipe
  from monojax.sae.step import make_step
  width, n_features, batch_rows = (16, 64, 128) if _TOY.value else (768, 24_576, 8192)
  config = SAEConfig(recipe="topk", k=4 if _TOY.value else 32, n_features=n_features, batch_rows=batch_rows)
  recipe = make_recipe(config, Wiring((width,)), jnp.bfloat16)
  init, step = make_step(recipe, meshes.make_mesh(meshes.MeshConfig(data=1)), config.window_steps)
  x_SBM = jax.nn.relu(jax.random.normal(jax.random.key(0), (2, batch_rows, width)))
  state, _ = step(init(jax.random.key(0), x_SBM[0, :64]), x_SBM)
  folder = pathlib.Path(_OUT.value) / "profile"
  with jax.profiler.trace(str(folder)):
    for _ in range(3):
      state, values = step(state, x_SBM)
    jax.block_until_ready(values)
  (trace,) = sorted(folder.rglob("*.xplane.pb"))[-1:]
  total = collections.Counter()
  for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
    if plane.name.startswith("/device:") or jax.default_backend() == "cpu":
      for line in plane.lines:
        if line.name in ("XLA Ops", "Stream", "") or "Stream" in line.name or jax.default_backend() == "cpu":
          for event in line.events:
            if not event.name.startswith("$"):  # a line of Python
              total[event.name.split(".")[0].split("(")[0][:60]] += event.duration_ns
  whole = sum(total.values()) or 1
  return {"trace": str(trace), **{f"share of {name}": count / whole for name, count in total.most_common(15)}}


def _page(found):
  """The figures as a page of tables."""
  text = lambda value: html.escape(f"{value:.5g}" if isinstance(value, float) else str(value))
  sections = [f"<h2>{html.escape(name)}</h2><p>{html.escape(PARTS[name].what)}</p><table>" + "".join(
      f"<tr><th scope='row'>{html.escape(figure)}</th><td>{text(value)}</td></tr>" for figure, value in figures.items())
      + "</table>" for name, figures in found.items()]
  style = ("body{font:15px sans-serif;max-width:60rem;margin:2rem auto}"
           "th{text-align:left;font-weight:400;padding-right:2rem}")
  return (f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Accelerator benchmark</title><style>{style}"
          f"</style><h1>Accelerator benchmark{' (toy shapes)' if _TOY.value else ''}</h1>{''.join(sections)}</html>")


if __name__ == "__main__":
  cli.run(main)
