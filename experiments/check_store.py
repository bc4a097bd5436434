"""Find and repair damage in a store of activations.

`python experiments/check_store.py --help` explains it; `monojax check_store` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("check_store")
