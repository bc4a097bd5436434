"""A dictionary to tables of its features.

`python experiments/analyze.py --help` explains it; `monojax analyze` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("analyze")
