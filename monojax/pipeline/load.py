"""Loading what the stages of a run left in its folder."""

import pathlib
import typing

from monojax import config as configs
from monojax import files
from monojax.activations.config import HarvestConfig
from monojax.config import require
from monojax.pipeline.folder import OWN_DICTIONARY, RunFolder

if typing.TYPE_CHECKING:  # these need jax or numpy, which a script's --help should not wait for
  import numpy as np

  from monojax.activations.kept import Kept
  from monojax.activations.origin import Origin
  from monojax.activations.source import RowStore, Source
  from monojax.pipeline.loaded import LoadedRun
  from monojax.sae.dictionary import SAE
  from monojax.subjects.subject import LoadedSubject
  from monojax.text.tokenizer import Tokenizer
  from monojax.text.tokens import Tokens

MEANS = "means.npz"  # the mean activation of each site, in the folder of the stage `activations`


def load(directory: str | pathlib.Path, dictionary: str = OWN_DICTIONARY) -> "LoadedRun":
  """A finished run, to be studied in a notebook; it is rebuilt from its folder alone.

  Args:
    directory: the run's folder (`--workdir`).
    dictionary: the name of the dictionary to study: "sae" for the run's own; for another one the name that it was
      trained under, or its folder in the run, for instance "sweeps/NAME/dictionaries/MEMBER".

  Raises:
    InputError: a stage that is needed is not finished, or there is no such dictionary.
  """
  from monojax.pipeline.loaded import LoadedRun
  run = RunFolder(directory)
  place = run.dictionary(dictionary)
  return LoadedRun(run, place, load_sae(run, place.name))


def load_sae(run: RunFolder, dictionary: str = OWN_DICTIONARY) -> "SAE":
  """A finished dictionary of a run."""
  from monojax.sae.dictionary import SAE
  place, record = run.dictionary(dictionary), run.require_stage("activations")
  sae = SAE.load(place.weights)
  if sae.sites:
    return sae
  reads, writes = sae.config.wired(record["config"]["site"])  # version 0.1 saved no names of sites
  return SAE.load(place.weights, tuple(dict.fromkeys(reads + writes)))


def load_subject(run: RunFolder) -> "LoadedSubject":
  """The run's trained subject.

  Raises:
    InputError: the run has none.
  """
  from monojax.subjects import subject
  run.require_stage("subject")
  return subject.load(run.directory / "subject" / "checkpoints")


def open_tokens(run: RunFolder, split: str) -> "Tokens":
  """The run's tokens of a split, "train" or "val"."""
  from monojax.text.tokens import Tokens
  for file in ("meta.json", f"{split}.bin", f"{split}.documents.bin"):
    run.made("tokens", file)
  return Tokens.open(run.directory / "tokens", split)


def tokens_meta(run: RunFolder) -> dict:
  """What the stage `tokens` says of its files."""
  return files.read_json(run.made("tokens", "meta.json"))


def load_tokenizer(run: RunFolder) -> "Tokenizer":
  """The run's tokenizer."""
  from monojax.text import tokenizer
  end_token = tokens_meta(run).get("end_token")  # version 0.1 did not save it
  if end_token is None:
    end_token = run.require_stage("tokens")["config"].get("end_token", "")
  return tokenizer.load(run.made("tokens", "tokenizer.json"), end_token)


def kept_of(run: RunFolder) -> "Kept":
  """Which positions of a context count in a run, by its finished stages `tokens` and `activations`."""
  from monojax.activations.kept import Kept
  from monojax.text.tokens import prefix_of
  meta = tokens_meta(run)
  return Kept.of(activations_config(run), prefix_of(meta), tuple(meta.get("special_ids", ())))


def mean_activation(run: RunFolder, sites: typing.Sequence[str]) -> "np.ndarray":
  """The mean activations of some sites side by side, of shape (M,), float64."""
  import numpy as np
  means = files.read_npz(run.made("activations", MEANS))
  for site in sites:
    require(site in means, "site", site, f"this run's activations are of {', '.join(means)}")
  return np.concatenate([means[site] for site in sites])


def store_place(run: RunFolder, settings: HarvestConfig) -> str | pathlib.Path:
  """The folder or URL of a run's store."""
  return settings.url or run.directory / "activations"


def activations_config(run: RunFolder) -> HarvestConfig:
  """The settings of the run's finished stage `activations`."""
  return configs.from_dict(HarvestConfig, run.require_stage("activations")["config"])


def origin_of(run: RunFolder, settings: HarvestConfig, identity: str,
              rows: "RowStore | Source | None" = None) -> "Origin":
  """What a run's activations are made from, or where they are; see `monojax.activations.origin`."""
  from monojax.activations.origin import Origin
  return Origin(settings, store_place(run, settings), identity, lambda: load_subject(run),
                lambda: open_tokens(run, "train"), rows)
