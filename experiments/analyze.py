"""A dictionary to tables of its features.

`python experiments/analyze.py --help` explains it; `monojax analyze` is the same command.
"""

from monojax import cli

if __name__ == "__main__":
  cli.run_command("analyze")
