"""One owner for a folder: two commands that write the same one cannot meet.

A process that writes a folder, on a disk or in an object store, keeps a small file `lock.json` in it, which says what
process that is. The file is written by compare-and-swap, so that only one of two processes gets the lock, and renewed
every few seconds. A lock whose process was killed is taken over: at once if that process ran on this machine, and after
a minute without a renewal if it ran on another, since nothing else is known of it. No clocks are compared, so that this
holds on network file systems as well.
"""

import contextlib
import json
import os
import pathlib
import platform
import sys
import threading
import time
import typing
from collections.abc import Iterator

from monojax import distributed, files
from monojax.activations.folder import Folder
from monojax.config import InputError

RENEWED_SECONDS = 10.0  # between two renewals of a lock
SILENT_SECONDS = 60.0  # without a renewal after which the lock of a process on another machine is taken over
_ASKED_SECONDS = 1.0  # between two looks at such a lock


class Holder(typing.NamedTuple):
  """A process that holds a lock.

  Attributes:
    host: the name of its machine.
    machine: what tells the machine, and the process numbers that hold in it, from all others.
    pid: its number there.
    started: when it started, in ticks of that machine's clock; 0 where that cannot be told.
    since: when it took the lock, for people.
    command: what it was called as.
  """
  host: str
  machine: str
  pid: int
  started: int
  since: str
  command: str

  @property
  def process(self) -> tuple[str, int, int]:
    """What tells this process from all others."""
    return self.machine, self.pid, self.started

  def __str__(self) -> str:
    return f"process {self.pid} on {self.host} since {self.since} ({self.command})"


def this_process() -> Holder:
  """This process as a holder from now on."""
  try:  # containers on one machine may share its name, but not its process numbers
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    machine = f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    machine = f"{platform.node()} {platform.system()}"
  command = " ".join([os.path.basename(sys.argv[0] or "python"), *sys.argv[1:]])
  return Holder(platform.node(), machine, os.getpid(), _started(os.getpid()) or 0,
                time.strftime("%Y-%m-%d %H:%M:%S %z"), command if len(command) <= 120 else command[:117] + "...")


def _started(pid: int) -> int | None:
  """When a process of this machine started, in clock ticks; 0 if that cannot be told; None if it has ended."""
  try:
    state, *fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])  # a killed process that nobody has waited for is gone, too
  except OSError:
    if os.path.isdir("/proc/self"):
      return None
  try:
    os.kill(pid, 0)
    return 0
  except ProcessLookupError:
    return None
  except PermissionError:
    return 0


def _is_gone(holder: Holder) -> bool:
  """Whether a process of this machine has ended."""
  started = _started(holder.pid)
  if started is None:
    return True
  return bool(started and holder.started) and started != holder.started


class _Lock(typing.NamedTuple):
  """What a lock's file says: who holds it, and how often it was renewed."""
  holder: Holder
  renewals: int

  @classmethod
  def parsed(cls, content: bytes | None) -> "_Lock | None":
    """The lock in a file's bytes; None where there is none, or nothing that a living process has written."""
    try:
      found = json.loads(content or b"")
      return cls(Holder(**found["holder"]), int(found["renewals"]))
    except (ValueError, TypeError, KeyError):
      return None

  def to_bytes(self) -> bytes:
    return json.dumps({"holder": self.holder._asdict(), "renewals": self.renewals}, indent=1).encode() + b"\n"


@contextlib.contextmanager
def owned(place: str | os.PathLike[str]) -> Iterator[None]:
  """Owns a folder, or the store there, until the `with` block ends.

  In a job of several processes the first one holds the lock for all of them. A folder that this process owns already
  can be owned again, inside of the block.

  Args:
    place: a folder, made if it does not exist, or an object store's URL.

  Raises:
    InputError: another process owns it; the message names it.
  """
  if not distributed.is_first():
    yield
    return
  folder, me = Folder(place), this_process()
  generation = _acquired(folder, me)
  if generation is None:  # by an outer block
    yield
    return
  keeper = _Keeper(folder, me, generation)
  try:
    if folder.path:
      _remove_leftovers(folder.path)
    yield
  finally:
    keeper.release()


def _acquired(folder: Folder, me: Holder) -> bytes | None:
  """Takes the lock: the generation of its file; None where this process holds it already."""
  watched: _Lock | None = None
  since = 0.0
  while True:
    content, generation = folder.read_generation(files.LOCK)
    found = _Lock.parsed(content)
    if found is None or (found.holder.machine == me.machine and _is_gone(found.holder)):
      if taken := folder.swap(files.LOCK, _Lock(me, 0).to_bytes(), generation):
        return taken
      continue  # another process was faster
    if found.holder.process == me.process:
      return None
    if found.holder.machine == me.machine or (watched and found != watched):
      raise InputError(f"{folder} is in use by {found.holder}: wait for it to end, or stop it")
    if watched is None:
      watched, since = found, time.monotonic()
      print(f"{folder} was in use by {found.holder}: waiting up to {SILENT_SECONDS:.0f} s to see whether that process "
            "is still alive", file=sys.stderr, flush=True)
    if time.monotonic() - since > SILENT_SECONDS:
      if taken := folder.swap(files.LOCK, _Lock(me, 0).to_bytes(), generation):
        return taken
      watched = None
    time.sleep(_ASKED_SECONDS)


class _Keeper:
  """Renews a lock in the background until it is released."""

  def __init__(self, folder: Folder, me: Holder, generation: bytes) -> None:
    self._folder, self._me, self._generation = folder, me, generation
    self._done = threading.Event()
    self._thread = threading.Thread(target=self._renew, daemon=True, name="lock")
    self._thread.start()

  def _renew(self) -> None:
    renewals = 0
    while not self._done.wait(RENEWED_SECONDS):
      renewals += 1
      try:
        taken = self._folder.swap(files.LOCK, _Lock(self._me, renewals).to_bytes(), self._generation)
      except (InputError, OSError):  # a full disk, or an object store that does not answer: the next time, perhaps
        continue
      self._generation = taken or self._still_held()

  def _still_held(self) -> bytes:
    """The lock's generation, if it is this process's after all: a renewal can succeed though its answer is lost.

    Otherwise this process was stopped for so long that another one took over. It ends, since nothing more may be
    written.
    """
    try:
      content, generation = self._folder.read_generation(files.LOCK)
    except (InputError, OSError):
      return self._generation
    found = _Lock.parsed(content)
    if found is not None and found.holder.process == self._me.process:
      return generation
    print(f"error: {self._folder} was taken over by another process, since this one did not renew its lock",
          file=sys.stderr, flush=True)
    os._exit(1)

  def release(self) -> None:
    """Gives the lock back."""
    self._done.set()
    self._thread.join()
    with contextlib.suppress(InputError, OSError):  # what is left is taken over, since this process will be gone
      self._folder.swap(files.LOCK, None, self._generation)


def _remove_leftovers(path: pathlib.Path) -> None:
  """Removes the files that a killed process left half written in a folder, but for folders in it with other owners."""
  for folder, folders, names in os.walk(path):
    here = pathlib.Path(folder)
    folders[:] = [name for name in folders if not (here / name / files.LOCK).exists()]
    for name in names:
      if name.endswith(files.PARTIAL):
        (here / name).unlink(missing_ok=True)
