"""The whole analysis of one dictionary's features: densities, examples, logit weights, detectors."""

import jax
import jax.numpy as jnp
import numpy as np

from monojax.analysis import codes as sparse_codes
from monojax.analysis import detectors, tables
from monojax.analysis.examples import example_tables
from monojax.analysis.fidelity import make_encode
from monojax.analysis.logits import logit_weights


def analyze(config, run, train_tokens, val_tokens):
  """Everything there is to say about a dictionary.

  Args:
    config: `AnalysisConfig`.
    run: has `subject, subject_params, sae, sae_params, reads, site, tokenizer` (see `monojax.load`).
    train_tokens, val_tokens: `Tokens` of either split.

  Returns:
    `FeatureTables`, whose `summary` holds `figures` (flat floats), `density_histogram`
    (`log10_edges`, `counts`), `detectors` (rows of `detectors.compare`) and `n_tokens`.
  """
  encode_both = make_encode(run.subject, run.sae, run.reads)
  encode = lambda tokens_BT: encode_both(run.subject_params, run.sae_params, tokens_BT)[0]
  neurons = lambda tokens_BT: encode_both(run.subject_params, run.sae_params, tokens_BT)[1]
  width = run.subject.config.n_context

  def collect(function, tokens, n_tokens, description):
    chosen = tokens.choose(width, n_tokens, config.seed)
    return sparse_codes.collect(function, tokens, chosen, width, config.batch_contexts, description)

  features_per_token, neurons_per_token = _activations_per_token(config, run, encode_both, train_tokens)
  available = train_tokens.n_tokens
  n_tokens = sparse_codes.tokens_that_fit(min(config.n_tokens or available, available), features_per_token)
  codes = collect(encode, train_tokens, n_tokens, "features")
  columns = example_tables(codes, train_tokens, train_tokens.domains, config.seed)
  density_F = columns["density_F"]
  status_F = np.where(density_F == 0, tables.DEAD, np.where(density_F < config.ultralow_density,
                                                            tables.ULTRALOW, tables.ALIVE)).astype(np.int8)
  n_tokens = sparse_codes.tokens_that_fit(min(config.n_detector_tokens or available, available),
                                          max(features_per_token, neurons_per_token))
  detector_rows = _detectors(config, collect, n_tokens, encode, neurons, train_tokens, val_tokens)
  columns |= weight_tables(run, train_tokens, val_tokens, config)
  figures = {**density_figures(status_F, density_F), "analysed_tokens": codes.n_rows}
  if detector_rows:
    figures["detectors_won"] = sum(row["feature_f1"] > row["neuron_f1"] for row in detector_rows)
    figures["detectors_tried"] = len(detector_rows)
  summary = {"figures": figures, "density_histogram": density_histogram(density_F),
             "detectors": detector_rows, "n_tokens": codes.n_rows}
  return tables.FeatureTables({"status_F": status_F, **columns}, token_strings=run.tokenizer.token_strings(),
                              domains=list(train_tokens.domains), summary=summary)


def _activations_per_token(config, run, encode_both, tokens):
  """Non-zero (features, neurons) on a token, on average over one batch of random contexts."""
  width = run.subject.config.n_context
  chosen = tokens.choose(width, config.batch_contexts * width, config.seed)
  tokens_BT = tokens.context(np.resize(chosen, config.batch_contexts), width)
  both = encode_both(run.subject_params, run.sae_params, tokens_BT)
  return [float((x_NJ != 0).sum() / len(x_NJ)) for x_NJ in both]


def _detectors(config, collect, n_tokens, encode, neurons, train_tokens, val_tokens):
  """Rows of `detectors.compare`; none where the text has no domain labels."""
  classes = detectors.classes_of(config.detectors, train_tokens.domains)
  if not classes:
    return []
  pairs = []
  for name, function in (("features", encode), ("neurons", neurons)):
    pairs.append(tuple(collect(function, tokens, n_tokens, f"{name}, {tokens.split}")
                       for tokens in (train_tokens, val_tokens)))
  domain_N = [tokens.position_domain(codes.position_N)
              for tokens, codes in zip((train_tokens, val_tokens), pairs[0], strict=True)]
  return detectors.compare(*pairs, *domain_N, classes)


