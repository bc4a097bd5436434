"""Comparing two dictionaries: which runs they are of, what they are compared on, and the tables that are left."""

import dataclasses
import pathlib
import typing

from monojax import config as configs
from monojax import files, hub
from monojax.analysis.config import CompareConfig
from monojax.config import InputError, require
from monojax.pipeline import load
from monojax.pipeline.folder import OWN_DICTIONARY, DictionaryPlace, RunFolder

if typing.TYPE_CHECKING:
  from monojax.activations.source import RowStore, Source
  from monojax.analysis.comparison import Comparison, Side
  from monojax.sae.dictionary import SAE

FOLDER = "comparisons"
# What Towards Monosemanticity found for two subjects of different seeds: medians of the best correlation.
PUBLISHED = {"correlation": 0.72, "correlation_neurons": 0.46}
_FRONTIER = (("l0", "L0 on held-out text"), ("explained_variance", "explained variance"),
             ("ce_recovered_zero", "cross-entropy recovered"))
_BLOCK_ROWS = 8192
_LABEL_WIDTH = 44  # of the column of what is measured


@dataclasses.dataclass(frozen=True)
class Chosen:
  """One of the dictionaries that are compared.

  Attributes:
    label: what it is called in tables.
    sae: the dictionary.
    run: the run that it is of; None for one that was read from a folder of its own.
    place: where it is in that run; None likewise.
  """
  label: str
  sae: "SAE"
  run: RunFolder | None
  place: DictionaryPlace | None

  def figures(self) -> dict[str, typing.Any]:
    """Its figures on held-out text, {"l0": 12.3, ...}, as far as its run has them."""
    if self.run is None or self.place is None:
      return {}
    found = files.read_json(self.place.weights / "figures.json")  # of a member of a sweep
    found = found or self.run.require_stage(self.place.stage)["figures"]
    return {name.removeprefix("sae/"): value for name, value in found.items() if name.startswith("sae/")}


def compare(run: RunFolder, config: CompareConfig, dictionary: str = OWN_DICTIONARY, other: str = "",
            other_dictionary: str = OWN_DICTIONARY) -> "Comparison":
  """Compares two dictionaries, A of the run and B of the same or of another one, and prints a table.

  In the folder `comparisons/NAME` of A's home, NAME standing for B, are then `comparison.json` (what was compared, and
  all figures), `pairs.csv` and `.json` (a row for each feature of A), `edges.csv` and `.json` (pairs of which one
  feature may be a part of the other) and `matches.png`.

  Args:
    run: the run's folder.
    config: how much text, and what counts as alike.
    dictionary: A's name in it.
    other: the folder of another run, or a dictionary of any tool, which is then taken to be of the run's subject; by
      default the run itself.
    other_dictionary: B's name, if it is of a run.

  Raises:
    InputError: there is no such dictionary; A and B are the same one; or their subjects differ in their tokenizers.
  """
  a, b = _choose(run, dictionary, other, other_dictionary)
  found = compared(config, a, b)
  _print_table(a, b, config, found)
  _write(a, b, config, found)
  return found


def compared(config: CompareConfig, a: Chosen, b: Chosen) -> "Comparison":
  """The comparison of two dictionaries on the text, or the rows, of A's run; nothing is printed or written.

  Raises:
    InputError: as for `compare`.
  """
  assert a.run is not None
  return _on_rows(config, a, b) if _is_given(a.run) else _on_text(config, a, b)


def universality(run: RunFolder, config: CompareConfig, dictionary: str, other: str,
                 other_dictionary: str = OWN_DICTIONARY) -> "Comparison":
  """Compares dictionaries of two subjects of different seeds, and prints their medians beside the published ones.

  Args:
    run, config, dictionary, other, other_dictionary: as for `compare`, which leaves the same files.

  Raises:
    InputError: the two runs have the same subject, or one of them has none; or as for `compare`.
  """
  require(other, "--other", other, "name the folder of a run whose subject was trained with another seed on the same "
          "tokens")
  a, b = _choose(run, dictionary, other, other_dictionary)
  if b.run is None or _is_given(run) or _is_given(b.run):
    raise InputError(f"--other={other!r}: universality is about two runs that have a subject each")
  require(not same_subject(run, b.run), "--other", other,
          "has the same subject as the run: train one with another --subject.seed, or use `monojax compare`")
  found = _on_text(config, a, b)
  _print_universality(a, b, found)
  _write(a, b, config, found)
  return found


