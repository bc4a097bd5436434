"""Study: toy models of superposition.

`python experiments/toy_superposition.py --help` explains it; `monojax toy_superposition` is the same command.
"""

from monojax import cli

if __name__ == "__main__":
  cli.run_command("toy_superposition")
