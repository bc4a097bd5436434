"""A finished run, loaded to be studied in a notebook.

Letters: T positions of a text, F features.
"""

import functools
import pathlib
import typing

import numpy as np

from monojax.activations.kept import Kept
from monojax.analysis import interventions
from monojax.analysis.comparison import Comparison
from monojax.analysis.fidelity import make_encode
from monojax.analysis.tables import EXAMPLE_GROUPS, FeatureTables
from monojax.config import InputError, require
from monojax.pipeline import load
from monojax.pipeline.folder import DictionaryPlace, RunFolder
from monojax.sae.dictionary import SAE
from monojax.subjects.subject import LoadedSubject, Subject
from monojax.text.tokenizer import Tokenizer
from monojax.text.tokens import prefix_of


class Encoded(typing.NamedTuple):
  """A text's tokens as strings, and the activation f_TF of every feature on each."""
  tokens: list[str]
  f_TF: np.ndarray


class FeatureOnToken(typing.NamedTuple):
  """A feature that fires on a token, and its activation there."""
  feature: int
  activation: float


class Example(typing.NamedTuple):
  """A place in the text where a feature fires: the tokens around it and the feature's activation on each.

  The token that the example was chosen for is in the middle. `domain` is the kind of text, "" if it has none.
  """
  tokens: list[str]
  activations: np.ndarray
  domain: str
  document: int


class Spliced(typing.NamedTuple):
  """A text's tokens, and the loss in nats of each token after the first, by what the subject computes with.

  `clean_T` is the subject as it is, `spliced_T` has the dictionary's reconstruction in its place, `ablated_T` the
  sites' mean. `recovered` is (ablated - spliced) / (ablated - clean) of the means over the text.
  """
  tokens: list[str]
  clean_T: np.ndarray
  spliced_T: np.ndarray
  ablated_T: np.ndarray
  recovered: float


class Ablated(typing.NamedTuple):
  """What removing a feature from a whole text does to the prediction of each token after the first.

  `activation_T` is the feature's activation on each token. Entry i of `effect_T` is how much the log-likelihood of
  token i + 1 falls when the feature is removed: above 0 where the feature helped to predict it.
  """
  tokens: list[str]
  activation_T: np.ndarray
  effect_T: np.ndarray


class FeatureLabel(typing.NamedTuple):
  """What a feature fires on, in words, and how well these predict its activation on other text.

  `score` is Spearman's correlation of predicted and true activations; NaN where the feature fires too rarely.
  """
  text: str
  score: float


