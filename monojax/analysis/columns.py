"""The feature columns: one table that says what an analysis knows of each feature and how the pages show it.

A column is an array with one entry (a number, or a small array) for each feature of a dictionary, such as `density_F`.
Each has one row in `COLUMNS`, and everything that handles columns reads that row: `FeatureTables` checks arrays by it,
the builder of the site writes it into the site's data, and the site's scripts take headings, help texts, sorting,
filters and panels from there. A new number per feature is therefore computed wherever its data is, and described by
one row here; `CONTRIBUTING.md`, "A feature column", has a complete example. Columns of the list, and panels of a
feature's page, stand in the order of the rows.

Letters of the axes: F features, H histogram bins, K listed logits, N listed neurons, D domains, E examples of a
feature, W tokens in an example's window, L examples with a longer window, U tokens in it, S tokens that a feature comes
from; a digit is an axis of that length.
"""

import collections
import dataclasses
import enum
import re
from collections.abc import Iterable

from monojax.config import InputError, require


class Kind(enum.StrEnum):
  """How the pages draw a column's values; `browser/static/kinds.js` and `panels.js` hold the drawings.

  `CELL_KINDS` are those of the list of features, `ENTRY_KINDS` those of a feature's page. Where a kind draws more
  columns than its own, the comment has them in parentheses, in the order of `Column.beside`.
  """
  NUMBER = "number"                  # four significant digits
  ACTIVATION = "activation"          # an activation: two decimals in the list, four significant digits on the page
  PERCENT = "percent"                # a fraction, shown as a percentage
  LOG_DENSITY = "log_density"        # a fraction, as a percentage and as a base-10 logarithm, by which it is filtered
  STATUS = "status"                  # a number that stands for a word of `STATUSES`
  LABEL = "label"                    # the score of the feature's label; in the list, the label itself
  SPARKLINE = "sparkline"            # counts of a histogram, as a small picture
  TOP_TOKENS = "top_tokens"          # examples' tokens: the tokens in the middle of the examples that fire most
  WEIGHTED_TOKENS = "weighted_tokens"  # token ids (their weights); in the list sorted by the largest weight
  TOP_DOMAIN = "top_domain"          # shares of the domains: the name of the domain with the largest
  TOP_SHARE = "top_share"            # shares of the domains: the largest of them
  DOMAINS = "domains"                # shares of the domains: the largest of them, as bars
  ACTIVATION_HISTOGRAM = "activation_histogram"  # counts (the largest activation, where the last bin ends)
  LOGIT_HISTOGRAM = "logit_histogram"  # counts (the smallest and largest logit weight, where the bins begin and end)
  NEURONS = "neurons"                # numbers of neurons (their weights, their shares of the L1 norm)
  NEURON = "neuron"                  # the number of one neuron; -1 is none
  FEATURES = "features"              # numbers of other features (how similar each is), with links to their pages
  SOURCES = "sources"                # token ids (how many tokens before the feature's they are, their weights)
  EXAMPLES = "examples"              # examples' tokens (activations, domains, documents), at the right of the page


ONE_NUMBER = frozenset({Kind.NUMBER, Kind.ACTIVATION, Kind.PERCENT, Kind.LOG_DENSITY, Kind.STATUS, Kind.NEURON,
                        Kind.LABEL})
CELL_KINDS = ONE_NUMBER | {Kind.SPARKLINE, Kind.TOP_TOKENS, Kind.WEIGHTED_TOKENS, Kind.TOP_DOMAIN, Kind.TOP_SHARE}
ENTRY_KINDS = (ONE_NUMBER - {Kind.STATUS, Kind.LABEL}) | {Kind.WEIGHTED_TOKENS, Kind.DOMAINS, Kind.ACTIVATION_HISTOGRAM,
                                              Kind.LOGIT_HISTOGRAM, Kind.NEURONS, Kind.FEATURES, Kind.SOURCES,
                                              Kind.EXAMPLES}
# How many columns beside its own a kind draws; the others draw none.
N_BESIDE = {Kind.WEIGHTED_TOKENS: 1, Kind.ACTIVATION_HISTOGRAM: 1, Kind.LOGIT_HISTOGRAM: 1, Kind.NEURONS: 2,
            Kind.FEATURES: 1, Kind.SOURCES: 3, Kind.EXAMPLES: 3}
