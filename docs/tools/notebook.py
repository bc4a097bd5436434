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
what happens to the model when it is removed or forced. It expects the demo in `runs/demo` (`monojax demo`, six
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
tables = run.features
fires_F = tables.density_F > 0
strong_F = tables.max_act_F > 0.5
log_density_F = np.log10(np.maximum(tables.density_F, 1e-12))

plt.figure(figsize=(7, 3))
plt.hist([log_density_F[fires_F & strong_F], log_density_F[fires_F & ~strong_F]], 40,
         stacked=True, label=["above 0.5 somewhere", "faint: never above 0.5"])
plt.xlabel("log₁₀ density")
plt.ylabel("features")
plt.legend()
plt.show()
print(f"{fires_F.mean():.1%} fired at all, {strong_F.mean():.1%} ever exceed 0.5, "
      f"{(tables.density_F > 0.1).sum()} fire on more than a tenth of the tokens")"""),
    ("markdown", """\
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
the figures over all held-out text are in `runs/demo/summary.json`."""),
    ("code", """\
spliced = run.splice(text)
print(f"loss {spliced.clean_T.mean():.3f} nats a token; with the reconstruction {spliced.spliced_T.mean():.3f}; "
      f"with the mean {spliced.ablated_T.mean():.3f}")"""),
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
prompt = "It was a dark and stormy"
print(run.steer(prompt, {}, n_tokens=48))
print("-" * 40)
print(run.steer(prompt, {dna: float(tables.max_act_F[dna])}, n_tokens=48))"""),
    ("markdown", """\
A feature that looks like DNA on its examples, that helps to predict DNA, and that makes the model write DNA is a
feature for DNA in every sense that can be tested here. Try others: change `dna` above to a number from the pages in
`runs/demo/browser/site/index.html`, and see how many pass all three tests."""),
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
