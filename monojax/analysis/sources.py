"""Where each feature comes from in its strongest example: the tokens that its pre-activation is a sum of.

It is `Circuit.sources` of `monojax.analysis.circuits` for one example of every feature, by way of all heads together:
exact where what lies between is linear, otherwise a first-order estimate.

Letters: F features, B of them at a time, S listed tokens, T positions of a context, M width read, V vocabulary.
"""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from monojax import metrics
from monojax.analysis.circuits import heads_before
from monojax.analysis.config import AnalysisConfig
from monojax.analysis.interventions import Wired, wired
from monojax.analysis.status import variance_share
from monojax.subjects.subject import Subject

if typing.TYPE_CHECKING:
  from monojax.analysis.effects import Seen

N_SOURCES = 8
_PASSES = 3  # a forward pass and one backwards, which counts twice


def source_columns(config: AnalysisConfig, seen: "Seen", position_F: np.ndarray) -> dict[str, np.ndarray]:
  """The feature columns of sources; `monojax.analysis.columns` says what each is.

  Args:
    config: its `effects` also says which features get sources: all, none, or with "auto" those that carry most of the
      reconstructions, as many as `effect_teraflops` allows.
    seen: the text and its features.
    position_F: the positions of the features' strongest examples in the text, -1 for none.

  Returns:
    {column: array with a row for each feature}; nothing where no features get sources, where the subject is an encoder,
    and where no attention stands before the dictionary.
  """
  subject, sae = seen.subject, seen.sae
  layer, _, base = heads_before(subject.model, sae.reads)
  if config.effects == "none" or subject.model.output != "logits" or layer is None:
    return {}
  row_F, n_context = seen.text.rows_at(position_F), subject.n_context
  order = np.argsort(-variance_share(seen.codes, sae.direction_FO), kind="stable")
  chosen = order[row_F[order] >= 0]
  if config.effects == "auto":
    n_vocab = subject.model.n_vocab
    weights = sum(leaf.size for leaf in jax.tree.leaves(subject.params) if n_vocab not in leaf.shape)
    chosen = chosen[:int(config.effect_teraflops * 1e12 / (2 * _PASSES * n_context * weights))]
  ids_FS = np.full((sae.n_features, N_SOURCES), -1, np.int32)
  back_FS, weight_FS = np.zeros_like(ids_FS), np.zeros((sae.n_features, N_SOURCES), np.float32)
  whole_F = np.full(sae.n_features, np.nan, np.float32)
  run, size = _make_sources(subject.model, wired(sae, seen.kept), base), config.batch_contexts
  with metrics.progress(len(chosen), "features", "sources") as bar:
    for first in range(0, len(chosen), size):
      feature_J = chosen[first:first + size]
      feature_B = np.resize(feature_J, size)
      start_B, at_B = np.divmod(row_F[feature_B], n_context)
      tokens_BT = seen.text.token_N[start_B[:, None] * n_context + np.arange(n_context)[None]]
      found = run(subject.params, sae.params, tokens_BT, at_B, feature_B)
      whole_J, weight_JT = (np.asarray(part)[:len(feature_J)] for part in found)
      listed_JS = np.argsort(-np.abs(weight_JT), axis=1, kind="stable")[:, :N_SOURCES]
      there_JS = listed_JS <= at_B[:len(feature_J), None]
      n = listed_JS.shape[1]
      take = lambda x_JT: np.take_along_axis(x_JT[:len(feature_J)], listed_JS, axis=1)
      ids_FS[feature_J, :n] = np.where(there_JS, take(tokens_BT), -1)
      back_FS[feature_J, :n] = np.where(there_JS, at_B[:len(feature_J), None] - listed_JS, 0)
      weight_FS[feature_J, :n] = np.where(there_JS, take(weight_JT), 0)
      whole_F[feature_J] = whole_J
      bar.update(len(feature_J))
  return {"source_ids_FS": ids_FS, "source_back_FS": back_FS, "source_weights_FS": weight_FS,
          "source_whole_F": whole_F}


@functools.lru_cache(maxsize=8)
def _make_sources(subject: Subject, dictionary: Wired, base: str) -> typing.Callable:
  """The compiled function (params, sae_params, tokens_BT, at_B, feature_B) -> (pre-activations_B, weights_BT)."""
  frozen = subject.frozen()

  @jax.jit
  def run(params, sae_params, tokens_BT, at_B, feature_B):
    base_BTD = subject.apply({"params": params}, tokens_BT, wanted=(base,))[1][base]

    def pre_activations(base_BTD):
      _, sites = frozen.apply({"params": params}, tokens_BT, {base: lambda x: base_BTD}, wanted=dictionary.reads)
      x_BTM = jnp.concatenate([sites[name] for name in dictionary.reads], axis=-1).astype(jnp.float32)
      x_BM = jnp.take_along_axis(x_BTM, at_B[:, None, None], axis=1)[:, 0]
      h_BF = dictionary.model.apply({"params": sae_params}, x_BM, method="pre_activations")
      h_B = jnp.take_along_axis(h_BF, feature_B[:, None], axis=1)[:, 0]
      return h_B.sum(), h_B  # no context changes what another one computes
    (_, h_B), gradient_BTD = jax.value_and_grad(pre_activations, has_aux=True)(base_BTD)
    return h_B, (gradient_BTD.astype(jnp.float32) * base_BTD.astype(jnp.float32)).sum(-1)
  return run