# What 0, 1, 2 and 3 mean in `status_F`. All but dead features are alive; monojax before 0.2 called faint ones regular.
STATUSES = ("regular", "ultralow", "dead", "faint")
RESERVED_KEYS = frozenset({"id", "q", "sort", "dir", "page"})  # what the list's address uses for itself


@dataclasses.dataclass(frozen=True)
class Cell:
  """One column of the list of features.

  Attributes:
    heading: what stands above the column.
    kind: how a value is drawn, sorted and filtered.
    help: a sentence that explains the heading; by default the column's `what`.
    key: short name in the page's address, as in `#/?sort=density`; by default the array's name without its axes.
    sortable: whether a click on the heading sorts the list.
    filterable: whether the list can be filtered by it: numbers by a least and a largest value, `Kind.STATUS` and
      `Kind.TOP_DOMAIN` by choice.
    hover: name of another column of numbers; the feature's is shown while the pointer rests on the value.
    wide_only: whether the column is left out on a narrow screen, such as a telephone's.
  """
  heading: str
  kind: Kind
  help: str = ""
  key: str = ""
  sortable: bool = True
  filterable: bool = False
  hover: str = ""
  wide_only: bool = False


@dataclasses.dataclass(frozen=True)
class Entry:
  """Where a feature's page shows a column.

  Attributes:
    panel: title of the panel; entries with the same title share one, and panels stand in the order of their first
      entries.
    label: what stands beside the value or above the table.
    kind: how the value is drawn.
    help: a sentence that explains the label; by default the column's `what`.
  """
  panel: str
  label: str
  kind: Kind
  help: str = ""


@dataclasses.dataclass(frozen=True)
class Column:
  """What is known of one array of `FeatureTables`.

  Attributes:
    name: the array's name, which ends in its axes: F first, then others (see the letters above).
    dtype: NumPy name of its type.
    what: one sentence that says what it is, with its unit.
    cells: how the list of features shows it; empty where it does not.
    entry: where a feature's page shows it; None where it does not.
    absent_where: where an analysis has no such column, as a clause, as in "the text has no domain labels"; empty if
      every analysis computes it.
    since: the first version of monojax that computes it, such as "0.3": analyses that earlier versions made lack it.
      Empty for the columns that there always were.
    beside: names of columns that belong to this one: an analysis that has this one must have them, and they are drawn
      together with it.
    refers_to: "token" where its entries are token ids, "domain" where they are places in the list of domains,
      "feature" where they are numbers of features (-1 is none), otherwise empty.

  Raises:
    InputError: the name has no axes, a kind is not one that the list or the page draws, a kind that draws one number a
      feature is asked to draw an array, or columns are missing that a kind draws beside this one.
  """
  name: str
  dtype: str
  what: str
  cells: tuple[Cell, ...] = ()
  entry: Entry | None = None
  absent_where: str = ""
  since: str = ""
  beside: tuple[str, ...] = ()
  refers_to: str = ""

  def __post_init__(self) -> None:
    axes = axes_of(self.name)
    require(axes[:1] == ("F",), "the feature column", self.name, "its name must end in its axes, F first: density_F")
    shown_by = [(cell.kind, CELL_KINDS, "the list") for cell in self.cells]
    shown_by += [(self.entry.kind, ENTRY_KINDS, "a feature's page")] if self.entry else []
    for kind, allowed, where in shown_by:
      named = f"the kind of the feature column {self.name}"
      require(kind in allowed, named, kind.value, f"{where} draws {', '.join(sorted(allowed))}")
      require(kind not in ONE_NUMBER or len(axes) == 1, named, kind.value,
              "draws one number a feature, and this column has more")
      n_beside = N_BESIDE.get(kind, 0)
      require(len(self.beside) >= n_beside, f"the columns beside the feature column {self.name}", self.beside,
              f"{kind.value} draws {n_beside} more")

  @property
  def lacking(self) -> str:
    """Where an analysis lacks this column, as a clause; empty where none does."""
    older = f"monojax before {self.since} made it" if self.since else ""
    return ", or where ".join(reason for reason in (self.absent_where, older) if reason)

  @property
  def stem(self) -> str:
    """The name without its axes, which is the column's name in the site's data."""
    return self.name.rpartition("_")[0]


