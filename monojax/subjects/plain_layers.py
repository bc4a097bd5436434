"""A subject that monojax has trained as plain arrays, for programs that run it without jax, such as a page.

Letters: D width of the residual stream, M width of the MLP, V tokens of the vocabulary.
"""

import typing

import numpy as np

from monojax.subjects.subject import LoadedSubject
from monojax.subjects.transformer import NORM_EPSILON, Transformer


class PlainLayers(typing.NamedTuple):
  """A decoder-only transformer with rotary positions (half-rotation, base 10,000), LayerNorms and ReLU MLPs.

  Attributes:
    n_layers, n_heads: of these there are so many.
    epsilon: what a LayerNorm adds to the variance.
    arrays: float32. "embed" (V, D), "unembed" (D, V), "final.gain" and "final.bias" (D,); and for layer L, by
      "layer.L.NAME": attn.gain, attn.bias, mlp.gain, mlp.bias and out_bias (D,), qkv (D, 3 D) with the heads side by
      side in each third, o (D, D), in (D, M), in_bias (M,), out (M, D).
  """
  n_layers: int
  n_heads: int
  epsilon: float
  arrays: dict[str, np.ndarray]


_NAMES = {"gain_attn_D": "attn.gain", "bias_attn_D": "attn.bias", "W_qkv_DE": "qkv", "W_o_ED": "o",
          "gain_mlp_D": "mlp.gain", "bias_mlp_D": "mlp.bias", "W_in_DM": "in", "b_in_M": "in_bias",
          "W_out_MD": "out", "b_out_D": "out_bias"}


def plain_layers(subject: LoadedSubject) -> PlainLayers | None:
  """The layers of a subject of monojax's own; None for a pretrained one."""
  if not isinstance(subject.model, Transformer):
    return None
  config, params = subject.model.config, subject.params
  array = lambda x: np.asarray(x, np.float32)
  arrays = {"embed": array(params["W_embed_VD"]), "unembed": array(params["W_unembed_DV"]),
            "final.gain": array(params["gain_D"]), "final.bias": array(params["bias_D"])}
  for i in range(config.n_layers):
    arrays |= {f"layer.{i}.{plain}": array(params[f"layer_{i}"][name]) for name, plain in _NAMES.items()}
  return PlainLayers(config.n_layers, config.n_heads, NORM_EPSILON, arrays)
