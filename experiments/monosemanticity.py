"""From documents to a browsable dictionary of features: every stage of Towards Monosemanticity.

  python experiments/monosemanticity.py --preset=demo --workdir=runs/demo
  python experiments/monosemanticity.py --preset=small --workdir=runs/small --text.paths='corpus/*.jsonl'

Stages: tokens, subject, activations, sae, frontier, analysis, browser. Each leaves its folder in the
workdir; the same command skips what is finished and goes on where it was interrupted. Presets: `demo` takes
minutes on two cores and text shipped in the package, `small` an hour on two cores and some hundred megabytes
of text, `paper` has the paper's sizes, for an accelerator. Every setting below is a flag.

With --source=stream activations are computed where the dictionary trains, instead of being stored first.
"""

from absl import flags

from monojax import cli


def main():
  from monojax.pipeline.stages import STAGES
  run, config = cli.run_and_config()
  for stage in STAGES.values():
    stage(run, config)
  print()
  cli.print_figures(run.write_summary())
  print(f"\nOpen {run.directory / 'browser' / 'site' / 'index.html'} in a browser.")


if __name__ == "__main__":
  cli.define_run_flags(["text", "subject", "activations", "sae", "frontier", "analysis", "browser", "mesh", "metrics"])
  flags.DEFINE_alias("source", "activations.source")
  cli.run(main)
