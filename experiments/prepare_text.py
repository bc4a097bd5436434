"""Documents to tokens.

`python experiments/prepare_text.py --help` explains it; `monojax prepare_text` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("prepare_text")
