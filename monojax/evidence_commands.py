"""The commands that ask what a run's features are and do; `monojax/commands.py` lists them among all commands."""

from absl import flags

from monojax import cli
from monojax.cli import Command, own


def _define_dictionary() -> None:
  own(flags.DEFINE_string("dictionary", "sae", "the dictionary: sae is the run's own; otherwise the name that it was "
                           "trained under, or its folder in the run"))


def _define_explain() -> None:
  from monojax.analysis.config import ExplainConfig
  cli.define_study_flags(ExplainConfig, "the folder of a run whose dictionary is finished")
  _define_dictionary()


def _explain() -> None:
  from monojax.analysis.config import ExplainConfig
  from monojax.pipeline.stages import explain
  run, config = cli.study_run_and_config(ExplainConfig(), lambda _: None, "run")
  explain(run, config, flags.FLAGS.dictionary)


EVIDENCE = {
    "explain": Command(
        "labels of features, and how well they predict, beside neurons and random directions", """\
Labels a dictionary's features: says in words what each fires on, and how well these words predict it on other text.

  {command} --workdir=runs/mine
  {command} --workdir=runs/mine --dictionary=topk --n_tokens=1000000
  {command} --workdir=runs/mine --url=http://localhost:8000/v1 --model=NAME
  {command} --workdir=runs/mine --url=https://HOST/v1 --model=NAME --key_variable=MY_KEY --n_labelled=500

Without --url no language model is needed: labels are rules over tokens, sequences, kinds of characters, domains and
places, which are searched for on one half of the text. With it a model behind any endpoint that speaks OpenAI's
protocol of chats explains and predicts. The score is Spearman's correlation of predicted and true activations on
examples of the other half; its median is printed with intervals, for a random sample of features, neurons and random
directions, those of a single token apart. Leaves labels.csv (and .json) and comparison.json in labels/NAME, in the
dictionary's folder.
""", _explain, define=_define_explain),
}
