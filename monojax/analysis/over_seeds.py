"""What several seeds say together."""

from collections.abc import Sequence

import numpy as np


def mean_over_seeds(values: Sequence[float]) -> tuple[float, float | None]:
  """(mean, half the width of its interval of 95 % by Student's t, None for one value)."""
  from scipy import stats
  if len(values) == 1:
    return values[0], None
  return float(np.mean(values)), float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))
