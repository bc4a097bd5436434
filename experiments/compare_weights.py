"""What other weights of the same architecture change: a quantised model, a fine-tuned one, the base of one.

  python experiments/compare_weights.py --workdir=runs/smollm2 --quantise=Q4_0
  python experiments/compare_weights.py --workdir=runs/mine --weights=hf:OWNER/OTHER --dictionary=layer.3.mlp.hidden

Runs the run's dictionary on the activations of both models over the same held-out text, and prints: the loss of each
model and the divergence between their predictions; how far rows move, as a share of their spread; what the dictionary
explains of each model's rows; how many of the features that fire on a token fire in both; and the features that
changed most, by the correlation of their activations. --quantise rounds the run's own weights through a type of .gguf
files (Q8_0, Q5_1, Q5_0, Q4_1, Q4_0), as a quantised file would hold them.
"""

import dataclasses

import numpy as np
from absl import flags

from monojax import cli
from monojax.config import InputError, require

_WORKDIR = flags.DEFINE_string("workdir", None, "the run's folder", required=True)
_DICTIONARY = flags.DEFINE_string("dictionary", "sae", "the dictionary; sae is the run's own")
_WEIGHTS = flags.DEFINE_string("weights", "", "the other weights: a folder, hf:NAME or a .gguf file")
_QUANTISE = flags.DEFINE_string("quantise", "", "instead of other weights: the type that the run's own are rounded to")
_TOKENS = flags.DEFINE_integer("tokens", 4096, "about how many tokens of held-out text")
_LISTED = flags.DEFINE_integer("listed", 10, "how many features are listed")
_LEAST = flags.DEFINE_integer("least_tokens", 20, "on how many tokens a feature must fire to be listed")


def main():
  import monojax
  from monojax.pipeline import load
  from monojax.pipeline.folder import RunFolder
  from monojax.subjects.subject import LoadedSubject
  require(bool(_WEIGHTS.value) != bool(_QUANTISE.value), "--weights", _WEIGHTS.value, "give either --weights or "
          "--quantise")
  run = monojax.load(_WORKDIR.value, _DICTIONARY.value)
  folder = RunFolder(_WORKDIR.value)
  settings = load.subject_config(folder)
  require(settings.weights, "--workdir", _WORKDIR.value, "its subject was trained there: a pretrained one is needed")
  subjects = LoadedSubject(run.subject, run.subject_params, run.n_context), _other(settings)
  tokens = load.open_tokens(folder, "val")
  context_C = tokens.choose(run.n_context + 1, _TOKENS.value)
  own, changed = (_measured(run, subject, tokens, context_C) for subject in subjects)
  _print(run, own, changed)


def _other(settings):
  """The subject to compare with."""
  from monojax.subjects.pretrained import weights as pretrained
  from monojax.subjects.subject import LoadedSubject, load_pretrained
  from monojax.training import compute_dtype
  if _WEIGHTS.value:
    return load_pretrained(dataclasses.replace(settings, weights=_WEIGHTS.value))
  weights = pretrained.open_weights(settings.weights)
  tensors = {name: _quantised(tensor) for name, tensor in weights.tensors.items()}
  model, params = pretrained.load_params(dataclasses.replace(weights, tensors=tensors),
                                         compute_dtype(settings.compute_dtype))
  return LoadedSubject(model, params, settings.n_context)


def _quantised(tensor):
  """A matrix whose numbers are rounded as the type rounds them; other tensors as they are."""
  import gguf
  from gguf.quants import dequantize, quantize
  names = [kind.name for kind in gguf.GGMLQuantizationType]
  require(_QUANTISE.value in names, "--quantise", _QUANTISE.value, f"choose one of {', '.join(names)}")
  kind = gguf.GGMLQuantizationType[_QUANTISE.value]
  if len(tensor.shape) < 2 or tensor.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
    return tensor

  def read(start, stop):
    try:
      return dequantize(quantize(np.asarray(tensor.read(start, stop), np.float32), kind), kind)
    except NotImplementedError as error:
      raise InputError(f"--quantise={_QUANTISE.value!r}: the package gguf does not quantise to it") from error
  return dataclasses.replace(tensor, read=read, read_into=None)  # which would read the file as it is


