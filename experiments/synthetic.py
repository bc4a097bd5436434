"""Synthetic activations: a dictionary against planted features, whose truth is known.

  python experiments/synthetic.py --workdir=runs/synthetic
  python experiments/synthetic.py --workdir=runs/wide --planted.n_features=4096 --planted.width=512 \
    --sae.n_features=4096

One dictionary is trained at a paper-like sparsity and scored against the truth; then recipes, sizes and penalties on a
grid of sparsities, and on trees of features. Leaves summary.json and report/index.html in the workdir; the same command
goes on where it was interrupted. --planted=synth-sae-bench is the law of SynthSAEBench-16k, for an accelerator.
"""

import dataclasses

from absl import flags

from monojax import cli
from monojax.studies.synthetic.study import SyntheticStudyConfig

_PLANTED = flags.DEFINE_enum("planted", "default", ("default", "synth-sae-bench"), "planted features to start from")


def main():
  from monojax.browser.report import write_report
  from monojax.studies.synthetic import report, study
  from monojax.studies.synthetic.planted import SYNTH_SAE_BENCH
  config = SyntheticStudyConfig()
  if _PLANTED.value == "synth-sae-bench":
    config = dataclasses.replace(config, planted=SYNTH_SAE_BENCH, sae=dataclasses.replace(
        config.sae, n_features=4096, k=25, batch_rows=1024, n_steps=195_313, learning_rate=3e-4))
  run, config = cli.study_run_and_config(config, lambda config: config.inputs)
  study.train_main(run, config)
  for level in config.levels:
    study.train_level(run, config, level)
  study.train_trees(run, config)
  summary = run.write_summary("synthetic")
  cli.print_figures({name: value for name, value in summary.items() if name.startswith("synthetic/")})
  page = write_report(run.directory / "report", "Synthetic activations",
                      report.sections(run, config, summary))
  print(f"\nOpen {page} in a browser.")


if __name__ == "__main__":
  cli.define_study_flags(SyntheticStudyConfig)
  cli.run(main)
