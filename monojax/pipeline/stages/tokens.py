"""The stage `tokens`: documents become tokens."""

import dataclasses

from monojax import distributed
from monojax.pipeline.config import RunConfig
from monojax.pipeline.folder import RunFolder


def prepare_text(run: RunFolder, config: RunConfig) -> dict:
  """Trains or takes a tokenizer and writes the run's token files; returns the stage's record.

  The tokenizer of a pretrained subject is its own, unless another one is given.

  Raises:
    InputError: the text cannot be used, is too little for one context of the subject in each split, or has changed
      since the stage was finished.
  """
  settings = config.tokens
  if config.subject.weights and not settings.tokenizer:
    settings = dataclasses.replace(settings, tokenizer=config.subject.weights)

  def work(directory, identity):
    from monojax.text import prepare
    meta = prepare.prepare(settings, directory, least_tokens=config.subject.n_context + 1)
    return {"tokens/train_tokens": meta["n_tokens"]["train"], "tokens/val_tokens": meta["n_tokens"]["val"],
            "tokens/vocab_size": meta["vocab_size"], "tokens/documents": sum(meta["n_documents"].values())}
  if run.stage("tokens") and distributed.is_first():
    from monojax.text import changes
    changes.require_unchanged(settings, run.directory / "tokens")
  return run.execute("tokens", settings, work, alone=True)
