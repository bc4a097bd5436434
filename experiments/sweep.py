"""A grid of dictionaries in one pass over the activations.

`python experiments/sweep.py --help` explains it; `monojax sweep` is the same command.
"""

from monojax import cli

if __name__ == "__main__":
  cli.run_command("sweep")
