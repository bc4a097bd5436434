"""A dictionary from any tool's files to any other's.

`python experiments/convert_sae.py --help` explains it; `monojax convert_sae` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("convert_sae")
