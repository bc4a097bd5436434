"""How faithful a dictionary is document by document: the tables and texts that the command `fidelity` leaves."""

import typing

from monojax import config as configs
from monojax import files
from monojax.analysis.config import FidelityConfig
from monojax.config import require
from monojax.pipeline import load
from monojax.pipeline.folder import OWN_DICTIONARY, RunFolder

if typing.TYPE_CHECKING:
  from monojax.analysis.by_document import Continuation

FOLDER = "fidelity"
_CHANGES = (("as it is", "clean"), ("dictionary spliced in", "spliced"), ("site zeroed", "zero"),
            ("site at its mean", "mean"), ("site resampled", "resample"))
_IN_DOMAINS = ("ce_clean", "ce_spliced", "ce_recovered_zero", "ce_recovered_mean", "ce_recovered_resample")
_LABEL_WIDTH = 24


def fidelity(run: RunFolder, config: FidelityConfig, dictionary: str = OWN_DICTIONARY) -> dict[str, typing.Any]:
  """Measures a finished dictionary on held-out text document by document, and prints tables.

  In the folder `fidelity` of the dictionary's home are then `fidelity.json` (settings, figures with their intervals,
  continuations), and `domains.csv` and `.json` (a row for each domain).

  Args:
    run: the run's folder.
    config: the settings.
    dictionary: the name of the dictionary, by default the run's own.

  Returns:
    What `fidelity.json` holds.

  Raises:
    InputError: there is no such dictionary; the run has no subject; or it is an encoder, which predicts no tokens.
  """
  from monojax.activations.owner import owned
  place = run.dictionary(dictionary)
  found = measured(run, config, place.name)
  home = run.directory / f"{place.home}{FOLDER}"
  with owned(home):
    files.write_table(home / "domains", found["domains"])
    files.write_json(home / "fidelity.json", found)
  _print_figures(found["figures"])
  _print_domains(found["domains"])
  _print_continuations(found["continuations"])
  return found


def measured(run: RunFolder, config: FidelityConfig, dictionary: str) -> dict[str, typing.Any]:
  """What `fidelity` finds, {"settings", "figures", "domains", "continuations"}; nothing is printed or written."""
  from monojax.analysis import by_document
  from monojax.mesh import make_mesh
  from monojax.pipeline.config import RunConfig
  from monojax.pipeline.stages.dictionaries import source_of
  sae = load.load_sae(run, dictionary)
  require(load.activations_config(run).source != "given", "--workdir", str(run.directory),
          "its activations came without a subject, and a loss is a subject's")
  subject, kept, tokens = load.load_subject(run), load.kept_of(run), load.open_tokens(run, "val")
  by_document.require_predicts(subject)
  source, wiring, _, _ = source_of(run, sae.config, make_mesh(RunConfig().mesh), trains=False)
  sample_RO = wiring.targets(source.sample(config.n_rows, config.seed))
  losses = by_document.document_losses(subject, sae, load.mean_activation(run, sae.writes), sample_RO, tokens, config,
                                       kept)
  figures = {"documents": len(losses.document_J), "tokens": int(losses.n_tokens_J.sum()),
             **by_document.with_intervals(losses, config.n_draws, config.seed)}
  domains = by_document.by_domain(losses, tokens.domains, config.n_draws, config.seed)
  texts = by_document.continuations(subject, sae, tokens, config, kept)
  return {"settings": configs.to_dict(config), "dictionary": dictionary, "figures": figures, "domains": domains,
          "continuations": [_as_text(run, text) for text in texts]}


def _as_text(run: RunFolder, found: "Continuation") -> dict[str, typing.Any]:
  """A continuation as it is saved: its text beside its tokens."""
  decode = load.load_tokenizer(run).decode
  return {"by": found.by, "prompt": decode(found.prompt), "text": decode(found.ids), "loss": found.loss,
          "prompt_ids": found.prompt, "ids": found.ids}


def _shown(figures: dict, name: str) -> str:
  """A figure with its interval, such as "0.967 [0.961, 0.972]"."""
  if figures.get(name) is None:
    return "-" if name not in figures else "undefined"
  low, high = figures[f"{name}_low"], figures[f"{name}_high"]
  return f"{figures[name]:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def _print_figures(figures: dict) -> None:
  """The table of all documents: a line for each thing that is done to the site."""
  print(f"{figures['tokens']:,} tokens of {figures['documents']:,} held-out documents, with 95 % intervals over "
        "documents; losses in nats a token")
  line = lambda *cells: print(f"{cells[0]:<{_LABEL_WIDTH}}" + "".join(f"{cell:>24}" for cell in cells[1:]))
  line("the subject", "cross-entropy", "KL", "CE recovered", "KL recovered")
  for label, name in _CHANGES:
    line(label, *(_shown(figures, f"{what}_{name}") for what in ("ce", "kl", "ce_recovered", "kl_recovered")))


def _print_domains(domains: list[dict]) -> None:
  """The table by domain, if the text has labels."""
  if not any(row["domain"] for row in domains):
    return
  width = max(_LABEL_WIDTH, *(len(row["domain"]) + 2 for row in domains))
  line = lambda *cells: print(f"{cells[0]:<{width}}" + "".join(f"{cell:>12}" for cell in cells[1:]))
  print("\nby domain: cross-entropy as it is and spliced, and the share recovered beside each way to wipe the site")
  line("", "documents", "tokens", "as it is", "spliced", "zero", "mean", "resample")
  for row in domains:
    line(row["domain"] or "(no label)", f"{row['documents']:,}", f"{row['tokens']:,}",
         *("undefined" if row[name] is None else f"{row[name]:.3f}" for name in _IN_DOMAINS))


def _print_continuations(texts: list[dict]) -> None:
  """What splicing does to generated text: mean losses under the subject as it is, and the first text both ways."""
  if not texts:
    return
  import numpy as np
  of = lambda by: [text for text in texts if text["by"] == by]
  error = lambda values: np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
  print("\ngenerated text: its loss under the subject as it is, in nats a token, and the standard error over texts")
  for by, label in (("text", "the text itself"), ("subject", "sampled, as it is"), ("spliced", "sampled, spliced")):
    losses = [text["loss"] for text in of(by)]
    print(f"{label:<{_LABEL_WIDTH}}{np.mean(losses):>12.3f}{error(losses):>12.3f}")
  print(f"\nfor instance, after {texts[0]['prompt']!r}:")
  for by in ("text", "subject", "spliced"):
    print(f"  {by:<9}{of(by)[0]['text']!r}")
