"""Activations to a dictionary.

`python experiments/train_sae.py --help` explains it; `monojax train_sae` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("train_sae")
