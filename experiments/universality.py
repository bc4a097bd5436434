"""Which features dictionaries of two subjects share.

`python experiments/universality.py --help` explains it; `monojax universality` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("universality")