class LoadedRun:
  """A run's tokenizer, subject, dictionary and feature tables, each read from the folder when it is first asked for.

  What is compiled for one call serves the later ones.

  Attributes:
    sae: the dictionary, `monojax.SAE`.
    directory: the run's folder.
    dictionary: the dictionary's name in the run.
  """

  def __init__(self, folder: RunFolder, place: DictionaryPlace, sae: SAE):
    """Use `monojax.load`."""
    self.sae, self.directory, self.dictionary = sae, pathlib.Path(folder.directory), place.name
    self._folder, self._place = folder, place

  def __repr__(self) -> str:
    return f"LoadedRun({str(self.directory)!r}, dictionary={self.dictionary!r}, {self.sae.n_features:,} features)"

  def _require_subject(self) -> None:
    given = load.activations_config(self._folder).source == "given"
    require(not given, "run", str(self.directory),
            "was given its activations and has no subject or tokenizer: use run.sae on rows of activations")

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """The run's tokenizer.

    Raises:
      InputError: the run has none, having been given its activations.
    """
    self._require_subject()
    return load.load_tokenizer(self._folder)

  @functools.cached_property
  def _subject(self) -> LoadedSubject:
    self._require_subject()
    return load.load_subject(self._folder)

  @property
  def subject(self) -> Subject:
    """The subject: `run.subject.apply({"params": run.subject_params}, tokens_BT) -> (logits_BTV, sites)`.

    Raises:
      InputError: the run has no subject, having been given its activations.
    """
    return self._subject.model

  @property
  def subject_params(self) -> dict:
    """The subject's parameters, device arrays."""
    return self._subject.params

  @property
  def n_context(self) -> int:
    """How many tokens the subject is given to read at a time; longer texts are cut off."""
    return self._subject.n_context

  @property
  def reads(self) -> tuple[str, ...]:
    """The sites that the dictionary reads."""
    return self.sae.reads

  @property
  def writes(self) -> tuple[str, ...]:
    """The sites that it reconstructs."""
    return self.sae.writes

  @functools.cached_property
  def mean_O(self) -> np.ndarray:
    """The mean activation of the sites that it reconstructs, side by side, float64."""
    return load.mean_activation(self._folder, self.writes)

  @functools.cached_property
  def kept(self) -> Kept:
    """Which positions of a text count: features fire and are changed at these alone."""
    self._require_subject()
    return load.kept_of(self._folder)

  @functools.cached_property
  def features(self) -> FeatureTables:
    """The tables of the dictionary's analysis: `run.features.density_F` and so on.

    Raises:
      InputError: the dictionary has not been analysed.
    """
    stage = f"{self._place.home}analysis"
    require(self._folder.stage(stage), "dictionary", self.dictionary,
            f"has not been analysed: run `monojax analyze --workdir={self.directory}"
            + (f" --dictionary={self.dictionary}`" if self._place.home else "`"))
    self._folder.made(stage, "features.npz")
    return FeatureTables.load(self._folder.made(stage, "features.json").parent)

  @functools.cached_property
  def _token_strings(self) -> list[str]:
    return self.tokenizer.token_strings()

  @functools.cached_property
  def _prefix(self) -> list[int]:
    return list(prefix_of(load.tokens_meta(self._folder))) or [self.tokenizer.eot_id]

  def token_ids(self, text: str, keep_end: bool = False, n_context: int = 0) -> list[int]:
    """The ids of a text's tokens, at most as many as the subject's context has.

    In front of them is the token that the subject expects in front of everything, or, if it expects none, an
    end-of-text token.

    Args:
      text: a string.
      keep_end: whether a text that is too long loses its beginning, instead of its end.
      n_context: how many ids at most, that of the token in front included; 0 stands for the run's `n_context`.
    """
    self._require_subject()
    ids = self.tokenizer.encode_batch([text])[0].tolist()
    room = (n_context or self.n_context) - len(self._prefix)
    return self._prefix + ids[max(0, len(ids) - room) if keep_end else 0:][:room]

  def _strings(self, ids: list[int]) -> list[str]:
    return [self._token_strings[i] for i in ids]

  def encode(self, text: str) -> Encoded:
    """Every feature's activation on every token of a text; 0 on tokens that do not count (`kept`).

    Args:
      text: a string; its first `n_context - 1` tokens are read, behind an end-of-text token.
    """
    ids = self.token_ids(text)
    run = make_encode(self.subject, self.sae.model, self.reads, self.kept)
    return Encoded(self._strings(ids), np.asarray(run(self.subject_params, self.sae.params,
                                                      np.asarray([ids], np.int32))[0]))

  def top_features(self, text: str, token: int = -1, n: int = 10) -> list[FeatureOnToken]:
    """The features that fire most strongly on one token of a text.

    Args:
      text: a string.
      token: which of its tokens, as `encode` lists them: 0 is the end-of-text token before it, -1 the last one.
      n: how many features at most.
    """
    strings, f_TF = self.encode(text)
    require(-len(strings) <= token < len(strings), "token", token,
            f"the text has {len(strings)} tokens, the end-of-text token before it included")
    strongest = np.argsort(-f_TF[token], kind="stable")[:n]
    return [FeatureOnToken(int(i), float(f_TF[token, i])) for i in strongest if f_TF[token, i] > 0]

  def _require_feature(self, feature: int) -> None:
    require(0 <= feature < self.sae.n_features, "feature", feature,
            f"this dictionary has the features 0 to {self.sae.n_features - 1}")

  def examples(self, feature: int, n: int = 20, group: str = EXAMPLE_GROUPS[0][0],
               whole_characters: bool = False) -> list[Example]:
    r"""Places in the analysed text where a feature fires.

    Args:
      feature: its number.
      n: how many at most.
      group: "Top activations"; "Interval 0" to "Interval 10", of ever weaker activations; or "Bottom activations",
        where it does not fire.
      whole_characters: whether tokens that share a character count as one, with the largest of their activations, as on
        the pages. Tokens that hold only a part of a character otherwise read like `\xd8`.
    """
    self._require_feature(feature)
    names = [name for name, _ in EXAMPLE_GROUPS]
    require(group in names, "group", group, f"choose one of {', '.join(names)}")
    tables = self.features
    start = sum(size for _, size in EXAMPLE_GROUPS[:names.index(group)])
    found = []
    for e in range(start, start + dict(EXAMPLE_GROUPS)[group]):
      ids_W, acts_W = tables.example_tokens_FEW[feature, e], tables.example_acts_FEW[feature, e]
      if ids_W[len(ids_W) // 2] < 0:
        continue
      tokens, acts = [tables.token_strings[i] for i in ids_W if i >= 0], acts_W[ids_W >= 0]
      if whole_characters:
        pieces = tables.pieces(ids_W)
        tokens = [piece.text for piece in pieces]
        acts = np.array([acts_W[piece.start:piece.stop].max() for piece in pieces])
      domain = int(tables.example_domain_FE[feature, e])
      found.append(Example(tokens, acts, tables.domains[domain] if domain >= 0 else "",
                           int(tables.example_document_FE[feature, e])))
    return found[:n]

  def _losses(self, text, values=None):
    ids = self.token_ids(text)
    require(len(ids) > 1, "text", text, "needs at least one token")
    return self._strings(ids), interventions.losses(self._subject, self.sae, self.mean_O, ids, values, self.kept)

  def splice(self, text: str) -> Spliced:
    """How well the subject predicts a text with the dictionary's reconstruction in the place of its activations."""
    strings, found = self._losses(text)
    clean, spliced, ablated = (float(found[name].mean()) for name in ("clean", "spliced", "ablated"))
    recovered = (ablated - spliced) / (ablated - clean) if ablated > clean else float("nan")
    return Spliced(strings, found["clean"], found["spliced"], found["ablated"], recovered)

  def ablate(self, text: str, feature: int) -> Ablated:
    """What removing one feature, wherever it fires in a text, does to the subject's predictions."""
    self._require_feature(feature)
    strings, found = self._losses(text, {feature: 0.0})
    return Ablated(strings, self.encode(text).f_TF[:, feature], found["steered"] - found["clean"])

  def label(self, feature: int, by: str = "") -> FeatureLabel:
    """A feature's label: what it fires on, in words.

    Args:
      feature: its number.
      by: who made it: "rules", or a language model that `monojax explain` has asked; by default the analysis.

    Raises:
      InputError: there are no such labels.
    """
    self._require_feature(feature)
    if not by and self.features.labels:
      return FeatureLabel(self.features.labels[feature], float(self.features.label_score_F[feature]))
    from monojax.pipeline.stages.explanations import RULES, read_labels
    rows = read_labels(self._folder, self.dictionary, by or RULES)
    row = next((row for row in rows if row["feature"] == feature), None)
    if row is None:
      return FeatureLabel("", float("nan"))
    return FeatureLabel(row["label"], float("nan") if row["score"] is None else row["score"])

  def proxies(self, n_tokens: int | None = None, seed: int = 0) -> list[dict]:
    """Which feature, and which neuron, follows each script, format and domain of the text best.

    Args:
      n_tokens: on about how many tokens of the training text it is measured, in memory that does not depend on it, 0
        for all; by default the rows are those of the analysis.
      seed: of the choice of the tokens.

    Returns:
      A row for each proxy; `monojax.analysis.proxy_rows.rows_of` says what is in it.

    Raises:
      InputError: the dictionary has not been analysed, or it was by monojax before 0.2, and `n_tokens` is not given.
    """
    if n_tokens is None:
      rows = self.features.summary.get("proxies")
      if rows is None:
        raise InputError("n_tokens=None: this analysis has no proxies, since monojax before 0.2 made it: give a number "
                         "of tokens")
      return rows
    require(n_tokens >= 0, "n_tokens", n_tokens, "must be at least 0")
    from monojax.analysis.chosen_codes import Reader, measured_proxies
    self._require_subject()
    reader = Reader(self._subject, self.sae, load.open_tokens(self._folder, "train"), self.kept)
    return measured_proxies(reader, self._token_strings, n_tokens, seed)[0]

  def compare(self, other: "LoadedRun | SAE", **settings: typing.Any) -> Comparison:
    """Which features this dictionary shares with another one, which are its own, and how alike matched ones are.

    Args:
      other: a loaded run, of the same subject or of another one with the same tokenizer; or a dictionary of sites of
        this run's subject.
      **settings: those of `monojax.analysis.config.CompareConfig`, such as `n_tokens=100_000`.

    Raises:
      InputError: a setting breaks its rule, or the two have nothing that both could be measured on.
    """
    from monojax.analysis.config import CompareConfig
    from monojax.pipeline.stages.comparison import Chosen, compared
    mine = Chosen(self.dictionary, self.sae, self._folder, self._place)
    theirs = (Chosen("other", other, None, None) if isinstance(other, SAE) else
              Chosen(other.dictionary, other.sae, other._folder, other._place))
    return compared(CompareConfig(**settings), mine, theirs)

  def steer(self, prompt: str, features: dict[int, float], n_tokens: int = 64, seed: int = 0,
            temperature: float = 0.8) -> str:
    """Lets the subject continue a prompt with some features held at given values at every token.

    Args:
      prompt: the text to continue; "" starts a new document.
      features: {feature: activation that it is held at}, for instance {10: 12.0}. A feature's largest activation,
        `run.features.max_act_F[feature]`, is a good start; 0 removes it.
      n_tokens: how many tokens to add; the text ends where the subject's context is full.
      seed: of the draw of tokens: another seed, another text.
      temperature: lower is less random.

    Returns:
      The prompt and its continuation.
    """
    for feature in features:
      self._require_feature(feature)
    ids = interventions.steer(self._subject, self.sae, self.token_ids(prompt), features, n_tokens, seed, temperature,
                              self.kept)
    return self.tokenizer.decode(ids[len(self._prefix):])
