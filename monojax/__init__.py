"""monojax: dictionary learning on neural-network activations, in JAX and Flax linen."""


def load(directory):
  """Loads a run for analysis: tokenizer, subject, dictionary, parameters, feature tables.

  See `monojax.runs.Loaded` for what it holds.
  """
  from monojax import runs
  return runs.load(directory)
