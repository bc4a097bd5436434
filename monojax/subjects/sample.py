"""Sampling: a subject continues a prompt, one token at a time.

Letters: T positions of the text, V tokens of the vocabulary.
"""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from monojax.subjects.subject import LAST, Edit, LoadedSubject, Subject, unembedded

# (`given`, the tokens of a pass, the position of the first of them) -> the edits of that pass
EditOf = typing.Callable[[typing.Any, jax.Array, typing.Any], Edit]


def sample(subject: LoadedSubject, prompt: list[int], n_tokens: int, key: jax.Array, temperature: float = 0.8,
           edit_of: EditOf | None = None,
           logits_of: typing.Callable | None = None, given: typing.Any = (), use_cache: bool = True) -> list[int]:
  """Continues a prompt with tokens that are drawn from the subject's predictions.

  Args:
    subject: the subject that writes.
    prompt: token ids, at least one.
    n_tokens: how many tokens to add. The text ends earlier if it fills the subject's context.
    key: the random key.
    temperature: what the logits are divided by; the lower it is, the less random is the text. 0 takes the likeliest
      token each time.
    edit_of: the edits of a pass, if the subject should not be as it is; see `EditOf`. What is compiled for a function
      serves later calls with the same one.
    logits_of: computes the logits of the whole text where edits alone do not say what is to be done: a function
      (subject's model, params, tokens_1T, given) -> logits_1TV that can be compiled.
    given: arrays for `edit_of` or `logits_of`, which may change from call to call.
    use_cache: whether keys and values of earlier tokens are remembered, where the subject can and `logits_of` is not
      given; otherwise the whole text is read again for each token.

  Returns:
    The token ids of the prompt and its continuation.
  """
  length = min(subject.n_context, len(prompt) + n_tokens)
  if length <= len(prompt):
    return list(prompt[:length])
  with_cache = use_cache and logits_of is None and subject.model.new_cache(1, 1) is not None
  if with_cache:
    n_padded, n_added = len(prompt), length - len(prompt)
    if not subject.model.depends_on_length:  # texts of similar lengths share what is compiled
      n_padded, n_added = min(bucket(n_padded), subject.n_context), bucket(n_added)
    fill = _make_extend(subject.model, edit_of, temperature, n_padded, n_added)
    prompt_1T = np.asarray([prompt + [prompt[-1]] * (n_padded - len(prompt))], np.int32)
    added = np.asarray(fill(subject.params, prompt_1T, len(prompt), key, given)).tolist()
    return list(prompt) + added[:length - len(prompt)]
  tokens_1T = np.zeros((1, length), np.int32)
  tokens_1T[0, :len(prompt)] = prompt
  fill = _make_fill(subject.model, edit_of, logits_of, temperature)
  return np.asarray(fill(subject.params, tokens_1T, len(prompt), key, given))[0].tolist()


def _draw(logits_V: jax.Array, key: jax.Array, position: typing.Any, temperature: float) -> jax.Array:
  """The token for a position."""
  if temperature == 0:
    return jnp.argmax(logits_V).astype(jnp.int32)
  return jax.random.categorical(jax.random.fold_in(key, position), logits_V / temperature).astype(jnp.int32)


@functools.lru_cache(maxsize=8)
def _make_fill(model: Subject, edit_of: EditOf | None, logits_of: typing.Callable | None,
               temperature: float) -> typing.Callable:
  """The compiled function (params, tokens_1T, position of the first new token, key, given) -> tokens_1T, all drawn."""
  def logits(params, tokens_1T, position, given):
    if logits_of:
      return logits_of(model, params, tokens_1T, given)[0, position]
    edit = edit_of(given, tokens_1T, 0) if edit_of else None
    _, sites = model.apply({"params": params}, tokens_1T, edit, wanted=(LAST,))
    # The unembedding is most of a small subject, and only one position of it is needed.
    return unembedded(model, params, sites[LAST][:, position][:, None])[0, 0]

  @jax.jit
  def fill(params, tokens_1T, first, key, given):
    def body(position, tokens_1T):
      logits_V = logits(params, tokens_1T, position - 1, given)
      return tokens_1T.at[0, position].set(_draw(logits_V, key, position, temperature))
    return jax.lax.fori_loop(first, tokens_1T.shape[1], body, tokens_1T)
  return fill


def bucket(n: int) -> int:
  """The power of two, at least 16, that n fits into."""
  return max(16, 1 << (n - 1).bit_length())


@functools.lru_cache(maxsize=8)
def _make_extend(model: Subject, edit_of: EditOf | None, temperature: float, n_padded: int,
                 n_added: int) -> typing.Callable:
  """The compiled function (params, prompt_1T, length of the prompt, key, given) -> the new tokens.

  It remembers what it has read. The prompt is padded to `n_padded` tokens; what follows its own length is overwritten.
  """
  @jax.jit
  def fill(params, prompt_1T, length, key, given):
    def extend(cache, tokens_1T, start):
      edit = edit_of(given, tokens_1T, start) if edit_of else None
      return model.extend({"params": params}, cache, tokens_1T, edit)
    cache = model.new_cache(1, n_padded + n_added)
    logits_1TV, cache = extend(cache, prompt_1T, 0)
    cache = {**cache, "length": jnp.asarray(length, jnp.int32)}

    def step(carry, position):
      token, cache = carry
      logits_11V, cache = extend(cache, token[None, None], position - 1)
      new = _draw(logits_11V[0, -1], key, position, temperature)
      return (new, cache), new
    first = _draw(logits_1TV[0, length - 1], key, length, temperature)
    _, rest = jax.lax.scan(step, (first, cache), length + jnp.arange(1, n_added))
    return jnp.concatenate([first[None], rest])
  return fill
