"""Study: an MLP whose every variable is known, and its features.

`python experiments/index_arithmetic.py --help` explains it; `monojax index_arithmetic` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("index_arithmetic")
