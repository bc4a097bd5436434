"""Time of the analysis for each feature, beside SAEDashboard's, for one dictionary on one subject and the same tokens.

  python experiments/bench_analysis.py --workdir=runs/demo
  python experiments/bench_analysis.py --workdir=runs/demo --peer_features=0 --n_tokens=10000000
  python experiments/bench_analysis.py --workdir=runs/demo --n_tokens=0

Prints how long the analysis of all features takes, compilation included, how much of that is the forward passes, and
the largest memory. Then it prints how many tokens a second are scored with the dictionary spliced in, beside the rate
that the products with the unembedding would allow if nothing else took time; and how long SAEDashboard takes for some
of the features, without writing its pages. Before that it prints by how much the logits and activations of the two
differ. The run's subject must be one that monojax has trained, with a dictionary that SAELens can express. With
--peer_features=0 the peer is left out, with --n_tokens=0 the analysis, too.

The peer takes features in groups of 256, and reads all tokens again for each group. It is timed with a fifth of
--peer_features and with all of them, which tells apart what a group takes and what a feature takes. It needs PyTorch,
SAELens and SAEDashboard:

  pip install 'monojax[peers]' eindex-callum dataclasses-json orjson
  pip install --no-deps sae-dashboard==0.8.0
"""

import os
import resource
import sys
import tempfile
import time

import numpy as np
from absl import flags

from monojax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "the run's folder", required=True)
_DICTIONARY = flags.DEFINE_string("dictionary", "sae", "the dictionary's name in the run")
_N_TOKENS = flags.DEFINE_integer("n_tokens", 131_072, "tokens that features are measured on")
_GROUP = 256  # features that SAEDashboard takes together by default
_PEER_FEATURES = flags.DEFINE_integer("peer_features", 40, "features that it measures: 0, or at least 5",
                                      lower_bound=0, upper_bound=_GROUP)


def main():
  os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"  # the times include compilation, however often this is run
  import monojax
  from monojax.pipeline import load
  from monojax.pipeline.folder import RunFolder
  run = monojax.load(_WORKDIR.value, _DICTIONARY.value)
  train, val = (load.open_tokens(RunFolder(_WORKDIR.value), split) for split in ("train", "val"))
  of_ours = _ours(run, train, val) if _N_TOKENS.value else 0
  _splicing(run, val)
  if of_ours and _PEER_FEATURES.value:
    print(f"ratio, for each feature: {_theirs(run, train) / of_ours:.1f}")


def _splicing(run, val):
  """Prints how quickly texts are scored: as they are, spliced, with zeros and with the mean in the site's place."""
  import jax
  import jax.numpy as jnp

  from monojax.analysis.fidelity import fidelity
  subject, n_tokens, n_rows = load_subject(run), 32_768, 4096
  scored = lambda: fidelity(subject, run.sae, run.mean_O, val, n_tokens, kept=run.kept)
  scored()
  start = time.perf_counter()
  n_scored = scored()["n_tokens"]
  rate = n_scored / (time.perf_counter() - start)
  W_DV = jnp.asarray(subject.params["W_unembed_DV"])
  x_ND = jnp.ones((n_rows, len(W_DV)))
  product = jax.jit(lambda x_ND: (x_ND @ W_DV).max(1))
  jax.block_until_ready(product(x_ND))
  start = time.perf_counter()
  for _ in range(5):
    jax.block_until_ready(product(x_ND))
  most = 5 * n_rows / (time.perf_counter() - start) / 4
  print(f"splicing: {rate:,.0f} tokens/s; four products with the unembedding of each alone would allow {most:,.0f}, "
        f"ratio {rate / most:.2f}", flush=True)


def _ours(run, train, val):
  """Seconds for each feature: examples, histograms, effects, correlations, logit weights, proxies and labels."""
  import jax

  from monojax.analysis.analyze import analyze, contexts_at_once
  from monojax.analysis.config import AnalysisConfig
  from monojax.analysis.fidelity import make_encode
  config = AnalysisConfig(n_tokens=_N_TOKENS.value, detectors=())
  subject = load_subject(run)
  start = time.perf_counter()
  tables = analyze(config, subject, run.sae, train, val, run.tokenizer.token_strings(), run.kept)
  took = time.perf_counter() - start
  unit = 2 ** 20 if sys.platform == "darwin" else 2 ** 10
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
  encode = make_encode(subject.model, run.sae.model, run.sae.reads, run.kept)
  chosen_C = train.choose(subject.n_context, config.n_tokens, config.seed)
  n_contexts = contexts_at_once(config, run.sae.n_features, subject.n_context)
  batch_BT = train.context(np.resize(chosen_C, n_contexts), subject.n_context)
  passed = lambda: jax.block_until_ready(encode(subject.params, run.sae.params, batch_BT))
  passed()
  start = time.perf_counter()
  for _ in range(16):
    passed()
  forward = (time.perf_counter() - start) / (16 * batch_BT.size) * len(chosen_C) * subject.n_context
  print(f"monojax: {took:.1f} s for {tables.n_features:,} features on {tables.summary['n_tokens']:,} tokens, of which "
        f"forward passes {forward:.1f} s; {took / tables.n_features * 1e3:.2f} ms a feature; {peak:,.0f} MB at most",
        flush=True)
  return took / tables.n_features


