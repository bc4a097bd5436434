"""Long calls into compiled code, made in another thread, so that Ctrl-C ends the program while they go on."""

import atexit
import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

_GRACE_SECONDS = 1.0  # how long the program waits at its end for a call that goes on


class Call:
  """A call in another thread, which does not keep the program from ending."""

  def __init__(self, function: Callable[..., Any], *args: Any) -> None:
    """Begins `function(*args)`."""
    self._future: concurrent.futures.Future = concurrent.futures.Future()
    atexit.register(self._end)
    threading.Thread(target=self._work, args=(function, args), daemon=True).start()

  def _work(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
      self._future.set_result(function(*args))
    except BaseException as error:
      self._future.set_exception(error)

  def _end(self) -> None:
    """Gives the call time to end by itself: a thread that returns to Python while that shuts down can crash it."""
    concurrent.futures.wait([self._future], timeout=_GRACE_SECONDS)

  def result(self, every_second: Callable[[], Any] = lambda: None) -> Any:
    """What the call returns or raises; `every_second()` is called while it is waited for.

    Raises:
      KeyboardInterrupt: the user pressed Ctrl-C meanwhile.
    """
    while not concurrent.futures.wait([self._future], timeout=1.0).done:
      every_second()
    atexit.unregister(self._end)
    return self._future.result()
