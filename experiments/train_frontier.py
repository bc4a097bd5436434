"""The dictionary again at other sparsities.

`python experiments/train_frontier.py --help` explains it; `monojax train_frontier` is the same command.
"""

from monojax import cli

if __name__ == "__main__":
  cli.run_command("train_frontier")
