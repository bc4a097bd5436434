"""Trains a sparse autoencoder on a run's stored activations and measures it on held-out text.

  python experiments/train_sae.py --workdir=runs/mine --sae.n_features=4096 --sae.sparsity_coefficient=0.004
  python experiments/train_sae.py --workdir=runs/demo --name=topk --sae.recipe=topk --sae.k=16
  python experiments/train_sae.py --workdir=runs/mine --name=mlp --sae.reads=layer.0.mlp.in --sae.writes=layer.0.mlp.out

Recipes: tm2023, apr2024, gated, jumprelu, jan2025, topk, batchtopk, matryoshka; docs/recipes.md says what each is and
what its coefficient means. Steer by L0, cross-entropy recovered and dead features together: losses at different
penalties do not compare.

A run has one dictionary of its own, in sae/, which the analysis and the browser go on from. With --name another is
trained beside it, in sweeps/NAME.
"""

import dataclasses

from absl import flags

from monojax import cli

_NAME = flags.DEFINE_string("name", "", "train beside the run's own dictionary, in sweeps/NAME")


def main():
  from monojax.pipeline import stages
  run, config = cli.run_and_config()
  if _NAME.value:
    one = dataclasses.replace(config, sweep=dataclasses.replace(config.sweep, name=_NAME.value))
    cli.print_figures(stages.sweep(run, one)["figures"])
  else:
    cli.print_figures(stages.train_sae(run, config)["figures"])


if __name__ == "__main__":
  cli.define_run_flags(["sae", "mesh", "metrics"])
  cli.run(main)
