"""A folder on a disk or in an object store, named by its path or URL; what a store's arrays and small files lie in."""

import errno
import functools
import io
import json
import os
import re
import socket
import urllib.parse
import urllib.request

import numpy as np
import tensorstore as ts

from monojax import distributed, files, places
from monojax.config import InputError

IN_FLIGHT = 8  # reads of arrays at a time
_DRIVERS = {"s3": "s3", "gs": "gcs"}
_CONNECT_SECONDS, _ANSWER_SECONDS = 5.0, 10.0  # how long an object store may take to accept a connection, to answer
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@functools.cache
def context():
  """The process's tensorstore context: each chunk is read once, so none is kept."""
  return ts.Context({"cache_pool": {"total_bytes_limit": 0}, "data_copy_concurrency": {"limit": 4},
                     "file_io_concurrency": {"limit": IN_FLIGHT}})


class Folder:
  """Files by name, below a local path, s3://BUCKET/PATH or gs://BUCKET/PATH.

  An object store's account comes from its usual environment variables and files. With `AWS_ENDPOINT_URL` in the
  environment, s3:// names buckets of that server.

  Attributes:
    path: the local path, or `None`.
  """

  def __init__(self, place):
    """Opens nothing yet.

    Raises:
      InputError: a URL of another kind, one without a bucket, or a path under which nothing can be kept.
    """
    scheme, is_url, rest = str(place).partition("://")
    self._name = str(place).rstrip("/")
    self.path = None if is_url else places.folder(place, "activations.url").absolute()
    if not is_url:
      self._spec = {"driver": "file", "path": f"{self.path}/"}
      return
    bucket, _, path = rest.rstrip("/").partition("/")
    if scheme not in _DRIVERS or not bucket:
      raise InputError(f"{self._name!r} is no place for activations: give a folder, s3://BUCKET/PATH or "
                       "gs://BUCKET/PATH")
    self._spec = {"driver": _DRIVERS[scheme], "bucket": bucket, "path": f"{path}/" if path else ""}
    endpoint = _endpoint() if scheme == "s3" else None
    if endpoint:
      region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
      self._spec |= {"endpoint": endpoint, "aws_region": region}

  def __str__(self):
    return self._name

  def named(self, name):
    """How a message names a file of it."""
    return f"{self._name}/{name}"

  def array_spec(self, name):
    """tensorstore's key-value store of an array in the folder."""
    return {**self._spec, "path": f"{self._spec['path']}{name}/"}

  @functools.cached_property
  def _files(self):
    return ts.KvStore.open(self._spec, context=context()).result(timeout=_ANSWER_SECONDS)

  def reach(self, to_write=False):
    """Tries the place once, so that one that cannot be used is known of within seconds and before any work.

    Args:
      to_write: whether files are to be written there; a local folder is then made.

    Raises:
      InputError: it cannot be reached, or not be written.
      OSError: there is no room for it.
    """
    if self.path is None:
      return self._reach_server()
    if not to_write:
      return None
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      why = None if os.access(self.path, os.W_OK) else "it is not writable"
    except OSError as error:
      if error.errno in _NO_ROOM:
        raise
      why = error.strerror
    if why:
      raise InputError(f"cannot write {self}/: {why}; name another folder for the activations")

  def _reach_server(self):
    """Connects to an object store, unless by way of a proxy, and asks for a file that need not be there."""
    driver = self._spec["driver"]
    server = self._spec.get("endpoint") or ("https://storage.googleapis.com" if driver == "gcs" else
                                            f"https://{self._spec['bucket']}.s3.amazonaws.com")
    variables = ("AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" if driver == "s3" else
                 "GOOGLE_APPLICATION_CREDENTIALS")
    failed = lambda why: InputError(f"cannot reach {self}: {server} {why}; check the address, the network, and the "
                                    f"environment variables {variables}")
    url = urllib.parse.urlsplit(server)
    if not url.hostname:
      raise failed("is no address: it must be like http://HOST:PORT")
    if url.scheme not in urllib.request.getproxies() or urllib.request.proxy_bypass(url.hostname):
      try:
        socket.create_connection((url.hostname, url.port or (80 if url.scheme == "http" else 443)),
                                 _CONNECT_SECONDS).close()
      except TimeoutError:
        raise failed(f"does not accept a connection within {_CONNECT_SECONDS:g} s") from None
      except (OSError, ValueError) as error:  # a port beyond 65,535 is a ValueError
        raise failed(f"cannot be connected to ({getattr(error, 'strerror', None) or error})") from error
    try:
      self._files.read("header.json").result(timeout=_ANSWER_SECONDS)
    except TimeoutError:
      raise failed(f"accepts a connection, but does not answer within {_ANSWER_SECONDS:g} s") from None
    except (ValueError, OSError) as error:
      raise failed(f"answers with an error ({_shortened(error)})") from error

  def _do(self, what, name, act):
    try:
      return act().result()
    except (ValueError, OSError) as error:
      message = f"cannot {what} {self.named(name)}: {_shortened(error)}"
      # What cannot be written is the machine's fault: that it could at first was seen by `reach`.
      if what != "write":
        raise InputError(message) from error
      raise OSError(f"{message}; once that is mended give the same command again: it goes on from there") from error

  def read(self, name):
    """The bytes of a file, or `None` where there is none.

    Raises:
      InputError: the place cannot be reached.
    """
    found = self._do("read", name, lambda: self._files.read(name))
    return found.value if found.state == "value" else None

  def write(self, name, content, by_each=False):
    """Writes a file, whole or not at all. Of a job's processes only the first does, or, with `by_each`, this one.

    Raises:
      OSError: the place cannot be reached or is full.
    """
    if by_each or distributed.is_first():
      self._do("write", name, lambda: self._files.write(name, content))

  def read_generation(self, name):
    """(the bytes of a file or `None`, what stands for this content of it), for `swap`.

    Raises:
      InputError: the place cannot be reached.
    """
    found = self._do("read", name, lambda: self._files.read(name))
    return (found.value if found.state == "value" else None), found.stamp.generation

  def swap(self, name, content, generation):
    """Writes a file, or with `None` deletes it, if it still has the content that `generation` stands for.

    Returns:
      What stands for the new content; `None` if something else was written meanwhile, and nothing was done.

    Raises:
      OSError: the place cannot be reached or is full.
    """
    return self._do("write", name, lambda: self._files.write(name, content, if_equal=generation)).generation or None

  def delete(self, name):
    """Deletes a file, if there is one."""
    self._do("delete", name, lambda: self._files.write(name, None))

  def names(self, folder):
    """Names of the files in a folder within this one, without that folder's name."""
    within = ts.KvStore.KeyRange(f"{folder}/", f"{folder}0")  # "0" is what follows "/"
    return [key.decode()[len(folder) + 1:] for key in self._do("list", folder, lambda: self._files.list(within))]

  def size(self, name):
    """Bytes of a file, `None` where there is none; to be asked of local folders."""
    try:
      return (self.path / name).stat().st_size
    except FileNotFoundError:
      return None

  def read_json(self, name):
    """A JSON file's value, or `None` where there is none."""
    content = self.read(name)
    return None if content is None else files.parsed(content, self.named(name))

  def write_json(self, name, value):
    self.write(name, json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n")

  def read_npz(self, name):
    """The dict of arrays that `write_npz` wrote, or `None` where there is none.

    Raises:
      InputError: the file is damaged.
    """
    content = self.read(name)
    return None if content is None else files.unpacked(content, self.named(name))

  def write_npz(self, name, arrays, by_each=False):
    content = io.BytesIO()
    np.savez(content, **arrays)
    self.write(name, content.getvalue(), by_each)


def _endpoint():
  """The server that s3:// stands for, if the environment names one."""
  return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _shortened(error):
  """An error of tensorstore in one line, without what it appends on its own source and settings."""
  return re.sub(r" *\[(source locations|tensorstore_spec)=.*", "", " ".join(str(error).split()))
