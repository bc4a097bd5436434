"""The commands of the studies, each with its help text, its flags and what it does; a part of `monojax.commands`."""

from absl import flags

from monojax import cli
from monojax.cli import Command, own


def _define_synthetic() -> None:
  from monojax.studies.synthetic.study import SyntheticStudyConfig
  cli.define_study_flags(SyntheticStudyConfig)
  own(flags.DEFINE_enum("planted", "default", ("default", "synth-sae-bench"), "planted features to start from"))


def _synthetic() -> None:
  from monojax.browser.report import write_report
  from monojax.studies.synthetic import report, study
  config = study.SyntheticStudyConfig()
  if flags.FLAGS.planted == "synth-sae-bench":
    config = study.synth_sae_bench(config)
  run, config = cli.study_run_and_config(config, lambda config: config.inputs)
  study.train_main(run, config)
  for level in config.levels:
    study.train_level(run, config, level)
  study.train_trees(run, config)
  summary = run.write_summary("synthetic")
  cli.print_figures({name: value for name, value in summary.items() if name.startswith("synthetic/")})
  page = write_report(run.directory / "report", "Synthetic activations", report.sections(run, config, summary))
  print(f"\nOpen {page} in a browser.")


def _define_toy() -> None:
  from monojax.studies.toy.study import ToyStudyConfig
  cli.define_study_flags(ToyStudyConfig)


def _toy() -> None:
  from monojax.browser.report import write_report
  from monojax.studies.toy import report, study
  run, config = cli.study_run_and_config(study.ToyStudyConfig(), lambda _: study.INPUTS)
  for name in study.STAGES:
    study.run_stage(run, name, config)
  study.recover(run, config)
  summary = run.write_summary("toy")
  cli.print_figures({name: value for name, value in summary.items() if name.startswith("toy/")})
  page = write_report(run.directory / "report", "Toy models of superposition", report.sections(run, summary))
  print(f"\nOpen {page} in a browser.")


def _define_index() -> None:
  from monojax.studies.index.study import IndexStudyConfig
  cli.define_study_flags(IndexStudyConfig)
  own(flags.DEFINE_enum("preset", "better", ("better", "published", "specific"), "the MLP, and how it is trained, to "
                        "start from"))
  own(flags.DEFINE_string("probe", "", "ten numbers, c1[0..3],p1,c2[0..3],p2: print what fires on this row"))


def _index() -> None:
  from monojax.browser.report import write_report
  from monojax.studies.index import report, single, study, task, ties
  config, probe = study.preset(flags.FLAGS.preset), flags.FLAGS.probe
  if probe:
    task.parse(probe)  # before any work
  run, config = cli.study_run_and_config(config, lambda _: study.INPUTS)
  study.train_subject(run, config)
  study.train_dictionary(run, config)
  ties.tie_features(run, config)
  single.single_features(run, config)
  if config.sweep_recipes:
    study.train_others(run, config)
  summary = run.write_summary("index_arithmetic")
  if probe:
    print("\n".join(report.probe(run, config, probe)))
    return
  cli.print_figures({name: value for name, value in summary.items() if name.startswith("index_arithmetic/")})
  page = write_report(run.directory / "report", "Index arithmetic", report.sections(run, summary))
  print(f"\nRows: {', '.join(map(str, report.write_trace(run)))}\nOpen {page} in a browser.")


STUDIES = {
    "synthetic": Command(
        "study: dictionaries on planted features, whose truth is known", """\
Synthetic activations: a dictionary against planted features, whose truth is known.

  {command} --workdir=runs/synthetic
  {command} --workdir=runs/wide --planted.n_features=4096 --planted.width=512 --sae.n_features=4096

One dictionary is trained at a paper-like sparsity and scored against the truth; then recipes, sizes and penalties on a
grid of sparsities, and on trees of features. Leaves summary.json and report/index.html in the workdir. The same command
resumes where it was interrupted. --planted=synth-sae-bench is the law of SynthSAEBench-16k, for an accelerator.
""", _synthetic, define=_define_synthetic),
    "toy_superposition": Command(
        "study: toy models of superposition", """\
Toy models of superposition: how sparse features share too few dimensions, and an SAE that finds them again.

  {command} --workdir=runs/toy

Hundreds of models are trained together, in one compiled step for each experiment: which features are kept, the phase
diagrams, the polytopes of 400 equal features, perturbed and correlated features, learning, neurons with a privileged
basis, and computing |x|. Leaves summary.json and report/index.html in the workdir. The same command resumes where it
was interrupted.
""", _toy, define=_define_toy),
    "index_arithmetic": Command(
        "study: an MLP whose every variable is known, and its features", """\
Index arithmetic: an MLP that learns |c1[p1] - c2[p2]|, a dictionary of its hidden layer, and what features do.

  {command} --workdir=runs/index
  {command} --workdir=runs/index --probe=8,9,5,1,3,2,9,4,7,1

A row is two columns of four digits and a pointer each. The MLP is trained, then a dictionary of its layer of 512 units.
The dictionary's features are tied to the pointers, to the digits they select, and to the digits' sign and difference,
by what features tell and by what changing them does. Leaves summary.json, report/index.html and report/trace.csv (and
.xlsx) in the workdir. The same command resumes where it was interrupted. --probe only prints what fires on one row.
--preset=published trains the MLP as Palani-SN/monosemanticity-mlp-interpretability did: on 8,000 rows, 500 times over.
--preset=specific trains another MLP, in which single features stand for a pointer's values and for the signs.
--sweep_recipes=topk,jumprelu trains other recipes besides.
""", _index, define=_define_index),
}
