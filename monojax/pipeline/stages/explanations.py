"""Labels of a dictionary's features with their scores, beside the same for neurons and random directions."""

import dataclasses
import re
import typing

from monojax import config as configs
from monojax import files
from monojax.analysis.config import ExplainConfig
from monojax.config import InputError, require
from monojax.pipeline import load
from monojax.pipeline.folder import OWN_DICTIONARY, RunFolder

if typing.TYPE_CHECKING:
  from collections.abc import Callable, Sequence

  import numpy as np

  from monojax.analysis.chosen_codes import Reader
  from monojax.analysis.codes import Codes
  from monojax.analysis.explanations import Explainer, Label, Simulator
  from monojax.analysis.logit_tests import Judge
  from monojax.analysis.sampling import Sampler

FOLDER = "labels"
RULES = "rules"  # what labels are called in the folder that no language model made
_GROUPS = {"features": "features", "neurons": "neurons", "random": "random directions"}
_LABEL_WIDTH, _CELL_WIDTH, _SHOWN = 34, 24, 8


def explain(run: RunFolder, config: ExplainConfig, dictionary: str = OWN_DICTIONARY) -> dict[str, typing.Any]:
  """Labels the features of a dictionary, and prints how well labels predict, beside those of controls.

  In the folder `labels/NAME` of the dictionary's home, NAME being "rules" or the language model's, are then
  `labels.csv` and `.json` (a row for each feature: the label and its scores) and `comparison.json` (the settings, and
  the medians of features, neurons and random directions).

  Args:
    run: the run's folder.
    config: the settings.
    dictionary: the name of the dictionary, by default the run's own.

  Returns:
    {"features": ..., "neurons": ..., "random": ...}, each as `explanations.summary` gives it; without controls only
    the first.

  Raises:
    InputError: there is no such dictionary; the run has no subject; or the server cannot be used.
  """
  from monojax.activations.owner import owned
  place = run.dictionary(dictionary)
  require(load.activations_config(run).source != "given", "--workdir", str(run.directory), "was given its activations "
          "and has no subject: `monojax analyze` labels its features, monojax.load(WORKDIR).features.labels")
  made_by = _maker(config)
  reader, tokens_of = _reader(run, config, place.name)
  found = _Labelling(config, reader, tokens_of, made_by)
  groups = {"features": found.features()}
  if config.n_compared:
    groups |= {"neurons": found.neurons(), "random": found.random()}
  compared = {name: _summary([one for one in labels if name != "features" or one.feature in found.compared]
                             if config.n_compared else labels, config) for name, labels in groups.items()}
  name = re.sub(r"[^\w.-]+", "_", config.model) or RULES
  home = run.directory / f"{place.home}{FOLDER}" / name
  rows = [{"feature": one.feature, "label": one.text,
           **{name: _number(getattr(one, name)) for name in ("score", "pearson", "weighted", "logits")},
           "single_token": one.single_token} for one in groups["features"]]
  with owned(home):
    files.write_table(home / "labels", rows)
    files.write_record(home / "comparison.json", {"dictionary": place.name, "settings": configs.to_dict(config),
                                                  "tokens": found.n_tokens, "groups": compared})
  _print(compared, groups["features"], found.n_tokens)
  print(f"\nSee {home}")
  return compared


def _maker(
    config: ExplainConfig) -> "Callable[[Codes, Sampler, list[bytes], list[str]], tuple[Explainer, Simulator, Judge]]":
  """What makes explainer, simulator and judge for some activations; a server is asked once, to see that it answers."""
  if not config.url:
    from monojax.analysis.labels import Rules

    def rules(codes, sampler, values, domains):
      made = Rules(codes, sampler, values, domains, config.seed)
      return made, made, made
    return rules
  from monojax.analysis.chat import ChatExplainer, ChatJudge, ChatSimulator, Endpoint
  endpoint = Endpoint.of(config)
  endpoint.ask("Answer with JSON alone.", 'Say {"ready": true}')
  return lambda *_: (ChatExplainer(endpoint), ChatSimulator(endpoint), ChatJudge(endpoint))


