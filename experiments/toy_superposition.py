"""Toy models of superposition: how sparse features share too few dimensions, and an SAE that finds them again.

  python experiments/toy_superposition.py --workdir=runs/toy

Hundreds of models are trained together, in one compiled step for each experiment: which features are kept, the
phase diagrams, the polytopes of 400 equal features, perturbed and correlated features, learning, neurons with a
privileged basis, and computing |x|. Leaves summary.json and report/index.html in the workdir; the same command goes
on where it was interrupted.
"""

from monojax import cli
from monojax.studies.toy.study import INPUTS, STAGES, ToyStudyConfig


def main():
  from monojax.browser.report import write_report
  from monojax.studies.toy import report, study
  run, config = cli.study_run_and_config(ToyStudyConfig(), lambda _: INPUTS)
  for name in STAGES:
    study.run_stage(run, name, config)
  study.recover(run, config)
  summary = run.write_summary("toy")
  cli.print_figures({name: value for name, value in summary.items() if name.startswith("toy/")})
  page = write_report(run.directory / "report", "Toy models of superposition", report.sections(run, summary))
  print(f"\nOpen {page} in a browser.")


if __name__ == "__main__":
  cli.define_study_flags(ToyStudyConfig)
  cli.run(main)
