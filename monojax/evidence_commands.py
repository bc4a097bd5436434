"""The commands that ask a finished dictionary for evidence, each with its help text, its flags and what it does.

A part of `monojax.commands`.
"""

from absl import flags

from monojax import cli
from monojax.cli import Command, own


def define_dictionary() -> None:
  """Defines `--dictionary`, which of a run's dictionaries a command is about."""
  own(flags.DEFINE_string("dictionary", "sae", "the dictionary: sae is the run's own; otherwise the name that it was "
                           "trained under, or its folder in the run"))


def _defining(settings: str):
  """What defines the flags of a command: those of the settings of that name in `monojax.analysis.config`."""
  def define() -> None:
    from monojax.analysis import config
    cli.define_study_flags(getattr(config, settings), "the folder of a run whose dictionary is finished")
    define_dictionary()
  return define


def _asking(stage: str, settings: str, *more: str, leaves: str = ""):
  """What a command does: the function of that name of the stages, with its settings and the dictionary.

  Args:
    stage: the function's name.
    settings: the name of its settings' class.
    *more: further flags whose values it is given.
    leaves: the folder in the dictionary's home that the user is told of.
  """
  def main() -> None:
    from monojax.analysis import config as settings_of
    from monojax.pipeline import stages
    run, config = cli.study_run_and_config(getattr(settings_of, settings)(), lambda _: None, "run")
    values = flags.FLAGS
    getattr(stages, stage)(run, config, values.dictionary, *(getattr(values, name) for name in more))
    if leaves:
      print(f"\nSee {run.directory / f'{run.dictionary(values.dictionary).home}{leaves}'}")
  return main


def _define_compare() -> None:
  _defining("CompareConfig")()
  own(flags.DEFINE_string("other", "", "what it is compared with: the folder of another run, or a dictionary's folder, "
                           "of any tool, or hf:NAME[@REVISION]/PATH; by default the same run"))
  own(flags.DEFINE_string("other_dictionary", "sae", "the other dictionary's name in its run, as for --dictionary"))