def _choose(run: RunFolder, dictionary: str, other: str, other_dictionary: str) -> tuple[Chosen, Chosen]:
  """The two dictionaries that a user means; see `compare`."""
  from monojax.sae.dictionary import SAE
  of = lambda run, name, prefix="": Chosen(f"{prefix}{run.dictionary(name).name}", load.load_sae(run, name), run,
                                           run.dictionary(name))
  a = of(run, dictionary)
  if other and (hub.is_hub(other) or not (pathlib.Path(other) / "run.json").exists() and not _stages(other)):
    name = pathlib.PurePosixPath(other.removeprefix("hf:")).name
    return a, Chosen(name, SAE.load(other, sites=a.sae.sites), None, None)
  there = RunFolder(other) if other else run
  b = of(there, other_dictionary, f"{there.directory.resolve().name}." if other else "")
  assert a.place is not None and b.place is not None
  require(a.place.weights.resolve() != b.place.weights.resolve(), "--other_dictionary", other_dictionary,
          "is the dictionary that it would be compared with: name another one of this run, or another run as --other")
  return a, b


def _stages(directory: str) -> bool:
  """Whether a folder holds finished dictionaries of a run."""
  return bool(RunFolder(directory).dictionaries())


def _is_given(run: RunFolder) -> bool:
  return load.activations_config(run).source == "given"


def same_subject(a: RunFolder, b: RunFolder) -> bool:
  """Whether two runs have the same subject: one that was trained alike, or one of the same weights."""
  if a.directory.resolve() == b.directory.resolve():
    return True
  records = [run.require_stage("subject") for run in (a, b)]
  weights = [record["inputs"].get("weights") for record in records]
  if any(weights):
    return weights[0] == weights[1]
  return records[0]["output"] == records[1]["output"]


def _on_text(config: CompareConfig, a: Chosen, b: Chosen) -> "Comparison":
  """The comparison on the run's training text."""
  from monojax.analysis import comparison
  sides = sides_of(a, b)
  assert a.run is not None
  return comparison.compare(config, *sides, load.open_tokens(a.run, "train"))


def sides_of(a: Chosen, b: Chosen) -> "tuple[Side, Side]":
  """The two dictionaries with their subjects, which are one and the same object where they are alike.

  Raises:
    InputError: a subject lacks a site, or two subjects have different tokenizers.
  """
  from monojax.analysis.comparison import Side
  assert a.run is not None
  subject = load.load_subject(a.run)
  run_b = b.run or a.run
  require(not _is_given(run_b), "--other", str(run_b.directory), "was given its activations and has no subject, which "
          "the run that it is compared with has: take one dictionary into the other's run with `monojax adopt_sae`")
  subject_b = subject
  if not same_subject(a.run, run_b):
    strings = [load.load_tokenizer(run).token_strings() for run in (a.run, run_b)]
    require(strings[0] == strings[1], "--other", str(run_b.directory), "has another tokenizer than the run, and so "
            "cannot read the same tokens: dictionaries of different subjects need subjects with one tokenizer")
    subject_b = load.load_subject(run_b)
  for chosen, read in ((a, subject), (b, subject_b)):
    widths = read.model.site_widths
    missing = [site for site in chosen.sae.sites if site not in widths]
    require(chosen.sae.sites and not missing, "sites", chosen.sae.sites,
            f"the dictionary {chosen.label} reads or writes what its subject lacks, which has {', '.join(widths)}")
    width = sum(widths[site] for site in chosen.sae.reads)
    require(width == chosen.sae.model.wiring.n_inputs, "sites", chosen.sae.reads,
            f"the dictionary {chosen.label} reads {chosen.sae.model.wiring.n_inputs} numbers, and there are {width}")
  return Side(a.sae, subject, load.kept_of(a.run)), Side(b.sae, subject_b, load.kept_of(run_b))


