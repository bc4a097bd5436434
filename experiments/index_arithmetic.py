"""Index arithmetic: an MLP that learns |c1[p1] - c2[p2]|, a dictionary of its hidden layer, and what its features do.

  python experiments/study.py --workdir=runs/index
  python experiments/study.py --workdir=runs/index --probe=8,9,5,1,3,2,9,4,7,1

A row is two columns of four digits and a pointer each. The MLP is trained, then a dictionary of its layer of 512; its
features are tied to the pointers, the digits they select, their sign and difference, by what they tell and by what
changing them does. Leaves summary.json, report/index.html and report/trace.csv (and .xlsx) in the workdir; the same
command goes on where it was interrupted. --probe only prints what fires on one row. --preset=published is the MLP as
Palani-SN/monosemanticity-mlp-interpretability trained it: 8,000 rows, 500 times over. --sweep_recipes=topk,jumprelu
trains others besides.
"""

import dataclasses

from absl import flags

from monojax import cli
from monojax.studies.index.mlp import MLPConfig
from monojax.studies.index.study import INPUTS, IndexStudyConfig

_PRESET = flags.DEFINE_enum("preset", "better", ("better", "published"), "how the MLP is trained, to start from")
_PROBE = flags.DEFINE_string("probe", "", "ten numbers, c1[0..3],p1,c2[0..3],p2: print what fires on this row")


def main():
  from monojax.browser.report import write_report
  from monojax.studies.index import report, study, ties
  from monojax.studies.index import task as index_task
  config = IndexStudyConfig()
  if _PRESET.value == "published":
    config = dataclasses.replace(config, train_rows=8000, mlp=MLPConfig(n_steps=62_500, batch_rows=64, scan_steps=500,
                                                                        checkpoint_every_steps=12_500))
  if _PROBE.value:
    index_task.parse(_PROBE.value)  # before any work
  run, config = cli.study_run_and_config(config, lambda _: INPUTS)
  study.train_subject(run, config)
  study.train_dictionary(run, config)
  ties.tie_features(run, config)
  if config.sweep_recipes:
    study.train_others(run, config)
  summary = run.write_summary("index_arithmetic")
  if _PROBE.value:
    print("\n".join(report.probe(run, config, _PROBE.value)))
    return
  cli.print_figures({name: value for name, value in summary.items() if name.startswith("index_arithmetic/")})
  page = write_report(run.directory / "report", "Index arithmetic", report.sections(run, summary))
  print(f"\nRows: {', '.join(map(str, report.write_trace(run)))}\nOpen {page} in a browser.")


if __name__ == "__main__":
  cli.define_study_flags(IndexStudyConfig)
  cli.run(main)