EVIDENCE = {
    "fidelity": Command(
        "how faithful a dictionary is, with intervals, by domain, and in generated text", """\
Measures how much of a subject's predictions a dictionary keeps when it is spliced in, document by document.

  {command} --workdir=runs/demo
  {command} --workdir=runs/demo --dictionary=topk --n_tokens=0 --n_samples=32

Beside the dictionary stand three ways to wipe its site: with zeros, with the mean, and with activations of other text
(resample-ablation). Figures have 95 % intervals, for which whole documents are drawn again (bootstrap), and each domain
has a row. Texts are continued with and without the dictionary, and the subject as it is tells how likely it finds them.
Leaves fidelity.json, domains.csv and domains.json in the folder fidelity of the dictionary's home.
""", _asking("fidelity", "FidelityConfig", leaves="fidelity"), define=_defining("FidelityConfig")),
    "probe": Command(
        "how well features tell labels of texts, beside neurons and random features", """\
Probes a dictionary on labelled texts: how well one feature, or a few, tell a label that people gave.

  {command} --workdir=runs/mine
  {command} --workdir=runs/mine --dictionary=topk --only='*_hist_fig_*,87_glue_cola'
  {command} --workdir=runs/mine --datasets=labels/ --k=1,4

The protocol is that of the package sae-probes, whose 113 data sets with two labels are the default (pip install
--no-deps sae-probes); scikit-learn is in the extra `probes`. For each data set the table has the test AUC of logistic
regression on all neurons, and for each k on k features of the dictionary, on k neurons, and on k random features that
fire equally often. Leaves probes/points.csv, summary.csv and their .json in the dictionary's folder. The same command
resumes after an interruption, and takes what it has found before if nothing has changed.
""", _asking("probe", "ProbeConfig", leaves="probes"), define=_defining("ProbeConfig")),
    "compare": Command(
        "which features two dictionaries share", """\
Compares two dictionaries: which features they share, which are their own, and which have split.

  {command} --workdir=runs/demo --other_dictionary=topk
  {command} --workdir=runs/demo --dictionary=topk --other=runs/wide --other_dictionary=jumprelu
  {command} --workdir=runs/demo --other=hf:owner/name/folder

Features are matched by the cosine of their directions, where both dictionaries write the same sites of one subject, and
by the correlation of their activations on the same tokens. Beside them are neurons, where they differ, and features
with random directions that fire as often. Leaves comparison.json, pairs.csv, edges.csv (and .json of both) and, with
matplotlib, matches.png in comparisons/NAME, in the dictionary's folder.
""", _asking("compare", "CompareConfig", "other", "other_dictionary"), define=_define_compare),
    "universality": Command(
        "which features dictionaries of two subjects share", """\
Asks for the same features in two subjects that were trained with different seeds on the same tokens.

  {command} --workdir=runs/a --other=runs/b
  {command} --workdir=runs/a --dictionary=topk --other=runs/b --other_dictionary=topk

Prints how well the activations of each feature correlate with the most similar feature of the other subject, the same
for neurons and for random directions, beside what Towards Monosemanticity found; and how alike logit weights and
attributions of matched features are. Leaves what `compare` does.
""", _asking("universality", "CompareConfig", "other", "other_dictionary"), define=_define_compare),
    "steer": Command(
        "a text continued with features changed, beside the subject as it is", """\
Lets the subject continue a prompt with some features changed, beside what it writes as it is.

  {command} --workdir=runs/demo --prompt='1,2,3,4,5,6,7,8,9,10' --pin=57
  {command} --workdir=runs/demo --prompt='def main(' --pin=57=12.5,103 --ablate=8 --scale=91=2
  {command} --workdir=runs/demo --dictionary=topk --prompt='The ' --pin=57 --positions=4: --out=steered.json

--pin holds a feature at a value, by default at its largest activation on the analysed text; --scale multiplies its
activation, and --ablate removes it: at every token that is read and written, or at --positions. Prints --n
continuations side by side, drawn with the same random numbers, and the tokens whose probability right after the prompt
rises and falls most.
""", _asking("steer", "SteerConfig"), define=_defining("SteerConfig")),
    "steerability": Command(
        "whether features can make the subject write a kind of text, judged by a classifier", """\
Holds a feature at its largest activation while the subject writes, and counts whether the text becomes of one kind.

  {command} --workdir=runs/mine
  {command} --workdir=runs/mine --classes='Japanese=ja_*,code=code_*' --n=64

For each kind of text some features are tried on a few continuations, and the best one is tested on others. A
classifier, trained on the run's own labelled text, says of which kind each continuation is. Beside that stand the
subject's own continuations, those with features pinned at random, and how well the classifier does on held-out text.
Leaves steerability.json and classes.csv (and .json) in steerability/ in the dictionary's folder. Needs pip install
'monojax[probes]'.
""", _asking("steerability", "SteerabilityConfig"), define=_defining("SteerabilityConfig")),
    "automata": Command(
        "loops of features that lead to one another", """\
Looks for automata: loops of features, each of which raises tokens on which the next one fires.

  {command} --workdir=runs/mine
  {command} --workdir=runs/mine --dictionary=topk --n_states=2 --n_tokens=1000000

For instance a feature of base64 that raises pieces of base64; or one of opening tags, which raises names of tags, on
which another fires, which raises what closes a tag. No feature has to be named. Beside the loops is the control, which
has the features' logit weights shuffled. Leaves automata.json and automata.svg, a picture, in automata/ in the
dictionary's folder.
""", _asking("automata", "AutomataConfig"), define=_defining("AutomataConfig")),
    "claims": Command(
        "the figures of Towards Monosemanticity beside those of a dictionary", """\
Puts the figures that Towards Monosemanticity reports of its dictionary beside those of one's own, claim by claim.

  {command} --workdir=runs/a
  {command} --workdir=runs/a --runs=runs/b,runs/c --control=runs/shuffled
  {command} --workdir=runs/a --dictionary=seed0 --others=seed1,seed2

Reads what a finished run has: its figures, feature tables and proxies; and, where these commands were run, what
`universality`, `explain` and `automata` have left. With --runs each further run has a column, for instance the same
settings with other seeds, and the last column is the mean over the runs with its 95 % interval. With --others each
further dictionary of the run has one. With --control the labels of a subject with random weights stand beside the
others. Leaves claims.csv (and .json) in claims/ in the dictionary's folder.
""", _asking("claims", "ClaimsConfig"), define=_defining("ClaimsConfig")),
    "map": Command(
        "a map of features, in which like ones lie together, and their clusters", """\
Lays out a dictionary's features in the plane, those with like directions near each other, and finds clusters of them.

  {command} --workdir=runs/demo
  {command} --workdir=runs/mine --others=narrow,wide --min_dist=0.01

The layout is UMAP of the directions by cosine, and the clusters are HDBSCAN's, with the settings of Towards
Monosemanticity. With --others, further dictionaries of the same sites are on the same map, so that a cluster shows what
a feature of a small dictionary has become in a large one. Beside the clusters are those of random directions. Leaves
features.csv (and .json: place, cluster, label, in an order in which like features stand together), map.json and map.png
in map/ in the dictionary's folder. Needs pip install 'monojax[maps]'.
""", _asking("map_features", "MapConfig"), define=_defining("MapConfig")),
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
""", _asking("explain", "ExplainConfig"), define=_defining("ExplainConfig")),
}
