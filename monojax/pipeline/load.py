"""Loading what the stages of a run left in its folder."""

import pathlib
import re
import typing

from monojax import config as configs
from monojax import files, hub
from monojax.activations.config import HarvestConfig, same_token
from monojax.config import require
from monojax.pipeline.folder import OWN_DICTIONARY, RunFolder
from monojax.subjects.config import SubjectConfig

if typing.TYPE_CHECKING:  # these need jax or numpy, which a script's --help should not wait for
  from collections.abc import Collection, Iterable

  import jax
  import numpy as np

  from monojax.activations.kept import Kept
  from monojax.activations.origin import Origin
  from monojax.activations.source import RowStore, Source
  from monojax.pipeline.config import RunConfig
  from monojax.pipeline.loaded import LoadedRun
  from monojax.sae.dictionary import SAE
  from monojax.subjects.subject import LoadedSubject
  from monojax.text.tokenizer import Tokenizer
  from monojax.text.tokens import Tokens

# In the folder of the stage `activations`: the mean activation of each site, and the longest one that counts.
MEANS, LIMITS = "means.npz", "norm_limits.json"


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


def load_subject(run: RunFolder, sites: "Collection[str] | None" = None,
                 mesh: "jax.sharding.Mesh | None" = None) -> "LoadedSubject":
  """The run's subject.

  Args:
    run: the run's folder.
    sites: the only sites that are needed, by default all; of a pretrained subject, layers after them are not loaded.
    mesh: the devices that it is to be on; by default one.

  Raises:
    InputError: the run has none, or the files of a pretrained one have changed since the stage was finished.
  """
  from monojax.subjects import subject
  record = run.require_stage("subject")
  settings = subject_config(run)
  if settings.weights:
    require_same_weights(settings, record)
    return subject.load_pretrained(settings, sites, mesh)
  found = subject.load(run.directory / "subject" / "checkpoints")
  return found.placed(mesh) if mesh else found


def model_mesh(config: "RunConfig") -> "jax.sharding.Mesh":
  """The devices that a pretrained subject is split over where one process runs it by itself: those of --mesh.model."""
  import jax

  from monojax import mesh as meshes
  n_devices = config.mesh.model
  own = jax.local_devices()
  require(n_devices <= len(own), "mesh.model", n_devices, f"this process has {len(own)} devices")
  return meshes.make_mesh(meshes.MeshConfig(data=1, model=n_devices), own[:n_devices])


def subject_config(run: RunFolder) -> SubjectConfig:
  """The settings of the run's finished stage `subject`."""
  return configs.from_dict(SubjectConfig, run.require_stage("subject")["config"])


def whole_subject(run: RunFolder, config: "RunConfig") -> "LoadedSubject":
  """The run's subject with all its layers; a pretrained one is split over the devices of --mesh.model."""
  return load_subject(run, mesh=model_mesh(config) if is_pretrained(run) else None)


def run_to_shuffle(settings: SubjectConfig) -> RunFolder:
  """The run whose subject `shuffled_of` names.

  Raises:
    InputError: it has no subject that was trained there.
  """
  run = RunFolder(settings.shuffled_of)
  require(run.stage("subject"), "subject.shuffled_of", settings.shuffled_of, "is not the folder of a run that has a "
          "subject")
  require(not is_pretrained(run), "subject.shuffled_of", settings.shuffled_of, "has a subject that was read from "
          "elsewhere: only one that monojax has trained can be taken")
  return run


def named_sites(run: RunFolder, names: "Iterable[str]", flag: str) -> tuple[str, ...]:
  """The names of sites as the run's subject has them, where layers may be counted from the end: see `site_of`.

  Args:
    run: the run's folder.
    names: as a user gives them.
    flag: what an error calls the setting.

  Raises:
    InputError: a pretrained subject has no such site. Of others, whose parameters are in a checkpoint, the names stay
      as they are.
  """
  return names_of_sites(subject_config(run).weights if is_pretrained(run) else "", names, flag)


def names_of_sites(weights: str, names: "Iterable[str]", flag: str) -> tuple[str, ...]:
  """As `named_sites`, of the subject that `weights` names; "" stands for one that is trained here."""
  if not weights:
    return tuple(names)
  from monojax.subjects.pretrained.weights import open_weights
  from monojax.subjects.subject import site_of
  widths = open_weights(weights).architecture.site_widths
  named = lambda name: site_of(widths, same_token(name), flag) + name[len(same_token(name)):]
  return tuple(map(named, names))


def told_to_others(path: str | pathlib.Path) -> dict[str, typing.Any]:
  """What other tools want to know of the run that a path is in, as SAELens calls it; {} where it is in none.

  "model_name" is there if the subject is from a hub, and "dataset_path" if the text is.
  """
  from monojax.text.tokens import prefix_of
  if hub.is_hub(path):
    return {}
  place = pathlib.Path(path).resolve()
  home = next((folder for folder in (place, *place.parents) if (folder / "run.json").is_file()), None)
  run = RunFolder(home) if home else None
  if run is None or not run.stage("subject") or not run.stage("tokens"):
    return {}
  settings, text = subject_config(run), run.require_stage("tokens")["config"]
  names = {"model_name": settings.weights, "dataset_path": next(iter(text.get("paths") or ()), "")}
  return {"context_size": settings.n_context, "prepend_bos": bool(prefix_of(tokens_meta(run))),
          **{key: re.split("[@:]", name.removeprefix("hf:"))[0] for key, name in names.items()
             if name.startswith("hf:")}}


def layout_of(run: RunFolder) -> tuple[dict[str, int], bool]:
  """({site: its width} of the run's subject, whether its norms are LayerNorms); ({}, False) where it has none."""
  if not run.stage("subject"):
    return {}, False
  settings = subject_config(run)
  if settings.weights:
    from monojax.subjects.pretrained.weights import open_weights
    architecture = open_weights(settings.weights).architecture
    return architecture.site_widths, architecture.norm == "layer"
  subject = load_subject(run)
  widths = subject.model.site_widths
  path = subject.model.logit_path(subject.params, next(site for site in reversed(widths) if site.endswith("resid")))
  return widths, path is not None and path.norm == "layer"


def is_pretrained(run: RunFolder) -> bool:
  """Whether the run has a subject, and it was read from elsewhere."""
  subject = run.stage("subject")
  return bool(subject and subject["config"].get("weights"))


def require_same_weights(settings: SubjectConfig, record: dict) -> None:
  """Raises `InputError` if the files of a pretrained subject are not those that the stage was finished with."""
  from monojax.subjects.pretrained.weights import open_weights
  now, then = open_weights(settings.weights).identity, record["inputs"]["weights"]
  require(now == then, "subject.weights", settings.weights, "its files have changed since the run was begun: restore "
          "them, or use another --workdir")


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
  meta, limits = tokens_meta(run), {}
  if (run.directory / "activations" / LIMITS).exists():  # version 0.1 had none
    limits = (files.read_record(run.made("activations", LIMITS)) or {}).get("norm_limits", {})
  return Kept.of(activations_config(run), prefix_of(meta), tuple(meta.get("special_ids", ())), limits)


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
  pretrained = settings.source != "given" and is_pretrained(run)
  return Origin(settings, store_place(run, settings), identity, lambda sites, mesh: load_subject(run, sites, mesh),
                lambda: open_tokens(run, "train"), rows, pretrained)
