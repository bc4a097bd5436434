"""Activations to a dictionary.

`python experiments/train_sae.py --help` explains it; `monojax train_sae` is the same command.
"""

from monojax import cli

if __name__ == "__main__":
  cli.run_command("train_sae")
