"""Every stage of a run, from documents to pages of features.

`python experiments/monosemanticity.py --help` explains it; `monojax monosemanticity` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("monosemanticity")
