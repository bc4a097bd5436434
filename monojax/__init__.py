"""monojax: dictionary learning on neural-network activations, in JAX and Flax linen."""


def load(directory, dictionary="sae/dictionary"):
  """Loads a run for analysis: tokenizer, subject, dictionary, parameters, feature tables.

  Args:
    directory: the run's folder.
    dictionary: the folder in it of the dictionary to study, for instance "sweeps/NAME/dictionaries/MEMBER".

  See `monojax.pipeline.runs.Loaded` for what it holds.
  """
  from monojax.pipeline import runs
  return runs.load(directory, dictionary)
