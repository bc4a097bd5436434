"""Trains the transformer under study on a run's tokens and measures it on held-out text.

  python experiments/train_subject.py --workdir=runs/mine --subject.n_steps=5000

Interrupted at any moment, the same command goes on from the last checkpoint and ends with the same weights.
"""

from monojax import cli

if __name__ == "__main__":
  cli.define_run_flags(["subject", "mesh", "metrics"])
  cli.run(cli.run_stage("subject"))
