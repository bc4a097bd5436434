"""Runs a run's subject over its training tokens and stores one site's activations.

  python experiments/harvest.py --workdir=runs/mine --activations.site=layer.0.mlp.hidden

docs/store-format.md says what the store looks like. An interrupted harvest goes on at the first shard
that is not finished.
"""

from monojax import cli

if __name__ == "__main__":
  cli.define_run_flags(["activations", "mesh"])
  cli.run(cli.run_stage("activations"))
