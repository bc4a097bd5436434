"""Activations of chosen features, neurons and random directions on a text, and proxies over texts of any length.

Letters: C contexts, N rows, R rows of a batch, F features, M neurons, J columns, P firings.
"""

import functools
import typing
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from monojax import metrics
from monojax.activations.kept import EVERY, Kept
from monojax.analysis import proxies, proxy_rows, scripts
from monojax.analysis import text as texts
from monojax.analysis.codes import Codes, collect
from monojax.analysis.fidelity import make_encode
from monojax.linear import product
from monojax.sae.dictionary import SAE
from monojax.subjects.subject import LoadedSubject
from monojax.text.tokens import Tokens

_SAMPLE_TOKENS = 262_144  # on which shares of tokens, and specificity by activation, are measured
_SLICE_ROWS = 16_384      # on which thresholds of random directions are chosen


class Reader:
  """A dictionary's activations, and those of its subject's neurons, on random contexts of a text."""

  def __init__(self, subject: LoadedSubject, sae: SAE, tokens: Tokens, kept: Kept = EVERY, batch_contexts: int = 16):
    """Reads nothing yet.

    Args:
      subject, sae: the models.
      tokens: the text.
      kept: the positions that count.
      batch_contexts: contexts in one forward pass.
    """
    self.subject, self.sae, self.tokens, self.kept = subject, sae, tokens, kept
    self._batch_contexts = batch_contexts
    encode = make_encode(subject.model, sae.model, sae.reads, kept)
    self.encode = lambda tokens_BT: encode(subject.params, sae.params, tokens_BT)

  def text(self, context_C: np.ndarray) -> texts.AnalysedText:
    """The text of some contexts."""
    return texts.of_contexts(self.tokens, context_C, self.subject.n_context, self.kept)

  def batches(self, context_C: np.ndarray) -> typing.Iterator[tuple[np.ndarray, int]]:
    """The tokens of these contexts in batches; see `text.batches`."""
    return texts.batches(self.tokens, context_C, self.subject.n_context, self._batch_contexts)

  def codes(self, context_C: np.ndarray, columns: "Columns", what: str) -> Codes:
    """The activations that `columns` makes of (f_RF, x_RM), over the contexts; `what` labels the progress bar."""
    n_rows = len(context_C) * self.subject.n_context
    return collect(lambda tokens_BT: columns(*self.encode(tokens_BT)), self.batches(context_C), n_rows, what)


def measured_proxies(reader: Reader, token_strings: Sequence[str], n_tokens: int,
                     seed: int = 0) -> tuple[list[dict], proxies.Proxies]:
  """Proxies on any number of tokens, in memory that does not depend on it.

  Args:
    reader: reads the activations.
    token_strings: a string for each token id.
    n_tokens: about how many tokens; 0 = all.
    seed: of the choice of contexts.

  Returns:
    (the rows of `proxy_rows.rows_of`, the proxies). Shares of tokens and of scripts, and specificity by activation, are
    of a sample of at most 262,144 of the tokens.
  """
  n_context, sae, domains = reader.subject.n_context, reader.sae, list(reader.tokens.domains)
  chosen_C = np.random.default_rng(seed).permutation(reader.tokens.choose(n_context, n_tokens, seed))
  sample_C = np.sort(chosen_C[:max(1, _SAMPLE_TOKENS // n_context)])
  asked = proxies.make(reader.text(sample_C), scripts.bytes_of(token_strings, reader.tokens), domains)
  sums = proxies.ProxySums(sae.n_features, sae.model.wiring.n_inputs, len(asked.names), reader.kept.all)
  done = 0
  with metrics.progress(len(chosen_C) * n_context, "tokens", "proxies", scale=True) as bar:
    for tokens_BT, n_used in reader.batches(chosen_C):
      f_RF, x_RM = (np.asarray(part)[:n_used] for part in reader.encode(tokens_BT))
      text = reader.text(chosen_C[done:done + n_used // n_context])
      done += n_used // n_context
      row_P, feature_P = np.nonzero(f_RF)
      sums.add(asked.scores(text, 0, n_used), row_P, feature_P, f_RF[row_P, feature_P], x_RM)
      bar.update(n_used)

  def firings(features):
    at = jnp.asarray(features, jnp.int32)
    return reader.codes(sample_C, lambda f_RF, _: f_RF[:, at], "specificity"), reader.text(sample_C)
  return proxy_rows.rows_of(asked, sums, firings), asked


Columns = Callable[[jax.Array, jax.Array], jax.Array]


def neurons_of(numbers: Sequence[int], n_neurons: int) -> tuple[Columns, np.ndarray]:
  """(columns of neurons, their directions (J, M)): number i is neuron i's positive part, n_neurons + i its negative."""
  at = np.array([number % n_neurons for number in numbers], np.int64)
  sign_J = np.array([1.0 if number < n_neurons else -1.0 for number in numbers], np.float32)
  direction_JM = np.zeros((len(at), n_neurons), np.float32)
  direction_JM[np.arange(len(at)), at] = sign_J
  return lambda _, x_RM: jax.nn.relu(x_RM[:, at] * sign_J[None]), direction_JM


def random_directions(reader: Reader, context_C: np.ndarray, density_J: np.ndarray,
                      seed: int) -> tuple[Columns, np.ndarray]:
  """(columns max(0, x . d - t), d_JM): random directions d whose columns fire on given shares of the rows.

  Args:
    reader: reads the neurons.
    context_C: contexts, from some of which the thresholds t are taken.
    density_J: the share of the rows on which each is to fire.
    seed: of the directions and of the choice of contexts.
  """
  rng = np.random.default_rng([seed, 4])
  some_C = rng.permutation(context_C)[:max(1, _SLICE_ROWS // reader.subject.n_context)]
  x_NM = np.concatenate([np.asarray(reader.encode(tokens_BT)[1], np.float32)[:n_used]
                         for tokens_BT, n_used in reader.batches(some_C)])
  x_NM = x_NM[x_NM.any(axis=1)]  # rows that do not count are 0
  d_MJ = rng.standard_normal((x_NM.shape[1], len(density_J)), np.float32)
  h_NJ = np.sort(x_NM @ d_MJ, axis=0)
  rank_J = np.clip(len(h_NJ) - 1 - np.round(density_J * len(h_NJ)).astype(np.int64), 0, max(len(h_NJ) - 2, 0))
  t_J = np.take_along_axis(h_NJ, rank_J[None], axis=0)[0]
  return functools.partial(_directions, d_MJ=jnp.asarray(d_MJ), t_J=jnp.asarray(t_J)), d_MJ.T


@jax.jit
def _directions(_: jax.Array, x_RM: jax.Array, d_MJ: jax.Array, t_J: jax.Array) -> jax.Array:
  """max(0, x . d - t), 0 on rows that do not count; see `random_directions`."""
  counts_R1 = (x_RM != 0).any(axis=1, keepdims=True)
  return jnp.where(counts_R1, jax.nn.relu(product(x_RM, d_MJ, jnp.float32) - t_J[None]), 0)
