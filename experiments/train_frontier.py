"""Trains a run's dictionary again at other penalties: sparsity against recovered loss, as a table.

  python experiments/train_frontier.py --workdir=runs/mine --frontier.sparsities=0.001,0.002,0.008

Writes frontier/frontier.csv and frontier.json. With --frontier.n_steps each goes on from the main dictionary
for so many steps; by default each is trained from nothing, as long as the main one.
"""

from monojax import cli

if __name__ == "__main__":
  cli.define_run_flags(["frontier", "mesh", "metrics"])
  cli.run(cli.run_stage("frontier"))
