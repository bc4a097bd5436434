"""Tokens to a trained transformer, the subject.

`python experiments/train_subject.py --help` explains it; `monojax train_subject` is the same command.
"""

from monojax import cli

if __name__ == "__main__":
  cli.run_command("train_subject")