def load_subject(run):
  """The run's subject, with its parameters."""
  from monojax.pipeline import load
  from monojax.pipeline.folder import RunFolder
  return load.load_subject(RunFolder(run.directory))


def _theirs(run, train):
  """Seconds for each of some features in SAEDashboard; says first how far its subject and features are from ours."""
  import torch
  from sae_dashboard.sae_vis_data import SaeVisConfig
  from sae_dashboard.sae_vis_runner import SaeVisRunner
  from sae_lens import SAE

  from monojax import interop
  subject = load_subject(run)
  model = _in_transformer_lens(subject)
  with tempfile.TemporaryDirectory() as directory:
    interop.write(run.sae, directory, "sae_lens", model_name="monojax")
    sae = SAE.load_from_disk(directory, device="cpu")
  if hasattr(sae.cfg, "rescale_acts_by_decoder_norm"):
    sae.cfg.rescale_acts_by_decoder_norm = True  # SAEDashboard folds norms, which a TopK SAE refuses without
  chosen_C = train.choose(subject.n_context, _N_TOKENS.value, 0)
  tokens_CT = torch.from_numpy(train.context(chosen_C, subject.n_context).astype(np.int64))
  hook = "blocks.0.mlp.hook_post"
  with torch.inference_mode():
    logits, cache = model.run_with_cache(tokens_CT[:4], names_filter=hook)
    f_BTF = sae.encode(cache[hook])
  ours, sites = subject.model.apply({"params": subject.params}, tokens_CT[:4].numpy(), wanted=run.sae.reads)
  ours_NF = run.sae.encode(sites[run.sae.reads[0]].reshape(-1, run.sae.model.wiring.n_inputs))
  print(f"largest differences: logits {np.abs(np.asarray(ours) - logits.numpy()).max():.1e}, features "
        f"{np.abs(np.asarray(ours_NF) - f_BTF.numpy().reshape(ours_NF.shape)).max():.1e}")

  def seconds(n_features):
    start = time.perf_counter()
    SaeVisRunner(SaeVisConfig(hook_point=hook, features=list(range(n_features)))).run(sae, model, tokens_CT)
    return time.perf_counter() - start
  few, many = max(1, _PEER_FEATURES.value // 5), _PEER_FEATURES.value
  of_few, of_many = seconds(few), seconds(many)
  of_one = (of_many - of_few) / (many - few)
  of_group = max(of_few - few * of_one, 0)
  took = of_one + of_group / _GROUP
  print(f"SAEDashboard: {of_few:.1f} s for {few} and {of_many:.1f} s for {many} features on {tokens_CT.numel():,} "
        f"tokens: {of_group:.1f} s for each group of {_GROUP}, {of_one * 1e3:.1f} ms a feature; "
        f"{took * 1e3:.1f} ms together")
  return took


def _in_transformer_lens(subject):
  """A subject of one layer as a model of TransformerLens."""
  import torch
  from transformer_lens import HookedTransformer, HookedTransformerConfig
  c, params = subject.model.config, subject.params
  d_head = c.d_model // c.n_heads
  model = HookedTransformer(HookedTransformerConfig(
      n_layers=c.n_layers, d_model=c.d_model, n_ctx=subject.n_context, d_head=d_head, n_heads=c.n_heads,
      d_mlp=c.d_mlp, d_vocab=c.vocab_size, act_fn="relu", normalization_type="LN", positional_embedding_type="rotary",
      rotary_dim=d_head, device="cpu"))
  block = params["layer_0"]
  array = lambda x: torch.from_numpy(np.array(x))
  heads = lambda W_DE: array(W_DE).reshape(c.d_model, c.n_heads, d_head).permute(1, 0, 2)
  weights = {name: torch.zeros_like(value) if name.endswith(("b_Q", "b_K", "b_V", "b_O", "b_U")) else value
             for name, value in model.state_dict().items()}
  weights |= {"embed.W_E": array(params["W_embed_VD"]), "unembed.W_U": array(params["W_unembed_DV"]),
              "ln_final.w": array(params["gain_D"]), "ln_final.b": array(params["bias_D"])}
  layer = {"ln1.w": block["gain_attn_D"], "ln1.b": block["bias_attn_D"], "ln2.w": block["gain_mlp_D"],
           "ln2.b": block["bias_mlp_D"], "mlp.W_in": block["W_in_DM"], "mlp.b_in": block["b_in_M"],
           "mlp.W_out": block["W_out_MD"], "mlp.b_out": block["b_out_D"]}
  weights |= {f"blocks.0.{name}": array(value) for name, value in layer.items()}
  W_QKV = np.split(np.asarray(block["W_qkv_DE"]), 3, axis=1)
  weights |= {f"blocks.0.attn.W_{name}": heads(W_DE) for name, W_DE in zip("QKV", W_QKV, strict=True)}
  weights["blocks.0.attn.W_O"] = array(block["W_o_ED"]).reshape(c.n_heads, d_head, c.d_model)
  model.load_state_dict(weights)
  return model.eval()


if __name__ == "__main__":
  cli.run(main)
