"""How a command ends when it is interrupted, and what it says of a disk or a file that fails. It imports little."""

import errno
import os
import signal
import sys
import threading
import time
import typing

INTERRUPTED = 130  # the exit status of a command that Ctrl-C ended, as in every shell
_SECONDS = 3.0  # after Ctrl-C a command has so long to end by itself
# What to do about an error of the operating system.
_REMEDIES = {errno.ENOSPC: "make room on that disk", errno.EDQUOT: "make room within the quota",
             errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
             errno.EROFS: "use a disk that can be written", errno.EACCES: "make that writable, or use another folder",
             errno.EPERM: "make that writable, or use another folder"}


def watch() -> None:
  """From now on a command that Ctrl-C does not end within some seconds is ended, wherever it is.

  Python tells the main thread of Ctrl-C only between two of its own instructions. While a library compiles or writes,
  that can be a minute later. What ends here is as safe as a process that is killed: the next call goes on from there.
  """
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

  def wait() -> None:
    while os.read(reader, 1) != bytes([signal.SIGINT]):
      pass
    time.sleep(_SECONDS)
    print(file=sys.stderr)  # a progress bar's line may not have ended
    interrupted()
  threading.Thread(target=wait, name="interrupts", daemon=True).start()


def from_interrupt(error: BaseException) -> bool:
  """Whether Ctrl-C is what an exception was raised for, as by a library that stopped in the middle of being loaded."""
  found: BaseException | None = error
  while found is not None and not isinstance(found, KeyboardInterrupt):
    found = found.__cause__ or found.__context__
  return found is not None


def interrupted() -> typing.NoReturn:
  """Says that the command was interrupted and ends the process at once, so that nothing else is printed after that."""
  if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