def _measured(run, subject, tokens, context_C):
  """What one subject and the dictionary make of a text, a row for each of its positions that counts by its token.

  Returns:
    {"log_p": the log-probability of every token of the vocabulary as the next one, "x": activations, "f": features,
    "usual": whether the activation is not too long to count, "target": the next token, "token": the token}.
  """
  import jax
  import jax.numpy as jnp

  from monojax.analysis.fidelity import side_by_side

  @jax.jit
  def forward(params, sae_params, tokens_BT):
    logits_BTV, sites = subject.model.apply({"params": params}, tokens_BT, wanted=run.reads)
    x_NM = side_by_side(sites, run.reads)
    f_NF = run.sae.model.apply({"params": sae_params}, x_NM, method="encode")
    return jax.nn.log_softmax(logits_BTV), x_NM, f_NF, run.kept.counts(tokens_BT, sites)
  found = {name: [] for name in ("log_p", "x", "f", "usual", "target", "token")}
  for context in context_C:
    tokens_1U = tokens.context([context], run.n_context + 1)
    found_here = forward(subject.params, run.sae.params, jnp.asarray(tokens_1U[:, :-1]))
    log_p, x_NM, f_NF, usual_BT = map(np.asarray, found_here)
    counts_N = np.asarray(run.kept.mask(tokens_1U[:, :-1])).reshape(-1)
    for name, value in (("log_p", log_p[0].astype(np.float16)), ("x", x_NM), ("f", f_NF), ("usual", usual_BT[0]),
                        ("target", tokens_1U[0, 1:]), ("token", tokens_1U[0, :-1])):
      found[name].append(value[counts_N])
  return {name: np.concatenate(parts) for name, parts in found.items()}


def _print(run, own, changed):
  usual_N = own["usual"] & changed["usual"]
  loss = {name: -side["log_p"][np.arange(len(usual_N)), side["target"]].astype(np.float64).mean()
          for name, side in (("own", own), ("other", changed))}
  p = np.exp(own["log_p"].astype(np.float32))
  kl = (p * (own["log_p"].astype(np.float32) - changed["log_p"])).sum(1).mean()
  x, y, f, g = (side[name][usual_N] for name in ("x", "f") for side in (own, changed))
  spread = np.square(x - x.mean(0)).sum()
  explained = [1 - np.square(rows - run.sae.decode(codes, rows)).sum() / np.square(rows - rows.mean(0)).sum()
               for rows, codes in ((x, f), (y, g))]
  both, either = ((f > 0) & (g > 0)).sum(1), ((f > 0) | (g > 0)).sum(1)
  figures = {"tokens": int(usual_N.sum()), "loss": loss["own"], "loss of the other": loss["other"],
             "KL(own || other)": float(kl),
             "rows moved, share of their variance": float(np.square(x - y).sum() / spread),
             "explained variance": float(explained[0]), "explained variance of the other": float(explained[1]),
             "L0": float((f > 0).sum(1).mean()), "L0 of the other": float((g > 0).sum(1).mean()),
             "features that fire in both, of those in either": float((both / np.maximum(either, 1)).mean())}
  cli.print_figures(figures)
  fires_F = np.minimum((f > 0).sum(0), (g > 0).sum(0))
  often_J = np.flatnonzero(fires_F >= _LEAST.value)
  deviation = lambda a: (a - a.mean(0)) / np.maximum(a.std(0), 1e-9)
  correlation_J = (deviation(f[:, often_J]) * deviation(g[:, often_J])).mean(0)
  print(f"\n{len(often_J)} features fire on {_LEAST.value} tokens or more in both; correlation of their activations: "
        f"median {np.median(correlation_J):.4f}, lowest tenth below {np.quantile(correlation_J, 0.1):.4f}")
  strings = run.tokenizer.token_strings()
  token_N = own["token"][usual_N]
  print("\nfeatures that changed most: correlation, mean activation of own and other, tokens where it is strongest")
  for j in np.argsort(correlation_J)[:_LISTED.value]:
    feature = often_J[j]
    top = [strings[t] for t in token_N[np.argsort(-f[:, feature])[:6]]]
    print(f"{feature:>7}  {correlation_J[j]:.3f}  {f[:, feature].mean():.3f}  {g[:, feature].mean():.3f}  {top}")


if __name__ == "__main__":
  cli.run(main)
