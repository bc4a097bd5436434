"""Runs a run's subject over its training tokens and stores the activations of one or more sites.

  python experiments/harvest.py --workdir=runs/mine --activations.site=layer.0.mlp.hidden
  python experiments/harvest.py --workdir=runs/mine --activations.url=s3://bucket/mine --activations.dtype=int8
  python experiments/harvest.py --workdir=runs/mine --activations.more_sites=layer.0.mlp.in,layer.0.mlp.out

The subject runs up to the last of the sites and no further. docs/store-format.md says what the store looks like. An
interrupted harvest goes on at the first shard that is not finished, and ends with the same bytes.
"""

from monojax import cli

if __name__ == "__main__":
  cli.define_run_flags(["activations", "mesh"])
  cli.run(cli.run_stage("activations"))
