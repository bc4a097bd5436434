"""What an analysis found out about a dictionary's features: plain arrays, saved and loaded whole.

Letters: F features, H histogram bins, K listed logits, N listed neurons, D domains, E examples a
feature, W tokens in an example's window.
"""

import dataclasses
import pathlib

import numpy as np

from monojax import files

# The groups of examples on a feature's page, in order, and how many examples each holds: the paper's
# published pages (Towards Monosemanticity, "Feature Activation Distributions").
EXAMPLE_GROUPS = (("Top activations", 20),
                  *((f"Interval {i}", 5) for i in range(11)),
                  ("Bottom activations", 20))
N_EXAMPLES = sum(size for _, size in EXAMPLE_GROUPS)

ALIVE, ULTRALOW, DEAD = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class FeatureTables:
  """Everything the browser shows and a notebook would want.

  Attributes:
    status_F: int8, `ALIVE`, `ULTRALOW` (density below the configured bound) or `DEAD` (never fired).
    density_F: float32, the fraction of the analysed tokens on which the feature fires.
    n_fires_F: int64, that as a count.
    max_act_F: float32, the largest activation seen; 0 where dead.
    mean_act_F: float32, mean activation where it fires; 0 where dead.
    encoder_bias_F: float32, `b_enc` with the pre-encoder bias as trained.
    encoder_decoder_cosine_F: float32.
    act_counts_FH: int32, histogram of the non-zero activations, H equal bins over (0, max_act_F].
    logit_counts_FH: int32, histogram of the logit weights, H equal bins over logit_range_F2.
    logit_range_F2: float32, smallest and largest logit weight.
    top_logit_ids_FK, top_logit_values_FK: int32 token ids and float32 weights, largest first.
    bottom_logit_ids_FK, bottom_logit_values_FK: likewise, smallest first.
    top_neuron_ids_FN, top_neuron_weights_FN: the neurons with the largest absolute decoder weight,
      and the signed weights.
    top_neuron_l1_share_FN: float32, |weight| over the decoder row's L1 norm.
    domain_share_FD: float32, the share of the feature's total activation in each domain; rows of
      features that fired sum to 1. D may be 0 where the text has no labels.
    example_tokens_FEW: int32 token ids, -1 where the window leaves its context or there is no example.
    example_acts_FEW: float32, the feature's activation on those tokens.
    example_domain_FE: int32 index into `domains`, -1 where unknown or no example.
    example_document_FE: int64 number of the document, -1 where there is no example.
    token_strings: a string for each token id; bytes that are not whole characters read like `\\xd8`.
    domains: the D names.
    summary: JSON-able dict for the page about the run: see `monojax.analysis.analyze`.
  """
  status_F: np.ndarray
  density_F: np.ndarray
  n_fires_F: np.ndarray
  max_act_F: np.ndarray
  mean_act_F: np.ndarray
  encoder_bias_F: np.ndarray
  encoder_decoder_cosine_F: np.ndarray
  act_counts_FH: np.ndarray
  logit_counts_FH: np.ndarray
  logit_range_F2: np.ndarray
  top_logit_ids_FK: np.ndarray
  top_logit_values_FK: np.ndarray
  bottom_logit_ids_FK: np.ndarray
  bottom_logit_values_FK: np.ndarray
  top_neuron_ids_FN: np.ndarray
  top_neuron_weights_FN: np.ndarray
  top_neuron_l1_share_FN: np.ndarray
  domain_share_FD: np.ndarray
  example_tokens_FEW: np.ndarray
  example_acts_FEW: np.ndarray
  example_domain_FE: np.ndarray
  example_document_FE: np.ndarray
  token_strings: list
  domains: list
  summary: dict

  def save(self, directory):
    """Writes `features.npz` and `features.json` into `directory`, each whole or not at all."""
    directory = pathlib.Path(directory)
    values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    files.write_npz(directory / "features.npz", arrays)
    files.write_json(directory / "features.json",
                     {name: value for name, value in values.items() if name not in arrays})

  @classmethod
  def load(cls, directory):
    """Reads what `save` wrote."""
    directory = pathlib.Path(directory)
    return cls(**files.read_npz(directory / "features.npz"),
               **files.read_json(directory / "features.json"))
