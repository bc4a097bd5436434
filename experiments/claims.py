"""The figures of Towards Monosemanticity beside those of a dictionary.

`python experiments/claims.py --help` explains it; `monojax claims` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("claims")
