"""All recipes compared on a run's activations.

`python experiments/benchmark.py --help` explains it; `monojax benchmark` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("benchmark")
