"""How well a dictionary's features tell labels of texts.

`python experiments/probe.py --help` explains it; `monojax probe` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("probe")
