"""The stage `tokens`: documents become tokens."""

from monojax.pipeline.config import RunConfig
from monojax.pipeline.folder import RunFolder


def prepare_text(run: RunFolder, config: RunConfig) -> dict:
  """Trains or takes a tokenizer and writes the run's token files; returns the stage's record."""
  def work(directory, identity):
    from monojax.text import prepare
    meta = prepare.prepare(config.tokens, directory)
    return {"tokens/train_tokens": meta["n_tokens"]["train"], "tokens/val_tokens": meta["n_tokens"]["val"],
            "tokens/vocab_size": meta["vocab_size"], "tokens/documents": sum(meta["n_documents"].values())}
  return run.execute("tokens", config.tokens, work, alone=True)
