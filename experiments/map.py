"""A map of features, in which like ones lie together.

`python experiments/map.py --help` explains it; `monojax map` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("map")
