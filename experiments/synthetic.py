"""Study: dictionaries on planted features, whose truth is known.

`python experiments/synthetic.py --help` explains it; `monojax synthetic` is the same command.
"""

from monojax import cli

if __name__ == "__main__":
  cli.run_command("synthetic")