def axes_of(name: str) -> tuple[str, ...]:
  """The axes that an array's name ends in: ("F", "E", "W") for example_tokens_FEW, ("F", "2") for logit_range_F2.

  Empty where the name ends in none.
  """
  match = re.fullmatch(r"[a-z][a-z0-9_]*_([A-Z][A-Z0-9]*)", name)
  return tuple(re.findall(r"[A-Z]|[0-9]+", match[1])) if match else ()


def check_described(described: Iterable[Column]) -> None:
  """Raises `InputError` where two columns, or two cells of the list, have one name."""
  described = tuple(described)
  names = collections.Counter(column.stem for column in described)
  keys = collections.Counter(cell.key or column.stem for column in described for cell in column.cells)
  twice = sorted(name for counter in (names, keys) for name, count in counter.items() if count > 1)
  if twice:
    raise InputError(f"the feature columns' names {', '.join(twice)} are used twice: each column needs its own name, "
                     "and each cell its own key")
  taken = sorted(RESERVED_KEYS & set(keys))
  if taken:
    raise InputError(f"the keys {', '.join(taken)} of feature columns are used by the list itself: give the cells "
                     "other keys")


_NO_LOGITS = ("the run has no subject, or what the dictionary writes reaches the subject's logits only through later "
              "computation")
_NO_EFFECTS = ("the run has no subject that predicts tokens, or effects were not measured, by --analysis.effects or "
               "because they would have taken long")
_NO_SOURCES = _NO_EFFECTS + ", or there is no attention before what the dictionary reads"
_NO_TOKENS = "the activations come without the tokens on which they were taken"

