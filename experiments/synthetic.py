"""Study: dictionaries on planted features, whose truth is known.

`python experiments/synthetic.py --help` explains it; `monojax synthetic` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("synthetic")
