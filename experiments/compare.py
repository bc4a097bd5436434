"""Which features two dictionaries share.

`python experiments/compare.py --help` explains it; `monojax compare` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("compare")
