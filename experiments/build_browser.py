"""Tables of features to pages that open from disk.

`python experiments/build_browser.py --help` explains it; `monojax build_browser` is the same command.
"""

from monojax import cli

if __name__ == "__main__":
  cli.run_command("build_browser")
