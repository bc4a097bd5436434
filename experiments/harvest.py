"""A subject and tokens to a store of activations.

`python experiments/harvest.py --help` explains it; `monojax harvest` is the same command.
"""

from monojax import cli

if __name__ == "__main__":
  cli.run_command("harvest")
