"""Settings of the analysis."""

import dataclasses

from monojax.config import (
  COUNT,
  COUNT_OR_0,
  FRACTION,
  NOT_NEGATIVE,
  POSITIVE,
  POSITIVE_FRACTION,
  SEED,
  Bounds,
  InputError,
  option,
  require,
  require_rules,
)

DETECTORS = ("Hebrew=he_*", "Arabic=ar_*", "Cyrillic=ru_*", "Japanese=ja_*", "Korean=ko_*", "DNA=dna",
             "base64=base64", "Python code=code_python", "LaTeX=latex", "URLs=urls")


@dataclasses.dataclass(frozen=True)
class AnalysisConfig:
  """How much text the features are measured on, and which questions are asked of it."""
  n_tokens: int = option(1_000_000, "training tokens that densities and examples are taken on; 0 = all", NOT_NEGATIVE)
  n_detector_tokens: int = option(262_144, "tokens for choosing detectors' thresholds (of training text), "
                                           "and as many held-out ones for testing them", NOT_NEGATIVE)
  detectors: tuple[str, ...] = option(DETECTORS, "classes of text as NAME=GLOB of domain names, several "
                                                 "globs joined by |; those without text are left out")
  ultralow_density: float = option(1e-5, "features that fire on a smaller fraction of tokens, but do fire, "
                                         "count as ultralow; the paper's 1e-6 needs its 100 million tokens", FRACTION)
  faint_share: float = option(1e-2, "features that only fire weakly count as faint: weak are the weakest firings that "
                                    "together make up this share of what all features add to reconstructions", FRACTION)
  n_share_tokens: int = option(16_384, "held-out tokens on which the share of each kind of features in the recovered "
                                       "cross-entropy is measured; 0 = it is not", NOT_NEGATIVE)
  n_scale_tokens: int = option(65_536, "held-out tokens on which the scale of the last norm is measured, which logit "
                                       "weights are divided by", COUNT)
  min_token_count: int = option(10, "tokens seen less often in training text get no logit weights", NOT_NEGATIVE)
  effects: str = option("auto", "for which features the examples tell what removing the feature does to the "
                                "predictions, and the strongest one where the feature comes from: all, none, or "
                                "auto, which takes those that carry most of the reconstructions, as many as "
                                "effect_teraflops allows", ("auto", "all", "none"))
  effect_teraflops: float = option(3.0, "with effects=auto, the arithmetic that effects may take, and again that "
                                        "finding where features come from may take, in 10^12 operations; two cores do "
                                        "about 3 a minute", NOT_NEGATIVE)
  n_label_tokens: int = option(500_000, "of the tokens that examples are taken on, so many are used for labels, half "
                                        "to choose and half to score them; 0 = features get no labels", NOT_NEGATIVE)
  batch_contexts: int = option(64, "contexts in one forward pass", COUNT)
  seed: int = option(0, "of the choice of contexts", SEED)

  def __post_init__(self):
    require_rules(self, "analysis.")
    for detector in self.detectors:
      require("=" in detector, "analysis.detectors", detector, "must read NAME=GLOB or NAME=GLOB|GLOB")


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
  """Which labels a dictionary's features are probed for, and how; the defaults are the protocol of `sae-probes`."""
  datasets: str = option("", "a folder with files NAME.csv or NAME.csv.zst, each with columns prompt and target; by "
                             "default the data sets of the package sae-probes, pip install --no-deps sae-probes")
  only: str = option("", "names of data sets, several separated by commas, in which * stands for any letters; by "
                         "default all")
  k: tuple[int, ...] = option((1, 2, 5, 16), "how many features a probe reads", COUNT)
  regularisation: str = option("l1", "the penalty of probes on k features; that of the probe on all neurons is l2",
                               ("l1", "l2"))
  max_rows: int = option(5000, "rows of a data set that are used at most, the first ones",
                         Bounds(at_least=104, at_most=5000))
  context: int = option(0, "tokens of a text that the subject reads, its last ones; 0 = as many as in the run's "
                           "contexts, published are 1,024", COUNT_OR_0)
  seed: int = option(42, "of the splits, the fits and the random features; published is 42", SEED)

  def __post_init__(self):
    require_rules(self)
    require(self.k and len(set(self.k)) == len(self.k), "k", self.k, "must name at least one number, each once")


@dataclasses.dataclass(frozen=True)
class CompareConfig:
  """How much text two dictionaries are compared on, and what counts as alike."""
  n_tokens: int = option(262_144, "training tokens that activations are compared on; 0 = all", NOT_NEGATIVE)
  shared: float = option(0.7, "the cosine (or, of dictionaries of different subjects, the correlation) from which on a "
                              "feature counts as shared", POSITIVE_FRACTION)
  edge: float = option(0.4, "the masked cosine similarity above which a pair of features is listed, since one may be a "
                            "part of the other; published is 0.4", POSITIVE_FRACTION)
  min_fires: int = option(10, "features that fire on fewer of these tokens are left out", COUNT)
  min_token_count: int = option(10, "logit weights are compared over tokens seen at least so often in training text",
                                NOT_NEGATIVE)
  batch_contexts: int = option(16, "contexts in one forward pass", COUNT)
  seed: int = option(0, "of the choice of contexts and of random directions", SEED)

  def __post_init__(self):
    require_rules(self)


