"""Tokens to a trained transformer, the subject.

`python experiments/train_subject.py --help` explains it; `monojax train_subject` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("train_subject")
