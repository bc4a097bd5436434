"""Measures every feature of a run's dictionary: density, examples, logit weights, detectors of domains.

  python experiments/analyze.py --workdir=runs/mine --analysis.n_tokens=2000000
"""

from monojax import cli

if __name__ == "__main__":
  cli.define_run_flags(["analysis"])
  cli.run(cli.run_stage("analysis"))
