"""The dictionary again at other sparsities.

`python experiments/train_frontier.py --help` explains it; `monojax train_frontier` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("train_frontier")
