"""A dictionary of a pretrained transformer, from its weights and a text to pages of features.

`python experiments/pretrained.py --help` explains it; `monojax pretrained` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("pretrained")
