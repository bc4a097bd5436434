"""Writes the browsable site of a run's features: open WORKDIR/browser/site/index.html in any browser.

  python experiments/build_browser.py --workdir=runs/mine
"""

from monojax import cli

if __name__ == "__main__":
  cli.define_run_flags(["browser"])
  cli.run(cli.run_stage("browser"))