def _reader(run: RunFolder, config: ExplainConfig, dictionary: str) -> "tuple[Reader, list[str]]":
  """(what reads the dictionary's activations on the run's training text, a string for each token)."""
  from monojax.analysis.chosen_codes import Reader
  sae = load.load_sae(run, dictionary)
  reader = Reader(load.load_subject(run), sae, load.open_tokens(run, "train"), load.kept_of(run), config.batch_contexts)
  return reader, load.load_tokenizer(run).token_strings()


class _Labelling:
  """Labels of one dictionary's features and of the controls, all on the same text."""

  def __init__(self, config: ExplainConfig, reader: "Reader", token_strings: list[str], made_by: typing.Any):
    import numpy as np

    from monojax.analysis import sampling, scripts
    self.config, self.reader, self._made_by = config, reader, made_by
    self._context_C = _contexts_that_fit(config, reader)
    self._text = reader.text(self._context_C)
    self.n_tokens = len(self._text.counted_N)
    self._values = scripts.bytes_of(token_strings, reader.tokens)
    self._sampler = sampling.Sampler(self._text, sampling.halves(self._text, config.seed), token_strings)
    self._codes = reader.codes(self._context_C, lambda f_RF, _: f_RF, "features")
    rng = np.random.default_rng([config.seed, 5])
    often_F = self._often(self._codes)
    self.compared = set(rng.permutation(np.flatnonzero(often_F))[:config.n_compared].tolist())
    alive = rng.permutation(np.flatnonzero(np.diff(self._codes.start_F)))
    n_labelled = config.n_labelled or (0 if config.url else len(alive))
    self._labelled = sorted({*alive[:n_labelled].tolist(), *self.compared})

  def _often(self, codes: "Codes") -> "np.ndarray":
    """Whether each column fires on enough tokens of either half to be scored."""
    import numpy as np

    from monojax.analysis.explanations import LEAST_FIRINGS
    from monojax.analysis.sampling import CHOOSING, SCORING
    column_P = np.repeat(np.arange(len(codes.start_F) - 1), np.diff(codes.start_F))
    half_P = self._sampler.half_N[codes.row_P]
    fires = [np.bincount(column_P[half_P == half], minlength=len(codes.start_F) - 1) for half in (CHOOSING, SCORING)]
    return np.minimum(*fires) >= LEAST_FIRINGS

  def _label(self, codes: "Codes", columns: "Sequence[int]", what: str, directions_JO: "np.ndarray | None",
             numbers: "Sequence[int]") -> "list[Label]":
    """Labels some columns of `codes`; `directions_JO` are those of the columns `numbers`, for the logits test."""
    from monojax.analysis import explanations, logit_tests
    reader, config = self.reader, self.config
    explainer, simulator, judge = self._made_by(codes, self._sampler, self._values, list(reader.tokens.domains))
    put_up = {} if directions_JO is None else logit_tests.put_up(directions_JO, numbers, reader.subject, reader.sae,
                                                                 reader.tokens, config.seed)
    right = lambda column, explanation: logit_tests.share_right(
        judge, explanation, put_up[column], self._sampler.token_strings) if column in put_up else float("nan")
    return explanations.label(codes, self._sampler, explainer, simulator, columns, config.seed,
                              config.n_at_once if config.url else 1, f"labels of {what}", right)

  @property
  def _of_one_site(self) -> bool:
    """Whether neurons are directions that the dictionary could write, so that the logits test can ask about them."""
    return self.reader.sae.model.wiring.autoencodes

  def features(self) -> "list[Label]":
    """The features that are asked for, and those that are compared."""
    numbers = sorted(self.compared)
    return self._label(self._codes, self._labelled, "features", self.reader.sae.direction_FO[numbers], numbers)

  def neurons(self) -> "list[Label]":
    """Random neurons; where there are negative activations, positive and negative parts are neurons of their own."""
    import numpy as np

    from monojax.analysis.chosen_codes import neurons_of
    n_neurons = self.reader.sae.model.wiring.n_inputs
    tokens_BT, _ = next(self.reader.batches(self._context_C))
    signs = 2 if (np.asarray(self.reader.encode(tokens_BT)[1]) < 0).any() else 1
    numbers = np.random.default_rng([self.config.seed, 6]).permutation(signs * n_neurons)[:len(self.compared)].tolist()
    columns, direction_JM = neurons_of(numbers, n_neurons)
    codes = self.reader.codes(self._context_C, columns, "neurons")
    found = self._label(codes, range(len(numbers)), "neurons", direction_JM if self._of_one_site else None,
                        range(len(numbers)))
    return [dataclasses.replace(one, feature=numbers[one.feature]) for one in found]

  def random(self) -> "list[Label]":
    """As many random directions as features are compared, each of which fires as often as one of these."""
    import numpy as np

    from monojax.analysis.chosen_codes import random_directions
    density_F = np.diff(self._codes.start_F) / max(self.n_tokens, 1)
    columns, direction_JM = random_directions(self.reader, self._context_C, density_F[sorted(self.compared)],
                                              self.config.seed)
    codes = self.reader.codes(self._context_C, columns, "random directions")
    return self._label(codes, range(len(self.compared)), "random directions",
                       direction_JM if self._of_one_site else None, range(len(self.compared)))


