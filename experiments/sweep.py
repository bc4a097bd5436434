"""A grid of dictionaries in one pass over the activations.

`python experiments/sweep.py --help` explains it; `monojax sweep` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("sweep")