def _on_rows(config: CompareConfig, a: Chosen, b: Chosen) -> "Comparison":
  """The comparison on the rows that runs without a subject were given."""
  from monojax.activations.given import open_given
  from monojax.analysis import comparison
  assert a.run is not None
  run_b = b.run or a.run
  require(_is_given(run_b), "--other", str(run_b.directory), "has a subject, and the run that it is compared with was "
          "given its activations: take one dictionary into the other's run with `monojax adopt_sae`")
  settings = [load.activations_config(run) for run in (a.run, run_b)]
  opened = [open_given(load.origin_of(run, of, run.require_stage("activations")["identity"]), chosen.sae.sites)
            for chosen, run, of in zip((a, b), (a.run, run_b), settings, strict=True)]
  x_a_NM, x_b_NM = (chosen.sae.model.wiring.inputs(rows_NM)
                    for chosen, rows_NM in zip((a, b), _given_rows(config, *opened), strict=True))
  return comparison.compare_rows(config, a.sae, b.sae, x_a_NM, x_b_NM, same=settings[0].url == settings[1].url)


def _given_rows(config: CompareConfig, a: "RowStore | Source", b: "RowStore | Source") -> tuple:
  """Rows of two dictionaries' activations on the same tokens; the same array twice where both have the same ones.

  They are taken in blocks from all over the rows, as many as a quarter of memory holds.
  """
  import numpy as np

  from monojax.activations.source import RowStore
  from monojax.activations.store import ActivationStore
  from monojax.host_memory import total_bytes
  require(isinstance(a, RowStore) and isinstance(b, RowStore), "activations.url", "", "these activations are drawn at "
          "random, one batch after the other: use monojax.analysis.comparison.compare_rows on rows of your own")
  assert isinstance(a, RowStore) and isinstance(b, RowStore)
  alike = a.fingerprint() == b.fingerprint() and a.widths == b.widths
  n_wanted = min(config.n_tokens or a.n_rows, a.n_rows)
  n_rows = min(n_wanted, int(total_bytes() / 16 / (a.width + b.width)))
  if n_rows < n_wanted:
    print(f"comparing on {n_rows:,} rows instead of {n_wanted:,}: more would not fit into memory", flush=True)
  block = min(_BLOCK_ROWS, n_rows)
  starts = np.unique(np.linspace(0, a.n_rows - block, -(-n_rows // block)).astype(int) // block * block)
  same_text = a.n_rows == b.n_rows
  if same_text and not alike and isinstance(a, ActivationStore) and isinstance(b, ActivationStore):
    same_text = all(np.array_equal(a.places(s, s + block), b.places(s, s + block)) for s in starts.tolist())
  require(same_text, "--other", b.n_rows, f"these rows are not of the same tokens as the run's {a.n_rows:,}: both "
          "dictionaries must have activations on the same tokens")
  read = lambda rows: np.concatenate([np.asarray(rows.rows(s, s + block), np.float32) for s in starts.tolist()])
  x_a_NM = read(a)
  return x_a_NM, x_a_NM if alike else read(b)


def _write(a: Chosen, b: Chosen, config: CompareConfig, found: "Comparison") -> None:
  """Leaves a comparison in its folder; see `compare`."""
  from monojax.activations.owner import owned
  from monojax.analysis.pictures import draw_matches
  assert a.run is not None and a.place is not None
  home = a.run.directory / f"{a.place.home}{FOLDER}" / b.label.replace("/", ".")
  correlations = {f"features of {a.label}": found.matches["correlation"].value_a_F,
                  f"features of {b.label}": found.matches["correlation"].value_b_F}
  panels = {"correlation": correlations}
  for control in ("neurons", "random"):
    if matches := found.matches.get(f"correlation_{control}"):
      correlations[control] = matches.value_a_F
  if cosine := found.matches.get("cosine"):
    panels["cosine"] = {f"features of {a.label}": cosine.value_a_F, f"features of {b.label}": cosine.value_b_F,
                        "random": found.matches["cosine_random"].value_a_F}
  masked = found.matches["masked_cosine"]
  edges = [{"feature": i, "other_feature": j, "masked_cosine": value} for (i, j), value in
           zip(masked.edges_P2.tolist(), masked.edge_value_P.tolist(), strict=True)]
  with owned(home):
    files.write_record(home / "comparison.json", {
        "a": _told(a), "b": _told(b), "settings": configs.to_dict(config), "figures": found.figures,
        "published": PUBLISHED})
    files.write_table(home / "pairs", found.pairs)
    files.write_table(home / "edges", edges)
    drawn = draw_matches(panels, found.pairs, home / "matches.png")
  print(f"\nSee {home}" + ("" if drawn else "; its picture needs matplotlib, pip install 'monojax[report]'"))


def _told(chosen: Chosen) -> dict[str, typing.Any]:
  """What a record says of a dictionary."""
  return {"label": chosen.label, "run": str(chosen.run.directory) if chosen.run else None,
          "dictionary": chosen.place.name if chosen.place else None, "recipe": chosen.sae.config.recipe,
          **{name: chosen.figures().get(name) for name, _ in _FRONTIER}}


def _print_table(a: Chosen, b: Chosen, config: CompareConfig, found: "Comparison") -> None:
  """The table of a comparison: a line for each figure, with a column for either dictionary."""
  figures, told = found.figures, (a.figures(), b.figures())
  width = max(12, len(a.label) + 2, len(b.label) + 2)
  line = lambda label, *values: print(f"{label:<{_LABEL_WIDTH}}" + "".join(f"{_shown(v):>{width}}" for v in values))
  both = lambda label, name: line(label, figures.get(f"{name}_a"), figures.get(f"{name}_b"))
  line("", a.label, b.label)
  line("recipe", a.sae.config.recipe, b.sae.config.recipe)
  for name, label in _FRONTIER:
    line(label, *(of.get(name) for of in told))
  both("features", "features")
  both(f"that fire on {config.min_fires} of {figures['tokens']:,} tokens or more", "matched")
  both("L0 on these tokens", "l0")
  main = "correlation"
  if "cosine" in found.matches:
    main = "cosine"
    both("largest cosine, mean (MMCS)", "cosine/mean")
    both("    of random directions", "cosine_random/mean")
  both(f"shared ({main} of at least {config.shared:g})", f"{main}/shared")
  both("own", f"{main}/own")
  both("best correlation of activations, median", "correlation/median")
  for control in ("neurons", "random"):
    if f"correlation_{control}" in found.matches:
      both(f"    of {control if control == 'neurons' else 'random directions'}", f"correlation_{control}/median")
  both("largest masked cosine, median", "masked_cosine/median")
  print()
  line(f"pairs of masked cosine over {config.edge:g}", figures["masked_cosine/edges"])
  line(f"pairs one to one ({figures['one_to_one/how']}, by {main})", figures["one_to_one/pairs"])
  line("    their mean", figures["one_to_one/mean"])
  line(f"    of at least {config.shared:g}", figures["one_to_one/shared"])
  for name, label in (("logit_similarity", "logit weights"), ("attribution_similarity", "attributions")):
    if f"{name}/median" in figures:
      line(f"correlation of matches' {label}, median", figures[f"{name}/median"])


def _print_universality(a: Chosen, b: Chosen, found: "Comparison") -> None:
  """The table of two subjects' features: medians of the best correlation either way, beside the published ones."""
  columns = (f"{a.label} -> {b.label}", f"{b.label} -> {a.label}", "published")
  width = max(14, *(len(column) + 2 for column in columns))
  line = lambda label, *values: print(f"{label:<{_LABEL_WIDTH}}" + "".join(f"{_shown(v):>{width}}" for v in values))
  figures = found.figures
  line("best correlation of activations, median", *columns)
  for name, label in (("correlation", "features"), ("correlation_neurons", "neurons"),
                      ("correlation_random", "random directions")):
    line(f"    {label}", figures.get(f"{name}/median_a"), figures.get(f"{name}/median_b"), PUBLISHED.get(name, "-"))
  line("features that were matched", figures["matched_a"], figures["matched_b"], "-")
  print(f"\n{figures['tokens']:,} tokens")
  for name, label in (("logit_similarity", "logit weights"), ("attribution_similarity", "attributions")):
    if f"{name}/median" in figures:
      median, related = figures[f"{name}/median"], figures[f"{name}/correlation_with_activation"]
      print(f"{label} of matched features: median correlation {_shown(median)}, which goes with that of activations at "
            f"r = {_shown(related)}")


def _shown(value: typing.Any) -> str:
  """A value as it stands in a printed table."""
  if value is None:
    return "-"
  return value if isinstance(value, str) else f"{value:.3f}" if isinstance(value, float) else f"{value:,}"
