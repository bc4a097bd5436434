"""Sampling: a subject continues a prompt, one token at a time.

Letters: T positions of the text, V tokens of the vocabulary.
"""

import functools
import typing

import jax
import numpy as np

from monojax.subjects.subject import LoadedSubject, Subject


def sample(subject: LoadedSubject, prompt: list[int], n_tokens: int, key: jax.Array, temperature: float = 0.8,
           logits_of: typing.Callable | None = None, given: typing.Any = ()) -> list[int]:
  """Continues a prompt with tokens that are drawn from the subject's predictions.

  Args:
    subject: the subject that writes.
    prompt: token ids, at least one.
    n_tokens: how many tokens to add. The text ends earlier if it fills the subject's context.
    key: the random key.
    temperature: what the logits are divided by; the lower it is, the less random is the text.
    logits_of: computes the logits, if the subject as it is should not: a function
      (subject's model, params, tokens_1T, given) -> logits_1TV that can be compiled. It is compiled once, if it is the
      same function in every call.
    given: arrays for `logits_of`, which may change from call to call.

  Returns:
    The token ids of the prompt and its continuation.
  """
  length = min(subject.n_context, len(prompt) + n_tokens)
  tokens_1T = np.zeros((1, length), np.int32)
  tokens_1T[0, :len(prompt)] = prompt[:length]
  fill = _make_fill(subject.model, logits_of or _plain_logits, temperature)
  return np.asarray(fill(subject.params, tokens_1T, len(prompt), key, given))[0].tolist()


def _plain_logits(model: Subject, params: dict, tokens_1T: jax.Array, given: typing.Any) -> jax.Array:
  """The logits of the subject as it is."""
  return model.apply({"params": params}, tokens_1T, wanted=())[0]


@functools.lru_cache(maxsize=8)
def _make_fill(model: Subject, logits_of: typing.Callable, temperature: float) -> typing.Callable:
  """The compiled function (params, tokens_1T, position of the first new token, key, given) -> tokens_1T, all drawn."""
  def add(params, tokens_1T, position, key, given):
    logits_1TV = logits_of(model, params, tokens_1T, given)
    token = jax.random.categorical(key, logits_1TV[0, position - 1] / temperature)
    return tokens_1T.at[0, position].set(token)

  @jax.jit
  def fill(params, tokens_1T, first, key, given):
    def body(position, tokens_1T):
      return add(params, tokens_1T, position, jax.random.fold_in(key, position), given)
    return jax.lax.fori_loop(first, tokens_1T.shape[1], body, tokens_1T)
  return fill