COLUMNS: tuple[Column, ...] = (
    Column(
        "label_score_F", "float32",
        "How well the feature's label (`labels`) predicts its activation: Spearman's rank correlation of predicted and "
        "true activations on text that had no part in the choice of the label; NaN where the feature fires on fewer "
        "than 20 tokens of either half of the text.",
        cells=(Cell("Label", Kind.LABEL, key="label",
                    help="What the feature fires on, in words that were chosen on one part of the text."),
               Cell("Score", Kind.NUMBER, key="score", filterable=True, wide_only=True,
                    help="How well the label predicts the feature's activation on text that had no part in its choice: "
                         "the rank correlation (Spearman), 1 for perfect, 0 for chance.")),
        absent_where="labels were not asked for, or " + _NO_TOKENS, since="0.2"),
    Column(
        "status_F", "int8",
        "Whether the feature is dead (2: it fires on none of the analysed tokens) or alive, and then whether it is "
        "ultralow (1: it fires on a smaller fraction of them than the bound that was set), faint (3: it only fires so "
        "weakly that firings like these hardly matter to reconstructions) or regular (0). Before monojax 0.2 faint "
        "features were called regular.",
        cells=(Cell("Status", Kind.STATUS, filterable=True, wide_only=True,
                    help="Dead features never fired on the analysed text; all others are alive. Of these, ultralow "
                         "ones fire very rarely, faint ones only so weakly that it hardly matters, and the others are "
                         "regular."),)),
    Column(
        "density_F", "float32", "The fraction of the analysed tokens on which the feature fires.",
        cells=(Cell("Density", Kind.LOG_DENSITY, filterable=True, hover="n_fires_F",
                    help="The percentage of the analysed tokens on which the feature fires, and the base-10 logarithm "
                         "of the fraction."),),
        entry=Entry("Statistics", "Density", Kind.LOG_DENSITY)),
    Column(
        "n_fires_F", "int64", "The number of analysed tokens on which the feature fires.",
        entry=Entry("Statistics", "Fires", Kind.NUMBER)),
    Column(
        "max_act_F", "float32",
        "The feature's largest activation on the analysed tokens, in units of the subject's activations; 0 where it is "
        "dead.",
        cells=(Cell("Max", Kind.ACTIVATION, key="max", filterable=True),),
        entry=Entry("Statistics", "Max activation", Kind.ACTIVATION)),
    Column(
        "mean_act_F", "float32",
        "The feature's mean activation on the tokens on which it fires, in units of the subject's activations; 0 where "
        "it is dead.",
        cells=(Cell("Mean", Kind.ACTIVATION, key="mean", wide_only=True),),
        entry=Entry("Statistics", "Mean activation", Kind.ACTIVATION)),
    Column(
        "variance_share_F", "float32",
        "The feature's part in what all features add to reconstructions: the sum over the analysed tokens of its "
        "squared activations times the squared norm of its direction, as a share of all such sums.",
        cells=(Cell("Part", Kind.PERCENT, key="part", filterable=True, wide_only=True,
                    help="The feature's part in what all features together add to reconstructions."),),
        entry=Entry("Statistics", "Part of reconstructions", Kind.PERCENT), since="0.2"),
    Column(
        "ce_share_F", "float32",
        "What the feature alone does for the predictions: by how much the mean loss of the next token would rise "
        "without it, estimated from the effects in its examples, as a share of what all features together recover. "
        "Such shares need not add up to 1. NaN for a feature whose effects were not measured.",
        cells=(Cell("Recovers", Kind.PERCENT, key="recovers", filterable=True, wide_only=True,
                    help="By how much the mean loss would rise without this feature, as a share of what all features "
                         "together recover; estimated from its examples."),),
        entry=Entry("Statistics", "Recovers of the loss", Kind.PERCENT), since="0.2",
        absent_where=_NO_EFFECTS + ", or what all features recover was not (--analysis.n_share_tokens=0)"),
    Column(
        "group_F", "int32",
        "The smallest of the nested groups of features that the feature is in: group 1 are the first features, which "
        "must reconstruct alone, group 2 those that must together with group 1, and so on; the last are all features.",
        cells=(Cell("Group", Kind.NUMBER, key="group", filterable=True, wide_only=True,
                    help="The smallest nested group that the feature is in. Each group must reconstruct alone, "
                         "together with those of smaller numbers, so that the first ones stand for broad classes."),),
        entry=Entry("Statistics", "Nested group", Kind.NUMBER), since="0.2",
        absent_where="no group of features was trained to reconstruct alone, or another tool has trained them"),
    Column(
        "encoder_bias_F", "float32",
        "The encoder's bias of the feature, in units of the subject's activations; the pre-encoder bias, which is "
        "subtracted from the input first, is not part of it.",
        entry=Entry("Statistics", "Encoder bias", Kind.NUMBER)),
    Column(
        "encoder_decoder_cosine_F", "float32",
        "The cosine of the angle between the feature's encoder direction and its decoder direction.",
        entry=Entry("Statistics", "Encoder · decoder", Kind.NUMBER),
        absent_where="the dictionary writes to another site than it reads, as a transcoder does"),
    Column(
        "act_counts_FH", "int32",
        "A histogram of the feature's non-zero activations: the number of tokens in each of H equal bins from 0 to its "
        "largest activation.",
        cells=(Cell("Activations", Kind.SPARKLINE, key="spark", sortable=False, wide_only=True,
                    help="A histogram of the feature's non-zero activations, from 0 to its largest; the counts are "
                         "drawn on a logarithmic scale."),),
        entry=Entry("Activations", "activation", Kind.ACTIVATION_HISTOGRAM), beside=("max_act_F",)),
    Column(
        "act_domain_share_FH", "float32",
        "Of the tokens in each bin of `act_counts_FH`, the share that is of the feature's top domain; 0 where the bin "
        "is empty.", absent_where="the text has no domain labels", since="0.2"),
    Column(
        "example_tokens_FEW", "int32",
        "The token ids in the window of each example; -1 where the window leaves its context and where there is no "
        "example.",
        cells=(Cell("Top token", Kind.TOP_TOKENS, key="token",
                    help="The token on which the feature's largest activation was seen; where it is only a part of a "
                         "character, the whole character."),),
        entry=Entry("Examples", "", Kind.EXAMPLES), absent_where=_NO_TOKENS, refers_to="token",
        beside=("example_acts_FEW", "example_domain_FE", "example_document_FE")),
    Column(
        "example_acts_FEW", "float32",
        "The feature's activation on each token of `example_tokens_FEW`, in units of the subject's activations.",
        absent_where=_NO_TOKENS),
    Column(
        "example_domain_FE", "int32",
        "The number of the domain that each example is from; -1 where it is not known and where there is no example.",
        absent_where=_NO_TOKENS, refers_to="domain"),
    Column(
        "example_document_FE", "int64",
        "The number of the document that each example is from; -1 where there is no example.", absent_where=_NO_TOKENS),
    Column(
        "example_position_FE", "int64",
        "The position of the token that each example was chosen for: in the training split of the run's tokens, or, "
        "where activations came with their tokens, in its document; -1 where there is no example.",
        absent_where=_NO_TOKENS, since="0.2"),
    Column(
        "longer_tokens_FLU", "int32",
        "The token ids in longer windows around the L strongest examples, the first ones of `example_tokens_FEW`; -1 "
        "where the window leaves its context and where there is no example.",
        absent_where=_NO_TOKENS, since="0.2", refers_to="token", beside=("longer_acts_FLU",)),
    Column(
        "longer_acts_FLU", "float32",
        "The feature's activation on each token of `longer_tokens_FLU`, in units of the subject's activations.",
        absent_where=_NO_TOKENS, since="0.2"),
    Column(
        "example_effects_FEW", "float32",
        "What the feature does for the prediction of each token of `example_tokens_FEW`: how much the loss of this "
        "token rises, in nats, when the feature is removed wherever it fires before it. Above 0 where the feature "
        "helps; 0 where nothing changes. NaN for a feature whose effects were not measured.",
        absent_where=_NO_EFFECTS, since="0.2",
        beside=("example_lowered_ids_FE5", "example_lowered_values_FE5", "example_raised_ids_FE5",
                "example_raised_values_FE5")),
    Column(
        "example_lowered_ids_FE5", "int32",
        "The ids of the 5 tokens whose logits fall most when the feature is removed, in the prediction made at the "
        "token that each example was chosen for: those that the feature speaks for. -1 where nothing changes.",
        absent_where=_NO_EFFECTS, since="0.2", refers_to="token"),
    Column(
        "example_lowered_values_FE5", "float32",
        "By how much the logits of `example_lowered_ids_FE5` change; the largest fall first.",
        absent_where=_NO_EFFECTS, since="0.2"),
    Column(
        "example_raised_ids_FE5", "int32",
        "The ids of the 5 tokens whose logits rise most when the feature is removed, in the prediction made at the "
        "token that each example was chosen for: those that the feature speaks against. -1 where nothing changes.",
        absent_where=_NO_EFFECTS, since="0.2", refers_to="token"),
    Column(
        "example_raised_values_FE5", "float32",
        "By how much the logits of `example_raised_ids_FE5` change; the largest rise first.",
        absent_where=_NO_EFFECTS, since="0.2"),
    Column(
        "source_ids_FS", "int32",
        "The ids of the S tokens that contribute most, of either sign, to the feature's pre-activation in its "
        "strongest example, by way of attention or, its own token, past it; -1 where there are not so many, and for a "
        "feature whose sources were not computed.",
        entry=Entry("Where it comes from", "In the strongest example", Kind.SOURCES,
                    help="What each token contributes to the feature's pre-activation in its strongest example. "
                         "Attention and the norms' scales are held as they are; through the MLP it is a first-order "
                         "estimate."),
        absent_where=_NO_SOURCES, since="0.2",
        refers_to="token", beside=("source_back_FS", "source_weights_FS", "source_whole_F")),
    Column(
        "source_back_FS", "int32",
        "How many tokens before the feature's own token each of `source_ids_FS` is; 0 is its own.",
        absent_where=_NO_SOURCES, since="0.2"),
    Column(
        "source_weights_FS", "float32",
        "What each of `source_ids_FS` contributes, in units of the pre-activation.",
        absent_where=_NO_SOURCES, since="0.2"),
    Column(
        "source_whole_F", "float32",
        "The feature's pre-activation in its strongest example; what the listed tokens do not contribute comes of "
        "others and of biases. NaN for a feature whose sources were not computed.",
        absent_where=_NO_SOURCES, since="0.2"),
    Column(
        "logit_counts_FH", "int32",
        "A histogram of the feature's logit weights: the number of tokens of the vocabulary in each of H equal bins "
        "over `logit_range_F2`.",
        entry=Entry("Logit weights", "logit weight", Kind.LOGIT_HISTOGRAM), absent_where=_NO_LOGITS,
        beside=("logit_range_F2",)),
    Column(
        "logit_range_F2", "float32",
        "The feature's smallest and largest logit weight, in logits per unit of activation.", absent_where=_NO_LOGITS),
    Column(
        "top_logit_ids_FK", "int32",
        "The ids of the K tokens whose logits the feature raises most, the largest weight first.",
        cells=(Cell("Top logits", Kind.WEIGHTED_TOKENS, key="logit",
                    help="The tokens that the feature makes most likely; sorted by the largest logit weight."),),
        entry=Entry("Logit weights", "Raised", Kind.WEIGHTED_TOKENS), absent_where=_NO_LOGITS, refers_to="token",
        beside=("top_logit_values_FK",)),
    Column(
        "top_logit_values_FK", "float32",
        "The logit weights of `top_logit_ids_FK`, in logits per unit of activation.", absent_where=_NO_LOGITS),
    Column(
        "bottom_logit_ids_FK", "int32",
        "The ids of the K tokens whose logits the feature lowers most, the smallest weight first.",
        entry=Entry("Logit weights", "Lowered", Kind.WEIGHTED_TOKENS), absent_where=_NO_LOGITS, refers_to="token",
        beside=("bottom_logit_values_FK",)),
    Column(
        "bottom_logit_values_FK", "float32",
        "The logit weights of `bottom_logit_ids_FK`, in logits per unit of activation.", absent_where=_NO_LOGITS),
    Column(
        "domain_share_FD", "float32",
        "The share of the feature's total activation in each domain; the shares of a feature that fired sum to 1.",
        cells=(Cell("Top domain", Kind.TOP_DOMAIN, key="domain", filterable=True,
                    help="The domain, or kind of text, that holds the largest share of the feature's total "
                         "activation."),
               Cell("Share", Kind.TOP_SHARE, key="share",
                    help="The share of the feature's total activation in its top domain.")),
        entry=Entry("Domains", "", Kind.DOMAINS), absent_where="the text has no domain labels"),
    Column(
        "top_neuron_ids_FN", "int32",
        "The numbers of the N neurons with the largest absolute weight in the feature's decoder direction; where the "
        "dictionary writes several sites, the second's neurons are numbered on from the first's, and so on.",
        entry=Entry("Largest neurons", "", Kind.NEURONS),
        beside=("top_neuron_weights_FN", "top_neuron_l1_share_FN")),
    Column(
        "top_neuron_weights_FN", "float32", "The decoder weights of `top_neuron_ids_FN`, with their signs."),
    Column(
        "top_neuron_l1_share_FN", "float32",
        "The absolute values of `top_neuron_weights_FN` as fractions of the L1 norm of the decoder direction."),
    Column(
        "best_neuron_F", "int32",
        "The number of the neuron whose activation correlates best with the feature's over the analysed tokens, by the "
        "size of the correlation; -1 where the feature is dead. Where the dictionary reads several sites, the second's "
        "neurons are numbered on from the first's, and so on.",
        entry=Entry("Best neuron", "Neuron", Kind.NEURON), since="0.2", beside=("best_neuron_correlation_F",)),
    Column(
        "best_neuron_correlation_F", "float32",
        "Pearson's correlation of the feature's activation with that of `best_neuron_F`; 0 where the feature is dead.",
        entry=Entry("Best neuron", "Correlation", Kind.NUMBER), since="0.2"),
    Column(
        "nearest_ids_F10", "int32",
        "The numbers of the 10 features, of those that are not dead, whose decoder directions have the largest cosines "
        "with the feature's own; -1 where there are not so many, and where the feature is dead.",
        entry=Entry("Nearest by direction", "Cosine", Kind.FEATURES), since="0.2", refers_to="feature",
        beside=("nearest_cosines_F10",)),
    Column("nearest_cosines_F10", "float32", "The cosines of `nearest_ids_F10`; 0 where there is none.", since="0.2"),
    Column(
        "together_ids_F10", "int32",
        "The numbers of the 10 features whose activations over the analysed tokens correlate best with the feature's "
        "own; -1 where fewer than 10 correlate positively.",
        entry=Entry("Fire together", "Correlation", Kind.FEATURES), since="0.2", refers_to="feature",
        beside=("together_correlations_F10",)),
    Column(
        "together_correlations_F10", "float32",
        "Pearson's correlations of `together_ids_F10`; 0 where there is none.", since="0.2"),
)
