"""Windows of any length around places in a run's text, with a feature's activation and effect on each token.

Letters: E places, W tokens of a window.
"""

import typing

import numpy as np

from monojax.activations.kept import EVERY, Kept
from monojax.analysis import text as texts
from monojax.analysis.codes import collect
from monojax.analysis.effects import Seen, loss_in_windows
from monojax.analysis.fidelity import make_encode
from monojax.sae.dictionary import SAE
from monojax.subjects.subject import LoadedSubject
from monojax.text.tokens import Tokens

_BATCH_CONTEXTS = 8


class Around(typing.NamedTuple):
  """The tokens around some places, (E, W) arrays.

  Attributes:
    ids_EW: token ids, -1 outside of the text that the subject reads.
    acts_EW: the feature's activation on each.
    effects_EW: its effect on each (`example_effects_FEW` in `monojax.analysis.columns`); None if not wanted.
  """
  ids_EW: np.ndarray
  acts_EW: np.ndarray
  effects_EW: np.ndarray | None


def around(subject: LoadedSubject, sae: SAE, tokens: Tokens, feature: int, position_E: np.ndarray, n_tokens: int,
           with_effects: bool, kept: Kept = EVERY) -> Around:
  """The tokens around places in a text, whatever documents and contexts they are in.

  The subject reads the contexts as in an analysis: a token's activation depends on what is before it in its own
  context, and so do effects, which do not reach into the next context.

  Args:
    subject, sae: the models.
    tokens: the text.
    feature: the feature's number.
    position_E: places in the text, each in the middle of its window.
    n_tokens: W, odd.
    with_effects: whether effects are measured.
    kept: the positions that count.
  """
  n_context = subject.n_context
  stride = n_context - len(tokens.prefix)
  position_EW = position_E[:, None] + np.arange(n_tokens)[None] - n_tokens // 2
  inside_EW = (position_EW >= 0) & (position_EW < tokens.contexts(n_context) * stride)
  context_C = np.unique(position_EW[inside_EW] // stride)
  text = texts.of_contexts(tokens, context_C, n_context, kept)
  encode = make_encode(subject.model, sae.model, sae.reads, kept)
  codes = collect(lambda tokens_BT: encode(subject.params, sae.params, tokens_BT)[0],
                  texts.batches(tokens, context_C, n_context, _BATCH_CONTEXTS), text.n_rows, "features")
  row_EW = text.rows_at(np.where(inside_EW, position_EW, -1))
  act_N = np.zeros(text.n_rows, np.float32)
  row_P, value_P = codes.feature(feature)
  act_N[row_P] = value_P
  here = lambda value_N, outside: np.where(inside_EW, value_N[row_EW], outside)
  effects_EW = None
  if with_effects:
    seen = Seen(subject, sae, codes, text, np.ones(subject.model.n_vocab, bool), _BATCH_CONTEXTS, kept)
    asked = seen.asked(feature, row_EW)
    effects_EW = loss_in_windows(row_EW, asked, seen.effects(asked), n_context)
  return Around(here(text.token_N, -1), here(act_N, np.float32(0)), effects_EW)
