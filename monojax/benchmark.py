"""Benchmarks: timing several functions against each other, and reporting the figures."""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monojax import files


def interleaved(functions: Mapping[str, Callable[[], Any]], n_rounds: int, warmup: int = 2, pause_seconds: float = 0.0,
                before: Mapping[str, Callable[[], Any]] | None = None) -> dict[str, list[float]]:
  """Times functions in turn, round after round, so that what else a machine does disturbs all of them alike.

  Args:
    functions: {name: function without arguments, which returns when its work is done}.
    n_rounds: the number of rounds that are timed.
    warmup: how many times each function is called before, untimed.
    pause_seconds: how long to wait before each timed call. A pause lets the threads of other libraries come to rest:
      those of OpenMP look for more work for 0.2 s and slow down whatever runs meanwhile.
    before: {name: function that is called, untimed, before each timed call of the function with this name}.

  Returns:
    {name: the seconds of each round}.
  """
  for function in functions.values():
    for _ in range(warmup):
      function()
  seconds: dict[str, list[float]] = {name: [] for name in functions}
  for _ in range(n_rounds):
    for name, function in functions.items():
      time.sleep(pause_seconds)
      if before and name in before:
        before[name]()
      start = time.perf_counter()
      function()
      seconds[name].append(time.perf_counter() - start)
  return seconds


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
  """The median over rounds of the ratio of two functions' seconds."""
  return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def report(figures: Mapping[str, Any], out: str | os.PathLike[str] | None) -> None:
  """Prints {name: figure}, one on each line, and writes it to the JSON file `out` if that is given."""
  for name, value in figures.items():
    print(f"{name:44s} {value:.6g}" if isinstance(value, float) else f"{name:44s} {value}")
  if out:
    files.write_json(out, figures)
