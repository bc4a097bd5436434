"""Names of models as places on this machine; above all the Hugging Face hub, where folders can be sent, too.

Only this module uses `huggingface_hub`, which is optional: pip install 'monojax[hub]'. What was fetched once stays in
that library's cache and is found there without a network. Its environment variables hold: HF_HOME for the place of the
cache, HF_TOKEN for who asks, HF_ENDPOINT for another hub, HF_HUB_OFFLINE=1 to ask none.
"""

import contextlib
import dataclasses
import importlib.util
import pathlib
import types
from collections.abc import Iterator

from monojax.config import InputError, require

PREFIX = "hf:"
PACKAGE = "package:"  # in front of the name of an installed Python package that holds a model
_FORM = "must be hf:NAME, hf:NAME@REVISION or either with /FOLDER behind it, for instance hf:owner/name@main/folder"


@dataclasses.dataclass(frozen=True)
class Place:
  """A repository of the hub, or a folder in it.

  Attributes:
    name: OWNER/NAME, or NAME alone for the oldest repositories, such as gpt2.
    revision: a branch, a tag or a commit; None for the default branch.
    folder: the path of a folder in the repository, "" for all of it.
  """
  name: str
  revision: str | None = None
  folder: str = ""


def is_hub(spec: object) -> bool:
  """Whether something is a name on the hub (hf:NAME...) and not a path on this machine."""
  return isinstance(spec, str) and spec.startswith(PREFIX)


def place_of(spec: str) -> Place:
  """The repository, revision and folder that `hf:NAME[@REVISION][/FOLDER]` names.

  NAME has two parts, OWNER/NAME. The oldest repositories have one, such as gpt2: a folder in one of these needs the
  revision, too, as in hf:gpt2@main/folder. A revision ends at the first slash behind it.

  Raises:
    InputError: it names none.
  """
  name, at, rest = spec.removeprefix(PREFIX).partition("@")
  if at:
    revision, _, folder = rest.partition("/")
  else:
    owner, slash, more = name.partition("/")
    short, _, folder = more.partition("/")
    name, revision = owner + slash + short, ""
  folder = folder.strip("/")
  require(is_hub(spec) and all(name.split("/")) and name.count("/") < 2 and (revision or not at)
          and ".." not in folder.split("/"), "source", spec, _FORM)
  return Place(name, revision or None, folder)


def local(spec: str, patterns: list[str] | None = None) -> pathlib.Path:
  """Where a model is on this machine: its folder, or its .gguf file.

  Args:
    spec: a path; `hf:NAME[@REVISION][/FOLDER]`, which is fetched; or `package:NAME`, an installed Python package that
      holds a .gguf file or a folder with a config.json.
    patterns: which files are fetched from the hub.

  Raises:
    InputError: nothing can be fetched, or there is no such package, or it holds no model.
  """
  if is_hub(spec):
    return folder_of(spec, patterns)
  if not spec.startswith(PACKAGE):
    return pathlib.Path(spec)
  name = spec.removeprefix(PACKAGE)
  require(name.isidentifier(), "source", spec, "must be package:NAME, the name that the package is imported by")
  found = importlib.util.find_spec(name)
  require(found and found.submodule_search_locations, "source", spec, "no such package is installed here")
  assert found and found.submodule_search_locations
  folder = pathlib.Path(found.submodule_search_locations[0])
  places = sorted({*folder.rglob("*.gguf"), *(path.parent for path in folder.rglob("config.json"))})
  places = [place for place in places if not set(place.parents).intersection(places)]  # not parts of another model
  require(len(places) == 1, "source", spec, f"holds {len(places)} models: name the path of one")
  return places[0]


