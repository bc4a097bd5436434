"""Trains a grid of dictionaries on one pass over a run's stored activations, and draws their frontier.

  python experiments/sweep.py --workdir=runs/demo --sweep.name=topk --sae.recipe=topk --sweep.sparsities=8,16,32,64
  python experiments/sweep.py --workdir=runs/demo --sweep.name=rates --sweep.learning_rates=1e-3,3e-3 --sweep.seeds=0,1

Dictionaries of one shape share one compiled step. Writes sweeps/NAME/points.csv, and sweeps/all.csv, all.json and
(with matplotlib, in the extra `report`) frontier.png over every sweep of the run. Study a member with
monojax.load(WORKDIR, dictionary="sweeps/NAME/dictionaries/MEMBER").
"""

from monojax import cli


def main():
  from monojax.pipeline import stages
  run, config = cli.run_and_config()
  stages.sweep(run, config)
  print((run.directory / "sweeps" / "all.csv").read_text(), end="")


if __name__ == "__main__":
  cli.define_run_flags(["sweep", "sae", "mesh", "metrics"])
  cli.run(main)