@dataclasses.dataclass(frozen=True)
class FidelityConfig:
  """How much held-out text a dictionary's fidelity is measured on document by document, and how much is generated."""
  n_tokens: int = option(65_536, "held-out tokens that losses are measured on; 0 = all", NOT_NEGATIVE)
  n_rows: int = option(4096, "activations of other text that resample-ablation draws from", COUNT)
  n_draws: int = option(1000, "times that documents are drawn again for 95 % intervals; 0 = no intervals", COUNT_OR_0)
  n_samples: int = option(8, "held-out texts that are continued with and without the dictionary; 0 = none", COUNT_OR_0)
  prompt_tokens: int = option(16, "tokens of each text that are given", COUNT)
  sample_tokens: int = option(48, "tokens that are added, at most as many as the context has room for", COUNT)
  temperature: float = option(1.0, "the logits are divided by it while sampling", NOT_NEGATIVE)
  seed: int = option(0, "of the choice of contexts, of rows, of documents and of samples", SEED)

  def __post_init__(self):
    require_rules(self)


@dataclasses.dataclass(frozen=True)
class ClaimsConfig:
  """Which runs stand beside the paper."""
  others: tuple[str, ...] = option((), "further dictionaries of the run, by their names, whose figures get a column "
                                       "each")
  runs: tuple[str, ...] = option((), "folders of further runs, for instance of other seeds, whose figures get a column "
                                     "each")
  control: str = option("", "the folder of a run whose subject has random weights (subject.shuffled_of), of which "
                            "`explain` has labelled the dictionary of the same name")

  def __post_init__(self):
    require_rules(self)


@dataclasses.dataclass(frozen=True)
class MapConfig:
  """Which features are laid out in a map, and how."""
  others: tuple[str, ...] = option((), "further dictionaries of the run on the same map, by their names, for instance "
                                       "larger ones, whose features split those of the first")
  n_neighbors: int = option(15, "neighbours of a feature that UMAP keeps near it; published is 15",
                            Bounds(at_least=2, at_most=1000))
  min_dist: float = option(0.05, "how near UMAP may put two features; published is 0.05, and 0.01 for three "
                                 "dictionaries", NOT_NEGATIVE)
  min_cluster_size: int = option(3, "features of the smallest cluster; published is 3", Bounds(at_least=2))
  seed: int = option(0, "of UMAP", SEED)

  def __post_init__(self):
    require_rules(self)


@dataclasses.dataclass(frozen=True)
class AutomataConfig:
  """How much text loops of features are looked for in, and which of them are listed."""
  n_states: int = option(4, "the most features of a loop", Bounds(at_least=1, at_most=4))
  n_loops: int = option(50, "how many loops of each number of features are kept; the first 10 are printed and drawn",
                        COUNT)
  n_tokens: int = option(262_144, "training tokens that are read; 0 = all", NOT_NEGATIVE)
  n_raised: int = option(200, "a feature leads to another through the tokens that it raises most, so many", COUNT)
  min_score: float = option(0.05, "the weakest step of a loop that is listed", POSITIVE_FRACTION)
  min_steps: int = option(20, "features that are followed less often by a token that they raise are left out", COUNT)
  min_documents: int = option(3, "features that fire in fewer documents are left out", COUNT)
  min_token_count: int = option(10, "tokens seen less often in training text count as raised by no feature",
                                NOT_NEGATIVE)
  batch_contexts: int = option(16, "contexts in one forward pass", COUNT)
  seed: int = option(0, "of the choice of contexts and of the control", SEED)

  def __post_init__(self):
    require_rules(self)


