"""Every stage of a run, from documents to pages of features.

`python experiments/monosemanticity.py --help` explains it; `monojax monosemanticity` is the same command.
"""

from monojax import cli

if __name__ == "__main__":
  cli.run_command("monosemanticity")
