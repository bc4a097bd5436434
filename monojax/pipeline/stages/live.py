"""What a run's pages need to run its subject and a dictionary on a reader's own text."""

import typing

from monojax.pipeline import load
from monojax.pipeline.folder import RunFolder

if typing.TYPE_CHECKING:
  from monojax.browser.live import Live
  from monojax.text.tokenizer import Tokenizer
  from monojax.text.tokens import Tokens

_N_TEXTS = 8  # texts that a reader can choose, where they have no domains; otherwise one of each


def live(run: RunFolder, dictionary: str, most_weights: int) -> "Live | str":
  """The files with which the page "Your text" runs a dictionary of a run; or why it cannot, as a clause.

  Args:
    run: the run's folder.
    dictionary: the dictionary's name.
    most_weights: nothing is run if the subject and the dictionary have more weights together.
  """
  if not most_weights:
    return "it was not asked for (--browser.live_weights=0)"
  if load.activations_config(run).source == "given":
    return "the run has no subject"
  if load.subject_config(run).weights:
    return "the subject is a pretrained one"
  from monojax.browser.live import Live
  from monojax.sae.plain import plain_encoder
  from monojax.subjects.plain_layers import plain_layers
  from monojax.text.tokens import prefix_of
  sae, subject, tokenizer, kept = (load.load_sae(run, dictionary), load.load_subject(run), load.load_tokenizer(run),
                                   load.kept_of(run))
  layers, encoder, texts = plain_layers(subject), plain_encoder(sae), tokenizer.byte_pairs()
  if len(sae.reads) != 1 or len(sae.writes) != 1 or encoder is None:
    return "the dictionary is of several sites, or changes each row by itself"
  if layers is None or texts is None:
    return "the page cannot run such a tokenizer or subject"
  if kept.special_ids or kept.norm_limits:
    return "positions are left out by their tokens or norms"
  n_weights = sum(array.size for array in (*layers.arrays.values(), *encoder.arrays.values()))
  if n_weights > most_weights:
    return f"it would have {n_weights:,} weights, more than --browser.live_weights={most_weights}"
  prefix = list(prefix_of(load.tokens_meta(run))) or [tokenizer.eot_id]
  settings = {"n_layers": layers.n_layers, "n_heads": layers.n_heads, "epsilon": layers.epsilon, "prefix": prefix,
              "n_context": subject.n_context, "first_position": kept.first_position, "reads": sae.reads[0],
              "writes": sae.writes[0], "nonlinearity": encoder.nonlinearity, "k": encoder.k,
              "texts": sample_texts(load.open_tokens(run, "val"), tokenizer, subject.n_context - len(prefix))}
  late = ("unembed", "final.gain", "final.bias")
  return Live(settings, texts, {
      "subject": {name: array for name, array in layers.arrays.items() if name not in late},
      "encoder": {name: array for name, array in encoder.arrays.items() if name != "directions"},
      "output": {**{name: layers.arrays[name] for name in late}, "directions": encoder.arrays["directions"]}})


def sample_texts(tokens: "Tokens", tokenizer: "Tokenizer", n_tokens: int) -> list[tuple[str, str]]:
  """(name, beginning) of held-out documents, at most `n_tokens` of each: the first of each domain."""
  import numpy as np
  ends = np.append(tokens.start_D[1:], tokens.n_tokens)
  if tokens.domains:
    first = [(name, np.flatnonzero(tokens.domain_D == d)[:1]) for d, name in enumerate(tokens.domains)]
    documents = [(name, int(of_d[0])) for name, of_d in first if len(of_d)]
  else:
    documents = [(f"text {i + 1}", i) for i in range(min(_N_TEXTS, len(ends)))]
  found = [(name, tokenizer.decode(tokens.tokens_N[tokens.start_D[i] + 1:ends[i]][:n_tokens])) for name, i in documents]
  return [(name, text.rstrip("\ufffd")) for name, text in found if text.strip()]
