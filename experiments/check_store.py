"""Verifies a run's stored activations, every byte of them, and repairs what is damaged.

  python experiments/check_store.py --workdir=runs/mine
  python experiments/check_store.py --workdir=runs/mine --repair

Each shard's size, the checksum of each of its chunks and the sums over its rows are compared with what the harvest
left. With --repair the damaged shards are harvested again from the run's subject and tokens, with the same bytes.
Exits with 1 if damage was found and not repaired.
"""

import sys

from absl import flags

from monojax import cli

_REPAIR = flags.DEFINE_boolean("repair", False, "harvest damaged shards again")


def main():
  from monojax.pipeline import stages
  run, config = cli.run_and_config()
  damaged = stages.check_store(run, config, _REPAIR.value)
  print(f"{len(damaged)} damaged shards" + (", harvested again" if damaged and _REPAIR.value else ""))
  sys.exit(1 if damaged and not _REPAIR.value else 0)


if __name__ == "__main__":
  cli.define_run_flags(["mesh"])
  cli.run(main)
