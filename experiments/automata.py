"""Loops of features that lead to one another.

`python experiments/automata.py --help` explains it; `monojax automata` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("automata")
