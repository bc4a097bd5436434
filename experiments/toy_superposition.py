"""Study: toy models of superposition.

`python experiments/toy_superposition.py --help` explains it; `monojax toy_superposition` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("toy_superposition")
