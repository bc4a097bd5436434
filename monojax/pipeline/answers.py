"""What a loaded run answers: one record for each kind of question.

Letters: T positions of a text, F features.
"""

import dataclasses
import os
import pathlib
import typing
from html import escape

import numpy as np

from monojax import files


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

  `effects` has for each token how much its loss rises, in nats, when the feature is removed from everything before it:
  above 0 where the feature helped to predict the token. It is None where it was not measured. `lowered` and `raised`
  are the tokens whose logits, in the prediction made at the middle token, fall and rise most without the feature, each
  with the change. `position` is the middle token's in the run's training text, or in its document where activations
  were given; -1 in analyses that monojax before 0.2 made.
  """
  tokens: list[str]
  activations: np.ndarray
  domain: str
  document: int
  effects: np.ndarray | None = None
  lowered: tuple[tuple[str, float], ...] = ()
  raised: tuple[tuple[str, float], ...] = ()
  position: int = -1


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

  `score` is Spearman's correlation of predicted and true activations; NaN where the feature fires too rarely. `others`
  are the labels that were next best, each with its score.
  """
  text: str
  score: float
  others: tuple[tuple[str, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class FeaturePage:
  """One feature's page as HTML that needs no other file. A notebook's cell shows it; `save` writes it."""
  html: str = dataclasses.field(repr=False)

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes the page to a file, which appears whole or not at all."""
    files.write_unless_same(pathlib.Path(path), self.html.encode())

  def _repr_html_(self) -> str:
    # In a frame of its own, whose style and scripts do not meet those of the notebook.
    return (f'<iframe srcdoc="{escape(self.html)}" style="width:100%;height:640px;border:0" '
            'title="A feature"></iframe>')