def density_figures(status_F, density_F):
  """Fractions of features that are alive (fired at all), ultralow and dead, and counts of dense ones."""
  return {
      "alive_fraction": float(np.mean(status_F != tables.DEAD)),
      "ultralow_fraction": float(np.mean(status_F == tables.ULTRALOW)),
      "dead_fraction": float(np.mean(status_F == tables.DEAD)),
      "n_features": len(status_F),
      "features_above_1_percent": int(np.sum(density_F > 0.01)),
      "median_density": float(np.median(density_F[density_F > 0])) if density_F.any() else 0.0,
  }


def density_histogram(density_F):
  """Histogram of log10 density in quarter decades, dead features left out."""
  edges = np.arange(-8.0, 0.01, 0.25)
  return {"log10_edges": edges.tolist(),
          "counts": np.histogram(np.log10(density_F[density_F > 0]), edges)[0].tolist()}


def weight_tables(run, train_tokens, val_tokens, config):
  """The fields of `FeatureTables` that are read off the weights: logits, top neurons, biases."""
  sae, subject = run.sae_params, run.subject_params
  W_dec_FO, W_enc_MF = np.asarray(sae["W_dec_FO"]), np.asarray(sae["W_enc_MF"])
  W_out_MD = np.eye(W_dec_FO.shape[1], dtype=np.float32)  # what a feature adds to the residual stream
  if run.site.endswith("mlp.hidden"):
    W_out_MD = np.asarray(subject[f"layer_{run.site.split('.')[1]}"]["W_out_MD"])
  counts_V = np.zeros(run.subject.config.vocab_size, np.int64)  # at least the tokenizer's
  for first in range(0, train_tokens.n_tokens, 1 << 24):
    counts_V += np.bincount(train_tokens.tokens_N[first:first + (1 << 24)], minlength=len(counts_V))
  columns = logit_weights(W_dec_FO, W_out_MD, subject["gain_D"], residual_std(run, val_tokens, config),
                          subject["W_unembed_DV"], counts_V >= min(config.min_token_count, counts_V.max()))
  top_FN = np.argsort(-np.abs(W_dec_FO), axis=1, kind="stable")[:, :3]
  weights_FN = np.take_along_axis(W_dec_FO, top_FN, axis=1)
  norm_F = np.linalg.norm(W_enc_MF, axis=0) * np.linalg.norm(W_dec_FO, axis=1)
  return columns | {
      "encoder_bias_F": np.asarray(sae["b_enc_F"]),
      "encoder_decoder_cosine_F": (W_enc_MF * W_dec_FO.T).sum(0) / np.maximum(norm_F, 1e-12),
      "top_neuron_ids_FN": top_FN.astype(np.int32), "top_neuron_weights_FN": weights_FN,
      "top_neuron_l1_share_FN": np.abs(weights_FN) / np.abs(W_dec_FO).sum(1, keepdims=True),
  }


def residual_std(run, tokens, config):
  """Standard deviation of the last residual stream over its width, averaged over held-out tokens."""
  last = f"layer.{run.subject.config.n_layers - 1}.resid"

  @jax.jit
  def stds(params, tokens_BT):
    _, sites = run.subject.apply({"params": params}, tokens_BT)
    return jnp.std(sites[last].astype(jnp.float32), axis=-1).mean()

  width = run.subject.config.n_context
  chosen = tokens.choose(width, 65_536, config.seed)
  batches = np.array_split(chosen, max(1, len(chosen) // config.batch_contexts))
  return float(np.mean([stds(run.subject_params, tokens.context(batch_B, width)) for batch_B in batches]))