@dataclasses.dataclass(frozen=True)
class SteerConfig:
  """What is done to which features while a subject continues a prompt, and how the continuations are drawn."""
  prompt: str = option("", "the text to continue; by default a new document")
  pin: tuple[str, ...] = option((), "features held at a value, as FEATURE=VALUE; FEATURE or FEATURE=max holds one at "
                                    "its largest activation on the analysed text")
  scale: tuple[str, ...] = option((), "features multiplied by a number, as FEATURE=NUMBER")
  ablate: tuple[str, ...] = option((), "features removed, as FEATURE")
  positions: str = option("", "the tokens at which features are changed, as START:STOP, those before STOP; 0 is the "
                              "token in front of the prompt; by default all")
  n: int = option(4, "how many continuations", COUNT)
  n_tokens: int = option(64, "how many tokens each continuation has at most", COUNT)
  temperature: float = option(0.8, "the lower it is, the less random is the text; 0 takes the likeliest token each "
                                   "time", NOT_NEGATIVE)
  seed: int = option(0, "of the draw of tokens; further continuations take the next seeds", SEED)
  out: str = option("", "a file to write everything to as JSON, besides printing it")

  def __post_init__(self):
    require_rules(self)
    features = [feature for feature, _, _ in self.changes]
    twice = next((feature for feature in features if features.count(feature) > 1), None)
    require(twice is None, "feature", twice, "can be changed in one way only")
    start, stop = self.span or (0, None)
    require(stop is None or start < stop, "positions", self.positions, "START must be smaller than STOP")

  @property
  def changes(self) -> list[tuple[int, str, float | None]]:
    """(feature, kind, value) of each change; the value is None where there is none, or it is the largest activation.

    Raises:
      InputError: a text does not read as it must.
    """
    return [*(_change("pin", text) for text in self.pin), *(_change("scale", text) for text in self.scale),
            *(_change("ablate", text) for text in self.ablate)]

  @property
  def span(self) -> tuple[int, int | None] | None:
    """(start, stop) of the positions, stop being None where there is no end; None for all positions.

    Raises:
      InputError: the text does not read as it must.
    """
    if not self.positions:
      return None
    start, colon, stop = self.positions.partition(":")
    require(colon and (start or "0").isdecimal() and (stop or "0").isdecimal(), "positions", self.positions,
            "must read START:STOP, two numbers of which either may be left out")
    return int(start or 0), int(stop) if stop else None


@dataclasses.dataclass(frozen=True)
class SteerabilityConfig:
  """Which kinds of text features are to bring about, and how many continuations are judged."""
  classes: tuple[str, ...] = option(("DNA=dna", "Python=code_python", "HTML=html", "Russian=ru_*", "Arabic=ar_*",
                                     "LaTeX=latex"), "kinds of text as NAME=GLOB of domain names, several globs joined "
                                    "by |; those without text are left out")
  prompt: str = option("1,2,3,4,5,6,7,8,9,10", "what is continued; published is the default")
  n: int = option(32, "continuations that are judged, of each class, of the subject as it is, and with features pinned "
                      "at random", COUNT)
  n_tokens: int = option(64, "tokens of a continuation, and of the text that the classifier is trained on", COUNT)
  n_candidates: int = option(5, "features that are tried for a class: those that are active most in its domains", COUNT)
  n_choosing: int = option(8, "continuations that each of these is tried on; they do not count", COUNT)
  temperature: float = option(0.8, "the logits are divided by it while sampling", NOT_NEGATIVE)
  seed: int = option(0, "of the draws, and of the classifier's text", SEED)

  def __post_init__(self):
    require_rules(self)
    for name in self.classes:
      require("=" in name, "classes", name, "must read NAME=GLOB or NAME=GLOB|GLOB")


def _change(kind: str, text: str) -> tuple[int, str, float | None]:
  """(feature, kind, value) of a text such as 12, 12=0.5 or 12=max."""
  feature, equals, value = text.partition("=")
  require(feature.strip().isdecimal(), kind, text, "must begin with the number of a feature")
  if kind == "ablate":
    require(not equals, kind, text, "must be the number of a feature alone")
    return int(feature), kind, None
  if kind == "pin" and (not equals or value.strip() == "max"):
    return int(feature), kind, None
  try:
    return int(feature), kind, float(value)
  except ValueError:
    need = "FEATURE=NUMBER" if kind == "scale" else "FEATURE, FEATURE=NUMBER or FEATURE=max"
    raise InputError(f"{kind}={text!r}: must read {need}") from None


@dataclasses.dataclass(frozen=True)
class ExplainConfig:
  """How features are labelled, and what the labels are compared with."""
  n_tokens: int = option(262_144, "training tokens, half of them to choose labels on and half to score them; 0 = all",
                         NOT_NEGATIVE)
  n_compared: int = option(200, "features whose scores are compared with those of as many neurons and as many random "
                                "directions, a random sample of those that fire on 20 tokens of either half; 0 = no "
                                "comparison", COUNT_OR_0)
  n_labelled: int = option(0, "features that are labelled, a random sample of those that fire; 0 = all, or with --url "
                              "those that are compared", COUNT_OR_0)
  url: str = option("", "a server that speaks OpenAI's protocol of chats, up to and including the version, such as "
                        "http://localhost:8000/v1, whose model explains and predicts; by default rules do")
  model: str = option("", "with --url: the model's name there")
  key_variable: str = option("", "with --url: the environment variable that holds the key, if the server wants one")
  timeout_s: float = option(120.0, "with --url: seconds that an answer may take", POSITIVE)
  n_at_once: int = option(4, "with --url: how many features are asked about at a time", COUNT)
  batch_contexts: int = option(16, "contexts in one forward pass", COUNT)
  seed: int = option(0, "of the choice of contexts, of the halves, of the examples and of what is compared", SEED)

  def __post_init__(self):
    require_rules(self)
    for name in ("model", "key_variable"):
      value = getattr(self, name)
      require(self.url or not value, f"--{name}", value, "is of a server: give --url, too")
    if self.url:
      require(self.url.startswith(("http://", "https://")), "--url", self.url, "must begin with http:// or https://")
      require(self.model, "--model", self.model, f"say which of the models of {self.url} is asked")
