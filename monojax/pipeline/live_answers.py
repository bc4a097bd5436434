"""What a served page "Your text" may ask of a run: its features on a text, what one does and comes from, and a
continuation.

They are the questions that `monojax/browser/static/live_machine.js` asks, and answers of the form that the page
computes by itself where a subject is small enough. Positions are those of the text's own tokens, without what stands
in front of them.
"""

import typing

import numpy as np

from monojax.analysis import interventions
from monojax.analysis.circuits import source_weights
from monojax.analysis.fidelity import make_encode
from monojax.browser.serve import Answers
from monojax.config import InputError, require
from monojax.pipeline import load
from monojax.pipeline.loaded import LoadedRun
from monojax.pipeline.stages.live import sample_texts
from monojax.pipeline.stages.pages import given_texts
from monojax.subjects.sample import bucket, sample


def _still_there(paths: typing.Iterable[str]) -> list[tuple[str, str]]:
  """The texts that pages were made with, of files that can still be read."""
  found = []
  for path in paths:
    try:
      found += given_texts([path])
    except InputError as error:
      print(f"{error}; it is left out", flush=True)
  return found


def live_answers(run: LoadedRun) -> Answers:
  """The answers about a run and its dictionary. What is compiled for a text serves others of similar length.

  (Not for an encoder, where what stands behind a token changes what is computed on it.)
  """
  import jax
  subject, sae, first = run._subject, run.sae, len(run._prefix)
  writes = subject.model.output == "logits"
  encode = make_encode(subject.model, sae.model, run.reads, run.kept)
  pages = run._folder.stage(f"{run._place.home}browser")
  given = _still_there(pages["config"].get("texts") or ()) if pages else []

  def padded(ids: list[int]) -> np.ndarray:
    """The ids, filled up if what follows a token does not change what is computed on it."""
    length = min(bucket(len(ids)), run.n_context) if writes and not subject.model.depends_on_length else len(ids)
    return np.asarray([ids + ids[-1:] * (length - len(ids))], np.int32)

  def settings() -> dict[str, typing.Any]:
    return {"n_context": run.n_context - first, "writes": writes,
            "texts": given + sample_texts(load.open_tokens(run._folder, "val"), run.tokenizer, run.n_context - first)}

  def read(text: str) -> dict[str, typing.Any]:
    require(isinstance(text, str), "text", text, "must be a text")
    own = run.tokenizer.encode_batch([text])[0].tolist()
    ids, n_all = (run._prefix + own)[:run.n_context], len(own)
    if len(ids) == first:
      return {"tokens": [], "features": [], "n_all": 0}
    f_TF = np.asarray(encode(subject.params, sae.params, padded(ids))[0])[first:len(ids)]
    fires = [np.flatnonzero(f_F) for f_F in f_TF]
    return {"tokens": run._strings(ids[first:]), "n_all": n_all,
            "features": [{"ids": on.tolist(), "values": f_F[on].tolist()} for on, f_F in zip(fires, f_TF, strict=True)]}

  def effects(text: str, feature: int) -> dict[str, typing.Any]:
    require(writes, "feature", feature, "has no effects on predictions: the subject predicts no tokens")
    run._require_feature(feature)
    ids = run.token_ids(text)
    found = interventions.losses(subject, sae, run.mean_O, padded(ids)[0].tolist(), {feature: 0.0}, run.kept)
    return {"effects": (found["steered"] - found["clean"])[first - 1:len(ids) - 1].tolist()}

  def sources(text: str, position: int, feature: int) -> dict[str, typing.Any]:
    require(writes, "feature", feature, "has no circuit: the subject reads in both directions")
    run._require_feature(feature)
    ids = run.token_ids(text)
    require(isinstance(position, int) and 0 <= position < len(ids) - first, "position", position,
            "is none of the text's")
    whole, weight_HT = source_weights(subject, sae, padded(ids), position + first, feature, run.kept)
    return {"whole": whole, "sources": [[i - first, *weight_H] for i, weight_H in enumerate(weight_HT.T.tolist())]}

  def write(text: str, feature: int, value: float, n_tokens: int, seed: int) -> dict[str, typing.Any]:
    require(writes, "feature", feature, "cannot make the subject write: it predicts no tokens")
    run._require_feature(feature)
    ids = run.token_ids(text)
    ids = ids[:first] + ids[first:][-(run.n_context // 2 - first):]  # room for as many tokens as half of a context
    plain = sample(subject, ids, n_tokens, jax.random.key(seed))
    steered = interventions.steer(subject, sae, ids, {feature: value}, n_tokens, seed, kept=run.kept)
    return {"texts": [run.tokenizer.decode(found[len(ids):]) for found in (plain, steered)]}
  return {"settings": settings, "read": read, "effects": effects, "sources": sources, "write": write}
