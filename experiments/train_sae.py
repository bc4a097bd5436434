"""Trains a sparse autoencoder on a run's stored activations and measures it on held-out text.

  python experiments/train_sae.py --workdir=runs/mine --sae.n_features=4096 --sae.sparsity_coefficient=0.004

The loss is mean-over-elements squared error plus sparsity_coefficient times the summed features, the reduction in
which the paper's 0.004 is stated. Steer by L0, cross-entropy recovered and dead features together: losses at
different penalties do not compare.
"""

from monojax import cli

if __name__ == "__main__":
  cli.define_run_flags(["sae", "mesh", "metrics"])
  cli.run(cli.run_stage("sae"))
