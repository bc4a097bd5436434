"""The stage `subject`: a transformer is trained on the run's tokens."""

import dataclasses
import math
import pathlib
import typing

from monojax import config as configs
from monojax import files
from monojax.config import require
from monojax.pipeline import load
from monojax.pipeline.config import RunConfig
from monojax.pipeline.folder import RunFolder
from monojax.subjects.config import SubjectConfig

if typing.TYPE_CHECKING:
  from monojax.subjects.subject import LoadedSubject

_N_SAMPLES = 4


def train_subject(run: RunFolder, config: RunConfig) -> dict:
  """Trains the subject, and measures its held-out loss beside what n-gram models reach on the same tokens.

  A pretrained subject is only measured, and so is one whose weights are those of another run in random order.

  Returns:
    The stage's record.
  """
  if config.subject.weights:
    return _take_pretrained(run, config)
  if config.subject.shuffled_of:
    return _take_shuffled(run, config.subject)
  model_config = config.subject.model
  n_known = load.tokens_meta(run)["vocab_size"]
  vocab_size = model_config.vocab_size or n_known
  require(vocab_size >= n_known, "subject.model.vocab_size", vocab_size, f"the tokenizer has {n_known} tokens")
  subject_config = dataclasses.replace(
      config.subject, model=dataclasses.replace(model_config, vocab_size=vocab_size))

  def work(directory, identity):
    from monojax.mesh import make_mesh
    from monojax.subjects import train
    from monojax.text import ngram
    train_tokens, val_tokens = load.open_tokens(run, "train"), load.open_tokens(run, "val")
    context_C = val_tokens.choose(subject_config.n_context + 1, subject_config.val_tokens)
    saved = {"subject": configs.to_dict(subject_config), "identity": identity}
    subject = train.train_subject(subject_config, train_tokens, directory, saved, make_mesh(config.mesh),
                                  config.metrics)
    loss = train.validation_loss(subject, val_tokens, context_C)
    scored_CU = val_tokens.context(context_C, subject.n_context + 1)
    unigram, bigram = ngram.unigram_bigram_loss(train_tokens.tokens_N, scored_CU, vocab_size)
    _write_samples(run, directory, subject, subject_config)
    bits = loss / math.log(2) * val_tokens.n_tokens / val_tokens.text_bytes
    return {"subject/val_loss": loss, "subject/unigram_loss": unigram, "subject/bigram_loss": bigram,
            "subject/bits_per_byte": bits,
            "subject/tokens_seen": subject_config.n_steps * subject_config.batch_contexts * subject_config.n_context}
  return run.execute("subject", subject_config, work)


def _take_pretrained(run: RunFolder, config: RunConfig) -> dict:
  """Measures a pretrained subject on the run's held-out text and has it write samples; an encoder does neither."""
  from monojax.subjects.pretrained.weights import open_weights
  settings, weights = config.subject, open_weights(config.subject.weights)
  tokenizer = run.require_stage("tokens")["config"]["tokenizer"]
  require(tokenizer, "subject.weights", settings.weights, f"{run.directory / 'tokens'} was made with a tokenizer that "
          "was trained here: begin the run with this flag, in another --workdir")

  def work(directory, identity):
    from monojax.subjects import subject as subjects
    print(f"subject: {weights.description}", flush=True)
    figures: dict = {"subject/parameters": weights.n_parameters}
    if not weights.architecture.causal:
      return figures
    subject = subjects.load_pretrained(settings, mesh=load.model_mesh(config))
    return figures | _measured(run, directory, subject, settings)
  return run.execute("subject", settings, work, given={"weights": weights.identity})


def _take_shuffled(run: RunFolder, settings: SubjectConfig) -> dict:
  """Takes another run's subject with its weights in random order, measures it and has it write samples.

  Raises:
    InputError: the other run has no subject that was trained there, or other tokens.
  """
  if done := run.stage("subject"):  # the other run is needed no longer
    theirs, taken = load.subject_config(run), done["inputs"].get("shuffled_of")
  else:
    other = load.run_to_shuffle(settings)
    theirs, taken = load.subject_config(other), other.require_stage("subject")["output"]
    require(other.require_stage("tokens")["output"] == run.require_stage("tokens")["output"], "subject.shuffled_of",
            settings.shuffled_of, "was trained on other tokens than this run has: give the tokens.* settings that it "
            "was made with")
  settings = dataclasses.replace(theirs, shuffled_of=settings.shuffled_of, seed=settings.seed)

  def work(directory, identity):
    from monojax import checkpoint
    from monojax.subjects.control import shuffled
    subject = shuffled(load.load_subject(other), settings.seed)
    checkpoint.save_params(directory / "checkpoints", subject.params,
                           {"subject": configs.to_dict(settings), "identity": identity})
    return _measured(run, directory, subject, settings)
  return run.execute("subject", settings, work, given={"shuffled_of": taken})


def _measured(run: RunFolder, directory: pathlib.Path, subject: "LoadedSubject", settings: SubjectConfig) -> dict:
  """The held-out loss of a subject that is taken as it is, which also writes samples."""
  from monojax.subjects import train
  val_tokens = load.open_tokens(run, "val")
  context_C = val_tokens.choose(settings.n_context + 1, settings.val_tokens)
  loss = train.validation_loss(subject, val_tokens, context_C)
  _write_samples(run, directory, subject, settings)
  bits = loss / math.log(2) * val_tokens.n_tokens / val_tokens.text_bytes
  return {"subject/val_loss": loss, "subject/bits_per_byte": bits}


def _write_samples(run, directory, subject, config):
  """Writes `samples.txt`: text that the subject makes up from an empty document."""
  if not config.sample_tokens:
    return
  import jax

  from monojax.subjects.sample import sample
  from monojax.text.tokens import prefix_of
  tokenizer, key = load.load_tokenizer(run), jax.random.key(config.seed)
  prompt = [*prefix_of(load.tokens_meta(run)), tokenizer.eot_id]
  texts = []
  for i in range(_N_SAMPLES):
    ids = sample(subject, prompt, config.sample_tokens, jax.random.fold_in(key, i))
    texts.append(tokenizer.decode(ids[len(prompt):]))
  with files.replacing(directory / "samples.txt") as file:
    file.write("\n\n-----\n\n".join(texts).encode())
