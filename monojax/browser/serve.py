"""Serves a site of pages on this machine, with answers to what its page "Your text" asks.

Where a subject is too big to run in the page, the page asks for what it would otherwise compute: it sends JSON to
/live/QUESTION and gets JSON back. `monojax.pipeline.live_answers` has the questions. Only this machine can connect, and
only the served page itself may ask: a page of another site that sends something here is refused.
"""

import functools
import http.server
import json
import pathlib
import threading
import traceback
import typing
from collections.abc import Callable, Mapping

from monojax.config import InputError, require

_MOST_BYTES = 1 << 20  # of a question
_MARK = '<meta name="monojax-live" content="{}">'  # by which the page knows that there is somebody to ask
Answers = Mapping[str, Callable[..., dict[str, typing.Any]]]


def require_site(site: pathlib.Path) -> None:
  """Raises `InputError` unless the folder holds a site whose page can ask."""
  require((site / "index.html").is_file(), "workdir", str(site), "has no pages yet: `monojax build_browser` makes them")
  require((site / "assets" / "live_machine.js").is_file(), "workdir", str(site), "has pages of an older monojax, which "
          "cannot ask: delete them and run `monojax build_browser`")


def make_server(site: pathlib.Path, answers: Answers, port: int,
                writes: bool = True) -> http.server.ThreadingHTTPServer:
  """A server on the loopback interface; `serve_forever` runs it, and `server_port` is its port.

  Questions are answered one at a time.

  Args:
    site: the folder of the site.
    answers: {question: a function whose arguments are the fields of the JSON that is sent}.
    port: the port; 0 takes one that is free.
    writes: whether the subject can write on, which an encoder cannot.

  Raises:
    InputError: there is no site that can ask, or the port is taken.
  """
  require_site(site)
  mark = _MARK.format("writes" if writes else "reads")
  handler = functools.partial(_Handler, answers=answers, lock=threading.Lock(), mark=mark, directory=str(site))
  try:
    return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
  except OSError as error:
    raise InputError(f"port={port}: {error.strerror}; choose another, or 0 for any that is free") from None


class _Handler(http.server.SimpleHTTPRequestHandler):
  """Sends the site's files, and answers questions."""

  def __init__(self, *args, answers: Answers, lock: threading.Lock, mark: str, **more):
    self._answers, self._lock, self._mark = answers, lock, mark
    super().__init__(*args, **more)

  def do_GET(self) -> None:
    if self._is_asked_here() and self.path.partition("?")[0] in ("/", "/index.html"):
      text = pathlib.Path(self.directory, "index.html").read_text("utf-8")
      self._send(200, text.replace("<head>", f"<head>\n{self._mark}", 1).encode(), "text/html; charset=utf-8")
    else:
      super().do_GET()

  def send_head(self) -> typing.Any:
    if self._is_asked_here():
      return super().send_head()
    self.send_error(403, "this server is for this machine alone")
    return None

  def list_directory(self, path: typing.Any) -> None:
    self.send_error(404)

  def do_POST(self) -> None:
    length = self.headers.get("Content-Length", "")
    if not length.isdecimal() or int(length) > _MOST_BYTES:
      self.close_connection = True  # what was sent is not read
      self._send_json(413, f'{{"error": "a question has at most {_MOST_BYTES:,} bytes"}}')
      return
    body = self.rfile.read(int(length))
    if self._is_asked_here() and self.headers.get("Content-Type") == "application/json":
      self._send_json(*self._answer(body))
    else:
      self._send_json(403, '{"error": "only the page that this server sends may ask"}')

  def _answer(self, body: bytes) -> tuple[int, str]:
    """(the status, the answer as JSON) to a question."""
    error = lambda text: json.dumps({"error": text})
    function = self._answers.get(self.path.removeprefix("/live/"))
    if function is None:
      return 404, error(f"there is no answer to {self.path}")
    try:
      with self._lock:
        return 200, json.dumps(function(**json.loads(body)), allow_nan=False)
    except (InputError, TypeError, ValueError) as problem:
      return 400, error(str(problem))
    except Exception as problem:  # the page is told, and the program goes on
      traceback.print_exception(problem)
      return 500, error(f"{type(problem).__name__}: {problem}")

  def _is_asked_here(self) -> bool:
    """Whether the request names this server, and comes from its own page if it comes from any.

    A name that another site has made point to this machine is not ours, and neither is a page of that site.
    """
    host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
    port = typing.cast(http.server.HTTPServer, self.server).server_port
    end = "" if port == 80 else f":{port}"
    return host in (f"127.0.0.1{end}", f"localhost{end}") and origin in (None, f"http://{host}")

  def _send_json(self, status: int, text: str) -> None:
    self._send(status, text.encode(), "application/json")

  def _send(self, status: int, body: bytes, kind: str) -> None:
    self.send_response(status)
    self.send_header("Content-Type", kind)
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def end_headers(self) -> None:
    self.send_header("Cache-Control", "no-cache")  # pages are built again under the same names
    self.send_header("X-Content-Type-Options", "nosniff")
    self.send_header("Cross-Origin-Resource-Policy", "same-origin")  # no other site's page may load the data as scripts
    super().end_headers()

  def log_message(self, *_: typing.Any) -> None:
    """Requests are not printed."""
