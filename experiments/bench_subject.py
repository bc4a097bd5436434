"""Times the subject's training step against the same model written in PyTorch, in one run.

Both train the same architecture on the same tokens in float32: rotary attention (PyTorch's fused
scaled_dot_product_attention), ReLU MLP, cross-entropy, clipping, AdamW (PyTorch's fused one). The default
shapes are those of the demo preset. Without PyTorch installed (pip install 'monojax[bench]') only monojax's
own figures are printed.

  python experiments/bench_subject.py --quick --out=/tmp/bench_subject.json
"""

from absl import flags

from monojax import benchmark, cli

_BATCH = flags.DEFINE_integer("batch_contexts", 16, "contexts in a step")
_CONTEXT = flags.DEFINE_integer("n_context", 128, "positions in a context")
_VOCAB = flags.DEFINE_integer("vocab_size", 8192, "tokens in the vocabulary")
_ROUNDS = flags.DEFINE_integer("rounds", 20, "timed rounds")
_QUICK = flags.DEFINE_boolean("quick", False, "fewer rounds: under 50 seconds on two cores")
_OUT = flags.DEFINE_string("out", "", "also write the figures to this JSON file")
_SCAN = 4  # steps in one timed call, as in training


def main():
  import numpy as np

  config = _config()
  tokens_SBU = np.random.default_rng(0).integers(
      0, _VOCAB.value, (_SCAN, _BATCH.value, _CONTEXT.value + 1)).astype(np.int32)
  functions = {"monojax": _monojax_step(config, tokens_SBU), "matmul": _matmul()}
  try:
    functions["pytorch"] = _pytorch_step(config, tokens_SBU)
  except ImportError:
    print("PyTorch is not installed: no comparison (pip install 'monojax[bench]')")
  seconds = benchmark.interleaved(functions, 6 if _QUICK.value else _ROUNDS.value,
                                  pause_seconds=0.3)
  n_tokens = _SCAN * _BATCH.value * _CONTEXT.value
  gflops = 2 * 1024 ** 3 / 1e9 / min(seconds["matmul"])
  rate = n_tokens / min(seconds["monojax"])
  figures = {
      "monojax/tokens_per_s": rate,
      "limit/matmul_gflops": gflops,
      "monojax/fraction_of_matmul_rate": rate * _flop_per_token(config.model, config.n_context) / 1e9 / gflops,
  }
  if "pytorch" in functions:
    figures["peer/pytorch/tokens_per_s"] = n_tokens / min(seconds["pytorch"])
    figures["monojax/ratio_to_pytorch"] = benchmark.median_ratio(seconds["pytorch"], seconds["monojax"])
  benchmark.report(figures, _OUT.value)


def _config():
  from monojax.subjects.config import SubjectConfig, TransformerConfig
  return SubjectConfig(model=TransformerConfig(vocab_size=_VOCAB.value), n_context=_CONTEXT.value,
                       n_steps=10_000, batch_contexts=_BATCH.value, compute_dtype="float32")


def _flop_per_token(model, n_context):
  """Multiply-adds of the matrix products, forward and backward, times two; causal half of attention."""
  block = 4 * model.d_model ** 2 + 2 * model.d_model * model.d_mlp + model.d_model * n_context
  return 6 * (model.n_layers * block + model.d_model * model.vocab_size)


def _matmul():
  import jax
  import jax.numpy as jnp
  a = jnp.ones((1024, 1024))
  product = jax.jit(lambda a: a @ a)
  return lambda: jax.block_until_ready(product(a))


def _monojax_step(config, tokens_SBU):
  import jax

  from monojax import mesh as meshes
  from monojax.subjects import train
  from monojax.subjects.transformer import Transformer
  mesh = meshes.make_mesh(meshes.MeshConfig(data=1))
  init, step = train.make_step(Transformer(config.model), train.make_optimizer(config), mesh)
  state = [init(jax.random.key(0))]

  def call():
    state[0], values = step(state[0], tokens_SBU)
    jax.block_until_ready(values)
  return call


def _pytorch_step(config, tokens_SBU):
  """The same model and optimiser in PyTorch."""
  import torch
  from torch import nn
  from torch.nn import functional

  c = config.model
  width = c.d_model // c.n_heads
  frequency = 10_000.0 ** (-torch.arange(0, width, 2) / width)
  angle = torch.arange(config.n_context)[:, None] * frequency[None]
  cos, sin = angle.cos(), angle.sin()

  def rotate(x):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

  class Subject(nn.Module):
    def __init__(self):
      super().__init__()
      self.embed = nn.Embedding(c.vocab_size, c.d_model)
      self.norm_attn, self.norm_mlp, self.norm = (nn.LayerNorm(c.d_model) for _ in range(3))
      self.qkv, self.o = nn.Linear(c.d_model, 3 * c.d_model, False), nn.Linear(c.d_model, c.d_model, False)
      self.w_in, self.w_out = nn.Linear(c.d_model, c.d_mlp), nn.Linear(c.d_mlp, c.d_model)
      self.unembed = nn.Linear(c.d_model, c.vocab_size, False)

    def forward(self, tokens):
      x = self.embed(tokens)
      shape = (*tokens.shape, 3, c.n_heads, width)
      q, k, v = self.qkv(self.norm_attn(x)).view(shape).permute(2, 0, 3, 1, 4)
      mixed = functional.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
      x = x + self.o(mixed.transpose(1, 2).reshape(x.shape))
      x = x + self.w_out(functional.relu(self.w_in(self.norm_mlp(x))))
      return self.unembed(self.norm(x))

  model = Subject()
  optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, (0.9, config.beta2),
                                weight_decay=config.weight_decay, fused=True)
  batches = torch.from_numpy(tokens_SBU).long()

  def call():
    for tokens in batches:
      optimizer.zero_grad(set_to_none=True)
      logits = model(tokens[:, :-1])
      loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
      loss.backward()
      nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
      optimizer.step()
  return call


if __name__ == "__main__":
  cli.run(main)
