"""Writes the notebook `docs/tutorials/study_a_run.ipynb` from the cells below.

  python docs/tools/notebook.py                     # the cells alone
  python docs/tools/notebook.py --execute           # runs them, beside a finished runs/demo, and keeps what they show

Change the cells here, not in the notebook; a test compares the two.
"""

import pathlib
import sys

NOTEBOOK = pathlib.Path(__file__).parent.parent / "tutorials" / "study_a_run.ipynb"

CELLS = [
    ("markdown", """\
# Study a run

This notebook loads a finished run and looks into it: how often features fire, what one feature responds to, and
what happens to the model when it is removed or forced. It expects the demo in `runs/demo` (`monojax demo`, four
minutes on two cores), and works with any other run.

The pictures need matplotlib: `pip install 'monojax[report]'`."""),
    ("code", """\
import matplotlib.pyplot as plt
import numpy as np

import monojax

run = monojax.load("runs/demo")
run"""),
    ("markdown", """\
`run` holds everything that the run has made: the tokenizer, the transformer under study (`run.subject`), the
dictionary (`run.sae`), and the tables of the analysis (`run.features`), whose arrays have a row for each feature.

## Which features there are

A feature's *density* is the fraction of tokens on which it fires. The histogram of its logarithm is the first thing
to look at: features at the left fire on a few tokens of the whole text, those at the right on every tenth."""),
    ("code", """\
from monojax.analysis.tables import DEAD, FAINT, REGULAR, ULTRALOW

tables = run.features
log_density_F = np.log10(np.maximum(tables.density_F, 1e-12))
kinds = {"regular": REGULAR, "faint": FAINT, "ultralow": ULTRALOW}

plt.figure(figsize=(7, 3))
plt.hist([log_density_F[tables.status_F == code] for code in kinds.values()], 40, stacked=True, label=list(kinds))
plt.xlabel("log₁₀ density")
plt.ylabel("features")
plt.legend()
plt.show()
print(f"{(tables.status_F == DEAD).sum()} never fired")
for row in tables.summary["statuses"]:
  share = row["ce_share"]
  print(f"{row['features']:5} {row['status']:8} features carry {row['variance_share']:7.3%} of what all add"
        + ("" if share is None else f", and {share:6.1%} of the recovered loss"))"""),
    ("markdown", """\
A *faint* feature fires only so weakly that hardly anything would be missing without it. "Alive" alone counts these,
too.

## A feature for DNA

The sample text of the demo has documents of many kinds: languages, code, base64, DNA sequences. For some kinds the
analysis looked for the feature that tells them best, and for the best single neuron. F1 is 1 for a perfect
detector."""),
    ("code", """\
for row in tables.summary["detectors"]:
  print(f"{row['class']:12} feature {row['feature']:4}: F1 {row['feature_f1']:.2f}    "
        f"neuron {row['neuron']:4}: F1 {row['neuron_f1']:.2f}")
best = {row["class"]: row["feature"] for row in tables.summary["detectors"]}
dna = best.get("DNA", 0)            # a run on other text may have no DNA"""),
    ("markdown", """\
The text on which the DNA feature fires most, the token that was looked at between brackets:"""),
    ("code", """\
def shown(example):
  middle = len(example.tokens) // 2
  marked = [f"[{token}]" if i == middle else token
            for i, token in enumerate(example.tokens)]
  return f"{example.activations[middle]:6.2f}  {example.domain:14} {''.join(marked)!r}"

for example in run.examples(dna, n=8):
  print(shown(example))"""),
    ("markdown", """\
The strongest examples are the most flattering ones. The analysis also keeps examples from eleven intervals of the
activation, of which number 0 is the strongest. Those of number 8 show that a weak activation of this feature means
little:"""),
    ("code", """\
for example in run.examples(dna, n=5, group="Interval 8"):
  print(shown(example))"""),
    ("markdown", """\
The next tokens that it makes more probable, by the weights on the way from the feature straight to the output:"""),
    ("code", """\
[(tables.token_strings[i], round(float(weight), 2))
 for i, weight in zip(tables.top_logit_ids_FK[dna][:10], tables.top_logit_values_FK[dna][:10], strict=True)]"""),
    ("markdown", """\
What the analysis says of it in words, with a score between 0 and 1 that was taken on text that had no part in the
choice of the words; then the features whose directions are nearest, and those that fire together with it:"""),
    ("code", """\
print(*run.label(dna)[:2])
for name in ("nearest", "together"):
  values = getattr(tables, {"nearest": "nearest_cosines_F10", "together": "together_correlations_F10"}[name])[dna]
  for other, value in list(zip(getattr(tables, f"{name}_ids_F10")[dna], values, strict=True))[:3]:
    print(f"{name:9} {other:5} at {value:.2f}: {run.label(int(other)).text[:70]}")"""),
    ("markdown", """\
*Proxies* say how likely a token is under a hypothesis such as "this is DNA", relative to the text as a whole. For each
the analysis has the feature that follows it best, and the best neuron beside it:"""),
    ("code", """\
for row in tables.summary["proxies"]:
  if row["kind"] != "domain" and row["neuron"] is not None:
    print(f"{row['proxy']:12} feature {row['feature']:4}: Pearson {row['pearson']:.2f}, "
          f"{row['specificity']:4.0%} of its firings;    neuron {row['neuron']:4}: {row['neuron_pearson']:.2f}")"""),
    ("markdown", """\
Examples can be shown in windows of any length. Beside the activations they have *effects*: how much worse each token is
predicted without the feature. The feature for DNA helps where its own kind of text goes on:"""),
    ("code", """\
example = run.examples(dna, n=1, n_tokens=25)[0]
for token, activation, effect in zip(example.tokens, example.activations, example.effects, strict=True):
  print(f"{token!r:12} {activation:6.2f} {effect:+7.3f}")
print("without it fall: ", [token for token, _ in example.lowered])"""),
    ("markdown", """\
## On a text of one's own

`encode` gives the activation of every feature on every token."""),
    ("code", """\
text = "TGACGCGGGAAATCAACATTCCGTTGACCATGGCAATTGCAGTT"
tokens, f_TF = run.encode(text)
print(f_TF.shape, "features that fire on a token:", (f_TF > 0).sum(axis=1))

plt.figure(figsize=(8, 2.4))
plt.bar(range(len(tokens)), f_TF[:, dna])
plt.xticks(range(len(tokens)), tokens, rotation=60, fontsize=8)
plt.ylabel(f"feature {dna}")
plt.show()"""),
    ("code", """\
for feature, activation in run.top_features(text, token=5, n=5):
  print(f"feature {feature:4}: {activation:6.2f}")"""),
    ("markdown", """\
## Splice: does the dictionary keep what the model needs?

The reconstruction is put in the place of the activations while the model reads the text, and its loss is compared
with the loss as it is, and with the loss when the activations are replaced by their mean. One short text is noisy;
`run.fidelity` measures held-out text document by document, with intervals, also against activations of other text in
their place (*resample-ablation*), and by domain."""),
    ("code", """\
spliced = run.splice(text)
print(f"loss {spliced.clean_T.mean():.3f} nats a token; with the reconstruction {spliced.spliced_T.mean():.3f}; "
      f"with the mean {spliced.ablated_T.mean():.3f}")

found = run.fidelity(n_tokens=20_000, n_draws=200, n_samples=0)
for floor in ("zero", "mean", "resample"):
  value, low, high = (found["figures"][f"ce_recovered_{floor}{end}"] for end in ("", "_low", "_high"))
  print(f"recovered against {floor:8}: {value:.3f}  [{low:.3f}, {high:.3f}]")
for row in found["domains"][:5]:
  print(f"{row['domain']:16} {row['ce_clean']:.2f} -> {row['ce_spliced']:.2f} nats")"""),
    ("markdown", """\
## Ablate: does the model use the feature?

Now only one feature is removed, everywhere in the text. Each bar is how much worse a token is predicted without it:
above 0, the feature helped."""),
    ("code", """\
without = run.ablate(text, feature=dna)
plt.figure(figsize=(8, 2.4))
plt.bar(range(1, len(without.tokens)), without.effect_T)
plt.xticks(range(len(without.tokens)), without.tokens, rotation=60, fontsize=8)
plt.ylabel("loss added, nats")
plt.show()
print(f"{without.effect_T.mean():+.3f} nats a token without the feature")"""),
    ("markdown", """\
## Steer: what does it bring about?

Last, the feature is held at a high value while the model writes. Its largest activation on the analysed text is a
good start. The prompt has nothing to do with DNA."""),
    ("code", """\
steered = run.compare_steering("It was a dark and stormy", {dna: float(tables.max_act_F[dna])}, n=2, n_tokens=40)
for plain, changed in zip(steered.plain, steered.changed, strict=True):
  print("as it is: ", repr(plain))
  print("steered:  ", repr(changed))
print(f"KL {steered.kl:.2f} nats; more likely now:", [moved.token for moved in steered.raised[:6]])"""),
    ("markdown", """\
## Where it comes from, and where it leads

The *circuit* of a feature at one token takes its pre-activation apart by the tokens before, through each head, and its
effect by the tokens that it raises. Beside each weight is what is really lost without that part:"""),
    ("code", """\
print(run.circuit(dna, n=5))"""),
    ("markdown", """\
*Automata* are loops of features: each raises tokens on which the next one fires. A loop of one feature keeps its own
kind of text going."""),
    ("code", """\
loops = run.automata(n_states=2, n_tokens=60_000)
for loop in loops.loops[:4]:
  print(loop)"""),
    ("markdown", """\
## Was that luck? The same with a judge, and for other kinds of text

One continuation proves nothing. `steerability` tries several features for each kind of text, pins the best one, and
asks a classifier, trained on the run's own text, what 16 new continuations are. Beside it stand those of the subject as
it is, and those with some other feature pinned. It needs scikit-learn: `pip install 'monojax[probes]'`."""),
    ("code", """\
percent = lambda share: "-" if share is None else f"{share:.0%}"
for row in run.steerability(classes=("DNA=dna", "Python=code_python", "Russian=ru_*"), n=16, n_candidates=3):
  print(f"{row.name:8} feature {row.feature}: {percent(row.pinned)} pinned, {percent(row.unpinned)} as it is, "
        f"{percent(row.random)} with another feature pinned;  called {row.called}")"""),
    ("markdown", """\
## Beside another dictionary, and all features at once

Would another recipe find the same features? A small TopK dictionary of the same activations takes half a minute. A
feature that it has, too, is *shared*; directions drawn at random show how alike two directions are by chance."""),
    ("code", """\
other = monojax.train("runs/demo/activations", recipe="topk", n_features=512, k=12, n_steps=300)
comparison = run.compare(other, n_tokens=60_000)
for name in ("cosine", "cosine_random", "correlation"):
  print(f"best {name:14} of the run's features: median {comparison.figures[f'{name}/median_a']:.2f}")
same = next((row for row in comparison.pairs if row["feature"] == dna), None)
if same:
  print(f"feature {dna} is most like feature {same['match']} there: correlation {same['correlation']:.2f}")"""),
    ("markdown", """\
The *map* puts features of like direction near each other. It needs umap-learn: `pip install 'monojax[maps]'`."""),
    ("code", """\
from importlib.util import find_spec

if find_spec("umap"):
  laid_out = run.map()
  domain_P = tables.domain_share_FD[laid_out.feature_P].argmax(1)
  plt.figure(figsize=(6, 5))
  plt.scatter(*laid_out.place_P2.T, s=5, c="lightgrey")
  for domain in np.bincount(domain_P).argsort()[::-1][:8]:
    plt.scatter(*laid_out.place_P2[domain_P == domain].T, s=9, label=tables.domains[domain])
  plt.legend(fontsize=8)
  plt.show()
  print(f"{laid_out.n_clusters} clusters")"""),
    ("markdown", """\
`claims` puts the figures of *Towards Monosemanticity* beside those of this run. Those that are missing come from the
commands `explain`, `automata` and `universality`; the page on reproduction has them all, for three seeds."""),
    ("code", """\
for claim in run.claims():
  if claim.value is not None:
    paper = "" if claim.published is None else f"{claim.published:.3g}"
    print(f"{claim.name:58} paper {paper:8} here {claim.value:.3g}")"""),
    ("markdown", """\
A feature that looks like DNA on its examples, follows the proxy of DNA, helps to predict DNA, comes from DNA, and makes
the model write DNA is a feature for DNA in every sense that can be tested here. Try others: change `dna` above to a
number from the pages in `runs/demo/browser/site/index.html`, and see how many pass all these tests."""),
]


def written(cells):
  """The notebook of some cells, without outputs."""
  import nbformat
  book = nbformat.v4.new_notebook(metadata={
      "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
      "language_info": {"name": "python"}})
  make = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
  book.cells = [make[kind](source, id=f"cell-{i:02}") for i, (kind, source) in enumerate(cells)]
  return book


def main():
  import nbformat
  book = written(CELLS)
  if "--execute" in sys.argv:
    import nbclient
    nbclient.NotebookClient(book, timeout=600).execute()
    for cell in book.cells:
      cell.metadata = {}  # no hours of the day
      cell.outputs = [out for out in cell.get("outputs", []) if out.get("name") != "stderr"] \
          if cell.cell_type == "code" else None
      if cell.cell_type != "code":
        del cell["outputs"]
  nbformat.write(book, NOTEBOOK)
  print(NOTEBOOK)


if __name__ == "__main__":
  main()
