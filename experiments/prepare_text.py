"""Documents to tokens.

`python experiments/prepare_text.py --help` explains it; `monojax prepare_text` is the same command.
"""

from monojax import cli

if __name__ == "__main__":
  cli.run_command("prepare_text")
