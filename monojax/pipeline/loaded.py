"""A finished run, loaded to be studied in a notebook.

Letters: T positions of a text, O width of the sites written.
"""

import dataclasses
import functools
import pathlib
import typing
from collections.abc import Sequence

import numpy as np

from monojax.activations.kept import Kept
from monojax.analysis import automata, circuits, interventions, steering
from monojax.analysis.automata import Automata
from monojax.analysis.circuits import Circuit
from monojax.analysis.claims import Claim
from monojax.analysis.comparison import Comparison
from monojax.analysis.config import AnalysisConfig, AutomataConfig, MapConfig, SteerabilityConfig
from monojax.analysis.fidelity import make_encode
from monojax.analysis.interventions import Change
from monojax.analysis.logits import used_tokens
from monojax.analysis.maps import FeatureMap
from monojax.analysis.steerability import Steerable
from monojax.analysis.steering import Steered
from monojax.analysis.tables import EXAMPLE_GROUPS, FeatureTables
from monojax.config import InputError, require
from monojax.pipeline import load
from monojax.pipeline.answers import Ablated, Encoded, Example, FeatureLabel, FeatureOnToken, FeaturePage, Spliced
from monojax.pipeline.folder import DictionaryPlace, RunFolder
from monojax.sae.dictionary import SAE
from monojax.subjects.subject import LoadedSubject, Subject
from monojax.text.tokenizer import Tokenizer
from monojax.text.tokens import prefix_of


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

  def examples(self, feature: int, n: int = 20, group: str = EXAMPLE_GROUPS[0][0], whole_characters: bool = False,
               n_tokens: int = 0, effects: bool = True) -> list[Example]:
    r"""Places in the analysed text where a feature fires.

    Args:
      feature: its number.
      n: how many at most.
      group: "Top activations"; "Interval 0" to "Interval 10", of ever weaker activations; or "Bottom activations",
        where it does not fire.
      whole_characters: whether tokens that share a character count as one, with the largest of their activations, as on
        the pages, and the sum of their effects. Tokens that hold only a part of a character otherwise read like `\xd8`.
      n_tokens: how long the windows are, an odd number; the analysis kept the 9 tokens that stand for 0. Longer ones
        are read from the run's text, and the subject is run on them. They may reach beyond a context or a document; a
        document begins with an end-of-text token.
      effects: whether windows of `n_tokens` tell the effects, too. Where the dictionary's site does not lead straight
        to the logits, that takes one more pass of the subject for each context.
    """
    from monojax.pipeline.shown import examples_of
    self._require_feature(feature)
    return examples_of(self, feature, n, group, whole_characters, n_tokens, effects)

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

  def fidelity(self, **settings: typing.Any) -> dict[str, typing.Any]:
    """How faithful the dictionary is on held-out text, with intervals over documents, by domain, in generated text.

    Args:
      **settings: those of `monojax.analysis.config.FidelityConfig`, such as `n_tokens=20_000`.

    Returns:
      {"figures", "domains", "continuations", ...}, as the command `fidelity` leaves them in fidelity.json.

    Raises:
      InputError: a setting breaks its rule, or the run has no subject that predicts tokens.
    """
    from monojax.analysis.config import FidelityConfig
    from monojax.pipeline.stages.fidelity import measured
    return measured(self._folder, FidelityConfig(**settings), self.dictionary)

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
      others = self.features.other_labels[feature] if self.features.other_labels else []
      return FeatureLabel(self.features.labels[feature], float(self.features.label_score_F[feature]),
                          tuple((text, score) for text, score in others))
    from monojax.pipeline.stages.explanations import RULES, read_labels
    rows = read_labels(self._folder, self.dictionary, by or RULES)
    row = next((row for row in rows if row["feature"] == feature), None)
    if row is None:
      return FeatureLabel("", float("nan"))
    return FeatureLabel(row["label"], float("nan") if row["score"] is None else row["score"])

  def show(self, feature: int) -> FeaturePage:
    """A feature's page, as in the run's site, by itself: the last line of a notebook's cell shows it.

    Args:
      feature: its number. `run.show(10).save("ten.html")` writes a file that opens anywhere.

    Raises:
      InputError: there is no such feature, or the dictionary has not been analysed.
    """
    from monojax.browser.single import feature_html
    name = self.directory.resolve().name
    return FeaturePage(feature_html(self.features, feature, f"{name}, {self.dictionary}" if self._place.home else name))

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

  def map(self, others: Sequence[str] = (), **settings: typing.Any) -> FeatureMap:
    """Features in the plane, those of like direction near each other, and in clusters, by UMAP.

    Args:
      others: further dictionaries of the run, whose features are on the same map.
      **settings: those of `monojax.analysis.config.MapConfig`, such as `min_cluster_size=5`.

    Raises:
      InputError: umap-learn is not installed, or a dictionary is not analysed or writes other sites.
    """
    from monojax.pipeline.stages.maps import mapped
    return mapped(MapConfig(**settings), [self, *(load.load(self.directory, name) for name in others)])[0]

  def steer(self, prompt: str, features: dict[int, float] | Sequence[Change], n_tokens: int = 64, seed: int = 0,
            temperature: float = 0.8) -> str:
    """Lets the subject continue a prompt with some features changed.

    Args:
      prompt: the text to continue; "" starts a new document.
      features: {feature: activation that it is held at}, for instance {10: 12.0}. A feature's largest activation,
        `run.features.max_act_F[feature]`, is a good start; 0 removes it. Or a list of
        `monojax.analysis.interventions.Change`, which can also scale features, and change them at some tokens alone.
        Tokens are counted as `encode` lists them.
      n_tokens: how many tokens to add; the text ends where the subject's context is full.
      seed: of the draw of tokens: another seed, another text.
      temperature: lower is less random.

    Returns:
      The prompt and its continuation.
    """
    ids = interventions.steer(self._subject, self.sae, self.token_ids(prompt), self._changes(features), n_tokens, seed,
                              temperature, self.kept)
    return self.tokenizer.decode(ids[len(self._prefix):])

  def compare_steering(self, prompt: str, features: dict[int, float] | Sequence[Change], n: int = 4,
                       n_tokens: int = 64, seed: int = 0, temperature: float = 0.8) -> Steered:
    """Continuations of a prompt with and without changes of features, and what these do to the next token.

    Args:
      prompt, features, n_tokens, temperature: as for `steer`.
      n: how many continuations of either kind; number i of both is drawn with the seed `seed` + i.
      seed: of the first.
    """
    return steering.compare(self._subject, self.sae, self.tokenizer, prompt, self.token_ids(prompt),
                            self._changes(features), steering.Drawn(n, n_tokens, seed, temperature), self.kept)

  def steerability(self, **settings: typing.Any) -> list[Steerable]:
    """Which features make the subject write a kind of text, as a classifier judges that knows the run's own text.

    Args:
      **settings: those of `monojax.analysis.config.SteerabilityConfig`, such as `classes=("Python=code_python",)`.

    Raises:
      InputError: a setting breaks its rule, no class has text in this run, or scikit-learn is not installed.
    """
    from monojax.pipeline.stages.steerability import measured
    return measured(SteerabilityConfig(**settings), self)[0]

  def claims(self, control: str = "") -> list[Claim]:
    """The figures of Towards Monosemanticity, each beside this dictionary's.

    Args:
      control: the folder of the run of a subject with random weights (`--subject.shuffled_of`) that was explained.

    Returns:
      A row for each figure. `value` is None where the command that measures it, `source`, was not run.
    """
    from monojax.pipeline.stages.claims import of_dictionary
    return of_dictionary(self, control)

  def _changes(self, features: dict[int, float] | Sequence[Change]) -> list[Change]:
    """Changes of features of this dictionary, with the largest activation where a value is missing."""
    found = []
    for change in interventions.as_changes(features):
      self._require_feature(change.feature)
      if change.kind == "pin" and change.value is None:
        largest = float(self.features.max_act_F[change.feature])
        require(largest > 0, "feature", change.feature, "never fires on the analysed text, and so has no largest "
                "activation: say what it is to be held at")
        change = dataclasses.replace(change, value=largest)
      found.append(change)
    return found

  def circuit(self, feature: int, text: str | None = None, token: int | None = None, n: int = 10) -> Circuit:
    """What a feature comes from at one token, head by head, and which next tokens it raises; `print` shows it.

    Args:
      feature: its number.
      text: a string; by default the context of the feature's strongest example on the analysed text.
      token: the feature's token, as `encode` lists them; by default the one on which it is strongest.
      n: how many tokens are listed at most.

    Raises:
      InputError: the feature does not fire there.
    """
    self._require_feature(feature)
    if text is None:
      ids = circuits.strongest_example(load.open_tokens(self._folder, "train"), self.features, feature, self.n_context)
      token = len(ids) - 1 if token is None else token
    else:
      ids = self.token_ids(text)
      token = int(self.encode(text).f_TF[:, feature].argmax()) if token is None else token
    require(-len(ids) <= token < len(ids), "token", token, f"the text has {len(ids)} tokens, that in front included")
    ids = ids[:token % len(ids) + 1]
    return circuits.circuit(self._subject, self.sae, ids, feature, self._token_strings, self.kept, n, self._used_V)

  @functools.cached_property
  def _used_V(self) -> np.ndarray:
    """The tokens that are common enough in the training text to have meaningful logit weights."""
    return used_tokens(load.open_tokens(self._folder, "train"), self.subject.n_vocab, AnalysisConfig().min_token_count)

  def automata(self, config: AutomataConfig | None = None, **settings: typing.Any) -> Automata:
    """Loops of features, each of which raises tokens on which the next one fires; `print` shows each of `.loops`.

    Args:
      config: how much text they are looked for in, and which of them are listed.
      **settings: those of `AutomataConfig` in the place of a `config`, such as `n_states=2`.

    Raises:
      InputError: the features' effects reach the logits only through later layers; or a setting breaks its rule.
    """
    self._require_subject()
    return automata.find(config or AutomataConfig(**settings), self._subject, self.sae,
                         load.open_tokens(self._folder, "train"), self._token_strings, self.kept)
