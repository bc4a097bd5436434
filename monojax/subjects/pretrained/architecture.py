"""What a pretrained transformer looks like: the switches of the one model that all families share.

Letters: A width of an attention head, D width of the residual stream.
"""

import dataclasses
import math

import numpy as np

from monojax.config import require


@dataclasses.dataclass(frozen=True)
class Rotary:
  """Rotary position embedding (arXiv 2104.09864) of one kind of layer, and how it is stretched to longer contexts.

  Attributes:
    base: the base of the frequencies, theta.
    fraction: the part of a head that is rotated.
    scaling: "default" for none; "linear", "dynamic", "yarn", "longrope" or "llama3", as `transformers` names them.
    factor: how many times longer contexts are meant to be.
    original_context: the context before it was stretched.
    low_frequency, high_frequency: of "llama3": wavelengths longer than original_context / low_frequency are stretched,
      those shorter than original_context / high_frequency are not.
    beta_fast, beta_slow: of "yarn": rotations within the original context at which stretching begins and is complete.
    truncate: of "yarn": whether these two ends are rounded to whole dimensions.
    attention_factor: what queries and keys are multiplied by; None for the scaling's own formula.
    short_divisors, long_divisors: of "longrope": what each frequency is divided by, in contexts up to the original one
      and in longer ones. Of GGUF files with a table of divisors: both are that table.
  """
  base: float = 10_000.0
  fraction: float = 1.0
  scaling: str = "default"
  factor: float = 1.0
  original_context: int = 0
  low_frequency: float = 1.0
  high_frequency: float = 4.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True
  attention_factor: float | None = None
  short_divisors: tuple[float, ...] = ()
  long_divisors: tuple[float, ...] = ()

  def require_usable(self, head_width: int) -> None:
    """Raises `InputError` if these are no settings for heads of that width."""
    numbers = {"rope_theta": self.base, "partial_rotary_factor": self.fraction, "factor": self.factor,
               "low_freq_factor": self.low_frequency, "beta_slow": self.beta_slow}
    for name, value in numbers.items():
      require(0 < value < math.inf, f"config.json: {name}", value, "must be a positive number")
    require(self.fraction <= 1, "config.json: partial_rotary_factor", self.fraction, "must be a part of a head")
    require(self.scaling != "llama3" or self.low_frequency < self.high_frequency, "config.json: high_freq_factor",
            self.high_frequency, f"must be larger than low_freq_factor={self.low_frequency:g}")
    require(self.scaling not in ("dynamic", "yarn", "llama3") or self.original_context > 0,
            "config.json: original_max_position_embeddings", self.original_context, "must be a positive number")
    n_pairs = int(head_width * self.fraction) // 2
    for divisors in (self.short_divisors, self.long_divisors) if self.scaling == "longrope" else ():
      require(len(divisors) == n_pairs and all(type(x) in (int, float) and 0 < x < math.inf for x in divisors),
              "config.json: short_factor and long_factor", len(divisors), f"must be {n_pairs} positive numbers each")

  @property
  def depends_on_length(self) -> bool:
    """Whether `frequencies` depend on how many positions are read."""
    return self.scaling == "dynamic" or self.scaling == "longrope" and self.short_divisors != self.long_divisors

  def frequencies(self, head_width: int, n_positions: int) -> tuple[np.ndarray, float]:
    """The angle that each pair of dimensions turns by from one position to the next, and a factor on queries and keys.

    Args:
      head_width: A.
      n_positions: how many positions are read, which "dynamic" and "longrope" depend on.

    Returns:
      (float32 frequencies, one for each pair of the dimensions that are rotated; the factor).
    """
    width = int(head_width * self.fraction)
    exponent = np.arange(0, width, 2, dtype=np.float32) / width
    plain = (1.0 / np.float32(self.base) ** exponent).astype(np.float32)
    stretched = {"default": lambda: (plain, 1.0), "linear": lambda: (plain / np.float32(self.factor), 1.0),
                 "dynamic": lambda: (self._dynamic(exponent, width, n_positions), 1.0),
                 "yarn": lambda: self._yarn(plain, width), "longrope": lambda: self._longrope(plain, n_positions),
                 "llama3": lambda: (self._llama3(plain), 1.0)}
    found, factor = stretched[self.scaling]()
    return found.astype(np.float32), factor if self.attention_factor is None else self.attention_factor

  def _dynamic(self, exponent: np.ndarray, width: int, n_positions: int) -> np.ndarray:
    """A larger base for contexts beyond the original one (NTK-aware scaling)."""
    length = max(n_positions, self.original_context)
    grown = self.factor * length / self.original_context - (self.factor - 1)
    return 1.0 / np.float32(self.base * grown ** (width / (width - 2))) ** exponent

  def _llama3(self, plain: np.ndarray) -> np.ndarray:
    """Long wavelengths are stretched, short ones are not, and those between in part."""
    wavelength = 2 * np.pi / plain
    share = (self.original_context / wavelength - self.low_frequency) / (self.high_frequency - self.low_frequency)
    share = np.clip(share, 0.0, 1.0)
    return (1 - share) * plain / self.factor + share * plain

  def _yarn(self, plain: np.ndarray, width: int) -> tuple[np.ndarray, float]:
    """Dimensions that turn seldom within the original context are stretched (arXiv 2309.00071)."""
    turns_at = lambda turns: (width * math.log(self.original_context / (turns * 2 * math.pi))
                              / (2 * math.log(self.base)))
    low, high = turns_at(self.beta_fast), turns_at(self.beta_slow)
    if self.truncate:
      low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    share = np.clip((np.arange(width // 2, dtype=np.float32) - low) / max(high - low, 1e-3), 0, 1)
    found = plain / self.factor * share + plain * (1 - share)
    return found, 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

  def _longrope(self, plain: np.ndarray, n_positions: int) -> tuple[np.ndarray, float]:
    """Each frequency has a divisor of its own (arXiv 2402.13753)."""
    long = self.original_context and n_positions > self.original_context
    divisors = np.asarray(self.long_divisors if long else self.short_divisors, np.float32)
    factor = 1.0
    if self.factor > 1 and self.original_context > 1:
      factor = math.sqrt(1 + math.log(self.factor) / math.log(self.original_context))
    return plain / divisors, factor


@dataclasses.dataclass(frozen=True)
class Architecture:
  """The switches of a transformer, which its configuration file sets.

  A block reads the residual stream x: with norms before (`norm_first`) it is x += attention(norm x);
  x += mlp(norm x); otherwise x = norm(x + attention x); x = norm(x + mlp x), as in BERT.

  Attributes:
    family: the name of the family in `families.FAMILIES`.
    n_layers, d_model, d_mlp: number of layers, D, and the width of the MLP's hidden layer.
    n_heads, n_key_heads, head_width: heads of queries; heads of keys and values, each of which serves as many queries;
      and A.
    vocab_size, max_context: number of tokens, and of positions that the model was made for.
    norm: "layer" or "rms"; norm_epsilon is added to the variance; with norm_offset the gain is 1 + the weight.
    norm_first, post_norms: see above; post_norms also norms what attention and MLP add (Gemma).
    norm_embedding: whether the embedding is normed; n_types: kinds of sentence that it tells apart, of which the first
      is used here (BERT).
    parallel: whether attention and MLP both read the stream before the layer (GPT-NeoX).
    activation: "silu", "gelu" (exact), "gelu_tanh" or "relu".
    gated: whether the MLP is act(gate x) * up x.
    qkv_bias, out_bias, mlp_bias: which maps have biases.
    qk_norm: whether queries and keys are normed head by head.
    score_scale: what attention's scores are multiplied by.
    score_cap, logit_cap: c of c tanh(s / c) on scores and logits; 0 for none.
    learned_positions: whether positions are an embedding; otherwise they are rotary.
    rotary: of layers that see everything; local_rotary: of those with a window.
    window: how many keys a layer with a window sees, its own position included; local_layers: which have one.
    embedding_scale: what the embedding is multiplied by.
    tied: whether the unembedding is the embedding.
    causal: whether a position sees only those before it.
    pad_id: the token that no position attends to, in models that are not causal; -1 for none.
  """
  family: str
  n_layers: int
  d_model: int
  d_mlp: int
  n_heads: int
  n_key_heads: int
  head_width: int
  vocab_size: int
  max_context: int
  norm: str = "rms"
  norm_epsilon: float = 1e-6
  norm_offset: bool = False
  norm_first: bool = True
  post_norms: bool = False
  norm_embedding: bool = False
  n_types: int = 0
  parallel: bool = False
  activation: str = "silu"
  gated: bool = True
  qkv_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False
  score_scale: float = 0.0
  score_cap: float = 0.0
  logit_cap: float = 0.0
  learned_positions: bool = False
  rotary: Rotary = Rotary()
  local_rotary: Rotary = Rotary()
  window: int = 0
  local_layers: tuple[bool, ...] = ()
  embedding_scale: float = 1.0
  tied: bool = False
  causal: bool = True
  pad_id: int = -1

  def __post_init__(self) -> None:
    for name in ("n_layers", "d_model", "d_mlp", "n_heads", "n_key_heads", "head_width", "vocab_size", "max_context"):
      value = getattr(self, name)
      require(type(value) is int and value > 0, f"config.json: {name}", value, "must be a positive whole number")
    for name in ("norm_epsilon", "score_scale", "score_cap", "logit_cap", "embedding_scale", "window", "n_types"):
      value = getattr(self, name)
      require(type(value) in (int, float) and 0 <= value < math.inf, f"config.json: {name}", value,
              "must be a number, and not negative")
    require(type(self.pad_id) is int, "config.json: pad_token_id", self.pad_id, "must be a token's id")
    for rotary in (self.rotary, self.local_rotary):
      rotary.require_usable(self.head_width)
    require(self.n_heads % self.n_key_heads == 0, "config.json: key and value heads", self.n_key_heads,
            f"must divide the {self.n_heads} heads of queries")
    require(self.activation in ("silu", "gelu", "gelu_tanh", "relu"), "config.json: activation", self.activation,
            "is not known here: silu, gelu, gelu_tanh and relu are")
    require(not self.local_layers or len(self.local_layers) == self.n_layers, "config.json: layer_types",
            len(self.local_layers), f"must name the kind of each of the {self.n_layers} layers")

  @property
  def group(self) -> int:
    """How many heads of queries share a head of keys."""
    return self.n_heads // self.n_key_heads

  @property
  def site_widths(self) -> dict[str, int]:
    """{site: width}, in the order in which the forward pass computes them."""
    d, m, e = self.d_model, self.d_mlp, self.n_heads * self.head_width
    raw = ("attn.out_raw",) if self.post_norms else ()
    names = ["attn.in", "attn.z", *raw, "attn.out", *(() if self.parallel else ("mid",)), "mlp.in", "mlp.hidden",
             *(name.replace("attn", "mlp") for name in raw), "mlp.out", "resid"]
    widths = {"attn.z": e, "mlp.hidden": m}
    blocks = {f"layer.{i}.{name}": widths.get(name, d) for i in range(self.n_layers) for name in names}
    return {"embed": d, **blocks, "final.in": d}
