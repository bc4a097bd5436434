"""Timing several functions against each other in one run, and reporting the figures."""

import statistics
import time

from monojax import files


def interleaved(functions, n_rounds, warmup=2, pause_seconds=0.0, before=None):
  """Times functions in turn, round after round, so that a noisy machine disturbs all alike.

  Args:
    functions: dict from a name to a function of no arguments that waits for its result.
    n_rounds: timed rounds.
    warmup: untimed calls of each first.
    pause_seconds: before each timed call, for another library's threads to stop spinning (OpenMP's wait
      0.2 s for more work and slow down whatever runs then).

    before: dict from some of the names to what is called before each timed call, untimed.

  Returns:
    dict from each name to its list of seconds, one a round.
  """
  for function in functions.values():
    for _ in range(warmup):
      function()
  seconds = {name: [] for name in functions}
  for _ in range(n_rounds):
    for name, function in functions.items():
      time.sleep(pause_seconds)
      if before and name in before:
        before[name]()
      start = time.perf_counter()
      function()
      seconds[name].append(time.perf_counter() - start)
  return seconds


def median_ratio(numerator, denominator):
  """The median over rounds of the ratio of two lists of seconds."""
  return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def report(figures, out):
  """Prints flat figures, one a line, and writes them to the JSON file `out` if it is given."""
  for name, value in figures.items():
    print(f"{name:44s} {value:.6g}" if isinstance(value, float) else f"{name:44s} {value}")
  if out:
    files.write_json(out, figures)
