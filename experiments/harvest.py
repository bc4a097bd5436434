"""A subject and tokens to a store of activations.

`python experiments/harvest.py --help` explains it; `monojax harvest` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("harvest")
