"""A run's pages, and its model on a reader's own text.

`python experiments/serve.py --help` explains it; `monojax serve` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("serve")
