"""Study: an MLP whose every variable is known, and its features.

`python experiments/index_arithmetic.py --help` explains it; `monojax index_arithmetic` is the same command.
"""

from monojax import cli

if __name__ == "__main__":
  cli.run_command("index_arithmetic")