def _contexts_that_fit(config: ExplainConfig, reader: "Reader") -> "np.ndarray":
  """The contexts that are read, as many as memory has room for the activations of."""
  import numpy as np

  from monojax.analysis.codes import tokens_that_fit
  n_context, available = reader.subject.n_context, reader.tokens.n_tokens
  choose = lambda n_tokens: reader.tokens.choose(n_context, n_tokens, config.seed)
  n_tokens = min(config.n_tokens or available, available)
  tokens_BT, n_used = next(reader.batches(choose(n_tokens)))
  f_RF, x_RM = (np.asarray(part)[:n_used] for part in reader.encode(tokens_BT))
  n_neurons = min(config.n_compared, x_RM.shape[1])
  per_token = (f_RF != 0).sum() / n_used + (x_RM != 0).mean() * n_neurons
  return choose(tokens_that_fit(n_tokens, float(per_token)))


def _summary(labels: "Sequence[Label]", config: ExplainConfig) -> dict[str, typing.Any]:
  from monojax.analysis.explanations import summary
  return summary(labels, config.seed)


def _number(value: float) -> float | None:
  """A score as JSON has it: None for NaN."""
  return value if value == value else None


def _print(compared: dict[str, dict], labels: "Sequence[Label]", n_tokens: int) -> None:
  """The table of the comparison, and some of the labels."""
  line = lambda label, cells: print(f"{label:<{_LABEL_WIDTH}}" + "".join(f"{cell:>{_CELL_WIDTH}}" for cell in cells))
  line(f"{n_tokens:,} tokens", [_GROUPS[name] for name in compared])
  for name, label in (("features", "labelled"), ("scored", "    that fire often enough to be scored")):
    line(label, [f"{of[name]:,}" for of in compared.values()])
  if any(of["unreadable"] for of in compared.values()):
    line("    without a usable answer", [f"{of['unreadable']:,}" for of in compared.values()])
  for name, label in (("score", "score (Spearman), median"), ("score_others", "    not of a single token"),
                      ("score_single_token", "    of a single token"), ("pearson", "Pearson, median"),
                      ("weighted", "weighted by importance, median"), ("logits", "right in the logits test, median")):
    line(label, [_interval(of[name]) for of in compared.values()])
  line("share of a single token", ["-" if of["single_token_share"] is None else f"{of['single_token_share']:.1%}"
                                   for of in compared.values()])
  if some := [one for one in labels if one.score == one.score][:_SHOWN]:
    print("\nfeature  score  label")
    for one in some:
      print(f"{one.feature:>7}  {one.score:>5.2f}  {one.text}")


def _interval(median: "tuple[float, float, float] | None") -> str:
  """A median with its bootstrap interval of 95 %."""
  return "-" if median is None else f"{median[0]:.3f} [{median[1]:.3f}, {median[2]:.3f}]"


def read_labels(run: RunFolder, dictionary: str, by: str) -> list[dict]:
  """The rows of labels that `explain` wrote.

  Args:
    run: the run's folder.
    dictionary: the dictionary's name.
    by: "rules", or the language model.

  Raises:
    InputError: there are none.
  """
  home = run.directory / f"{run.dictionary(dictionary).home}{FOLDER}"
  name = re.sub(r"[^\w.-]+", "_", by)
  rows = files.read_json(home / name / "labels.json")
  if rows is None:
    there = ", ".join(sorted(path.parent.name for path in home.glob("*/labels.json"))) or "none"
    raise InputError(f"by={by!r}: the dictionary has no such labels (there are {there}): run `monojax explain "
                     f"--workdir={run.directory}`")
  return rows
