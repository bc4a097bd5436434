"""Find and repair damage in a store of activations.

`python experiments/check_store.py --help` explains it; `monojax check_store` is the same command.
"""

from monojax import cli

if __name__ == "__main__":
  cli.run_command("check_store")
