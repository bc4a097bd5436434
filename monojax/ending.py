"""How a command ends when it is interrupted, and what it says of a disk or a file that fails. It imports little."""

import errno
import os
import signal
import sys
import threading
import typing

INTERRUPTED = 130  # the exit status of a command that Ctrl-C ended, as in every shell
_SPOKEN = threading.Lock()
# What to do about an error of the operating system.
_REMEDIES = {errno.ENOSPC: "make room on that disk", errno.EDQUOT: "make room within the quota",
             errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
             errno.EROFS: "use a disk that can be written", errno.EACCES: "make that writable, or use another folder",
             errno.EPERM: "make that writable, or use another folder"}


def watch() -> None:
  """From now on Ctrl-C ends this process at once, wherever it is, with one line and the exit status 130.

  Python itself raises `KeyboardInterrupt` in the main thread, between two of its own instructions. While a library
  compiles or writes, that can be a minute later, and a library that is being loaded prints what it thinks of it. What
  ends here is as safe as a process that is killed: the next call goes on from there.
  """
  if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as for a command in the background of a shell
    return
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

  def wait() -> None:
    while os.read(reader, 1) != bytes([signal.SIGINT]):
      pass
    interrupted(newline=True)
  threading.Thread(target=wait, name="interrupts", daemon=True).start()
  signal.signal(signal.SIGINT, lambda number, frame: None)


def causes(error: BaseException) -> typing.Iterator[BaseException]:
  """An exception, what it was raised for, what that was raised for, and so on; each of them once."""
  found: BaseException | None = error
  seen: list[BaseException] = []
  while found is not None and not any(found is one for one in seen):
    yield found
    seen.append(found)
    found = found.__cause__ or found.__context__


def interrupted(newline: bool = False) -> typing.NoReturn:
  """Says that the command was interrupted and ends the process at once, so that nothing else is printed after that.

  Args:
    newline: whether a progress bar's line may not have ended.
  """
  if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
  _SPOKEN.acquire()  # of two threads that come here at a time, one speaks and ends the process
  if newline:
    print(file=sys.stderr)
  leave(INTERRUPTED, "interrupted; the same command goes on from the last checkpoint")


def leave(code: int, message: str) -> typing.NoReturn:
  """Prints a message and ends the process, without waiting for threads that still write or compute."""
  try:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)
  except (OSError, ValueError):  # nobody reads it
    pass
  finally:
    os._exit(code)


def described(error: OSError) -> str:
  """One line on an error of the operating system: the file, what is wrong with it and what to do."""
  remedy = _REMEDIES.get(error.errno or 0)
  where = f"{ascii(os.fsdecode(error.filename))[1:-1]}: " if error.filename is not None else ""
  what = f"{where}{error.strerror}" if error.strerror else " ".join(str(error).split())
  return what + (f": {remedy}, and give the same command again: it goes on from there" if remedy else "")
