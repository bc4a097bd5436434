"""What features do to a text: splicing a dictionary into its subject, removing features, and steering with them.

Each intervention reads the features in the subject as it is, and then runs the subject again with the sites that the
dictionary writes changed. When single features are changed, the reconstruction's error is kept: an activation y becomes
y + (f' - f) W_dec, where f are the features that the dictionary finds and f' those put in their place.

Letters: T positions of one text, F features, O width of the sites written, V vocabulary.
"""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from monojax.analysis.fidelity import side_by_side
from monojax.sae.dictionary import SAE
from monojax.sae.model import Dictionary
from monojax.subjects.loss import next_token_loss
from monojax.subjects.sample import sample
from monojax.subjects.subject import LoadedSubject, Subject


class Wired(typing.NamedTuple):
  """The parts of a dictionary that a compiled function depends on: its model and the names of its sites."""
  model: Dictionary
  reads: tuple[str, ...]
  writes: tuple[str, ...]


def wired(sae: SAE) -> Wired:
  """The parts of a dictionary that a compiled function depends on."""
  return Wired(sae.model, sae.reads, sae.writes)


def spliced_logits(subject: Subject, dictionary: Wired, params: dict, sae_params: dict,
                   tokens_1T: jax.Array) -> jax.Array:
  """Logits (1, T, V) with the dictionary's reconstruction in the place of the sites that it writes; to be traced."""
  _, sites = subject.apply({"params": params}, tokens_1T)
  y_NO, _ = dictionary.model.apply({"params": sae_params}, side_by_side(sites, dictionary.reads))
  return _with_written(subject, dictionary, params, tokens_1T, y_NO)


def steered_logits(subject: Subject, dictionary: Wired, params: dict, sae_params: dict, tokens_1T: jax.Array,
                   feature_J: jax.Array, value_J: jax.Array) -> jax.Array:
  """Logits (1, T, V) with some features held at given values at every position; to be traced."""
  _, sites = subject.apply({"params": params}, tokens_1T)
  x_NM = side_by_side(sites, dictionary.reads)
  f_NF = dictionary.model.apply({"params": sae_params}, x_NM, method="encode")
  change_NJ = value_J[None] - f_NF[:, feature_J]
  change_NO = dictionary.model.apply({"params": sae_params}, change_NJ, feature_J, x_NM, method="change")
  y_NO = side_by_side(sites, dictionary.writes) + change_NO
  return _with_written(subject, dictionary, params, tokens_1T, y_NO)


def _with_written(subject, dictionary, params, tokens_1T, y_NO):
  """Logits of the subject with the rows `y_NO` in the place of the sites that the dictionary writes."""
  edit, first = {}, 0
  for site in dictionary.writes:
    width = subject.site_widths[site]
    part = y_NO[:, first:first + width].reshape(*tokens_1T.shape, width)
    edit[site] = lambda x, part=part: part.astype(x.dtype)
    first += width
  return subject.apply({"params": params}, tokens_1T, edit)[0]


@functools.lru_cache(maxsize=8)
def _compiled_losses(subject: Subject, dictionary: Wired):
  @jax.jit
  def losses(params, sae_params, tokens_1T, feature_J, value_J, mean_O):
    """Next-token losses (T - 1,): of the subject, spliced, with the sites' mean in their place, and steered."""
    loss = lambda logits_1TV: next_token_loss(logits_1TV[:, :-1], tokens_1T[:, 1:])[0]
    mean_NO = jnp.broadcast_to(mean_O[None], (tokens_1T.size, len(mean_O)))
    return {"clean": loss(subject.apply({"params": params}, tokens_1T)[0]),
            "spliced": loss(spliced_logits(subject, dictionary, params, sae_params, tokens_1T)),
            "ablated": loss(_with_written(subject, dictionary, params, tokens_1T, mean_NO)),
            "steered": loss(steered_logits(subject, dictionary, params, sae_params, tokens_1T, feature_J, value_J))}
  return losses


def losses(subject: LoadedSubject, sae: SAE, mean_O: np.ndarray, ids: list[int],
           values: dict[int, float] | None = None) -> dict[str, np.ndarray]:
  """The loss of each next token of a text, in nats, under several interventions.

  Args:
    subject, sae: the subject and its dictionary.
    mean_O: the mean activation of the sites written, side by side.
    ids: token ids of the text, at least two; at most the subject's context.
    values: {feature: the value that it is held at} for "steered"; with 0 a feature is removed.

  Returns:
    {"clean", "spliced", "ablated", "steered"}: arrays of shape (T - 1,); entry i is the loss of token i + 1. "Ablated"
    has the sites' mean in their place.
  """
  feature_J, value_J = as_arrays(values or {})
  run = _compiled_losses(subject.model, wired(sae))
  found = run(subject.params, sae.params, np.asarray([ids], np.int32), feature_J, value_J,
              jnp.asarray(mean_O, jnp.float32))
  return {name: np.asarray(loss_T) for name, loss_T in found.items()}


def as_arrays(values: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
  """(features, values) as arrays."""
  return np.fromiter(values, np.int32, len(values)), np.fromiter(values.values(), np.float32, len(values))


def steer(subject: LoadedSubject, sae: SAE, prompt: list[int], values: dict[int, float], n_tokens: int, seed: int = 0,
          temperature: float = 0.8) -> list[int]:
  """Continues a prompt with some features held at given values at every position.

  Args:
    subject, sae: the subject and its dictionary.
    prompt: token ids, at least one.
    values: {feature: the value that it is held at}.
    n_tokens: how many tokens to add; fewer where the subject's context is full.
    seed: of the draw of tokens.
    temperature: the logits are divided by it.

  Returns:
    Token ids of the prompt and its continuation.
  """
  feature_J, value_J = as_arrays(values)
  return sample(subject, prompt, n_tokens, jax.random.key(seed), temperature, _steering(wired(sae)),
                (sae.params, feature_J, value_J))


@functools.lru_cache(maxsize=8)
def _steering(dictionary: Wired):
  """The function that gives `sample` the next token's logits."""
  def logits_of(subject, params, tokens_1T, given):
    sae_params, feature_J, value_J = given
    return steered_logits(subject, dictionary, params, sae_params, tokens_1T, feature_J, value_J)
  return logits_of
