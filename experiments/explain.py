"""Labels of a dictionary's features, and how well they predict.

`python experiments/explain.py --help` explains it; `monojax explain` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("explain")