def folder_of(spec: str, patterns: list[str] | None = None) -> pathlib.Path:
  """The local folder that holds what `hf:NAME[@REVISION][/FOLDER]` names, fetched unless it is there already.

  Args:
    spec: the name.
    patterns: which files are fetched, as globs of paths within the folder, such as ["*.json", "*.safetensors"], in
      which * also stands for slashes; all files by default. Of files that are there already, others may be, too.

  Raises:
    InputError: there is no such repository, revision or folder, it is gated, the hub cannot be reached, or
      `huggingface_hub` is not installed.
  """
  place = place_of(spec)
  within = f"{place.folder}/" if place.folder else ""
  wanted = [within + pattern for pattern in patterns or ["*"]]
  with _speaking_plainly(spec) as hub:
    root = pathlib.Path(hub.snapshot_download(place.name, revision=place.revision, allow_patterns=wanted))
  found = root / place.folder
  require(found.is_dir() and any(path.is_file() for path in found.rglob("*")), "source", spec,
          f"the repository has no {'files' if patterns is None else ', '.join(patterns)} there")
  return found


def send(directory: pathlib.Path, spec: str, message: str, private: bool = False) -> str:
  """Sends a folder's files to the hub, as one commit; the repository is made if there is none.

  Args:
    directory: the folder.
    spec: `hf:NAME[@BRANCH][/FOLDER]`, where its files go.
    message: what the commit says.
    private: whether a repository that is made here can be seen only by its owner.

  Returns:
    The commit's address.

  Raises:
    InputError: it could not be sent; see `folder_of`.
  """
  place = place_of(spec)
  with _speaking_plainly(spec) as hub:
    hub.create_repo(place.name, private=private, exist_ok=True)
    commit = hub.upload_folder(repo_id=place.name, folder_path=directory, path_in_repo=place.folder or None,
                               revision=place.revision, commit_message=message)
  return str(getattr(commit, "commit_url", commit))


@contextlib.contextmanager
def _speaking_plainly(spec: str) -> Iterator[types.ModuleType]:
  """`huggingface_hub`, whose errors in the `with` block become an `InputError` that says in one line what to do."""
  try:
    import huggingface_hub
    from huggingface_hub import errors
  except ImportError as error:
    raise InputError(f"{spec} is on the Hugging Face hub: pip install 'monojax[hub]', or give a local folder"
                     ) from error
  try:
    yield huggingface_hub
  except errors.GatedRepoError as error:
    raise InputError(f"{spec} is gated: accept its terms on its page, then log in (`hf auth login`) or set HF_TOKEN "
                     "to a token of the account that did") from error
  except errors.RepositoryNotFoundError as error:
    raise InputError(f"{spec} is not on the hub, or is private: check the name, or log in (`hf auth login`) or set "
                     "HF_TOKEN to a token that may see it") from error
  except errors.RevisionNotFoundError as error:
    raise InputError(f"{spec} has no such revision: name a branch, a tag or a commit of it") from error
  except errors.HFValidationError as error:
    raise InputError(f"{spec!r} is no name of a repository ({_line(error)}): it {_FORM}") from error
  except errors.LocalEntryNotFoundError as error:
    raise InputError(f"{spec} cannot be fetched, and is not whole in the cache: connect to the network (or unset "
                     "HF_HUB_OFFLINE), or give a local folder") from error
  except errors.HfHubHTTPError as error:
    status = getattr(error.response, "status_code", None)
    remedy = ("log in (`hf auth login`) or set HF_TOKEN to a token that may do this" if status in (401, 403)
              else "try again later")
    raise InputError(f"{spec}: the hub refused ({_line(error)}): {remedy}") from error
  except OSError as error:
    raise InputError(f"{spec}: {_line(error)}: connect to the network, or give a local folder") from error
  except Exception as error:
    if not _is_of_http(error):
      raise
    raise InputError(f"{spec}: the hub cannot be reached ({_line(error)}): connect to the network, or give a local "
                     "folder") from error


def _is_of_http(error: Exception) -> bool:
  """Whether an error is of the library that speaks HTTP, which differs between versions of `huggingface_hub`."""
  return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")


def _line(error: Exception) -> str:
  """An error's text in one line, of at most 200 characters."""
  return " ".join(str(error).split())[:200]
