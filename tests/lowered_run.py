"""Runs a script as on an accelerator, and lowers each function that it compiles for CUDA and for TPUs.

  python tests/lowered_run.py OUT.json SCRIPT --flags
"""

import json
import re
import sys

import jax

jitted, found = jax.jit, {}
jax.default_backend = lambda: "gpu"


class Watched:
  """A compiled function that is lowered whenever it is called with arguments of new shapes."""

  def __init__(self, function, *args, **kwargs):
    self._name = getattr(function, "__qualname__", repr(function))
    self._place = getattr(function, "__module__", "")
    self._compiled = jitted(function, *args, **kwargs)

  def __getattr__(self, name):
    return getattr(self._compiled, name)

  def __get__(self, instance, owner=None):
    return self if instance is None else self._compiled.__get__(instance, owner)

  def __call__(self, *args, **kwargs):
    leaves = jax.tree.leaves((args, kwargs))
    if self._place.startswith("monojax") and not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
      shapes = [f"{getattr(leaf, 'dtype', type(leaf))}{getattr(leaf, 'shape', '')}" for leaf in leaves]
      key = f"{self._place}:{self._name}", str(shapes)
      if key not in found:
        program = self._compiled.trace(*args, **kwargs).lower(lowering_platforms=("cuda", "tpu")).as_text()
        devices = re.search(r"mhlo.num_partitions = (\d+)", program)
        found[key] = {"devices": int(devices[1]) if devices else 1,
                      "calls": sorted(set(re.findall(r"custom_call @([\w.]+)", program)))}
    return self._compiled(*args, **kwargs)


jax.jit = Watched
from monojax.__main__ import script  # noqa: E402

out, name, *sys.argv[1:] = sys.argv[1:]
try:
  script(name)
finally:
  with open(out, "w") as file:
    json.dump([{"name": name, **one} for (name, _), one in found.items()], file)
