"""A Hugging Face hub of a few repositories on this machine: what `huggingface_hub` asks when it fetches and sends."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading


class Hub:
  """The state of a hub: {name: {path: content}}, and the names of those that are gated."""

  def __init__(self):
    self.repositories, self.gated, self.commits = {}, set(), []

  def sha(self, name):
    """A commit's name, which changes whenever a file does."""
    content = sorted((path, hashlib.sha256(value).hexdigest()) for path, value in self.repositories[name].items())
    return hashlib.sha1(json.dumps(content).encode()).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers for `self.server.hub`."""
  protocol_version = "HTTP/1.1"

  def log_message(self, *_):
    """Prints nothing."""

  def answer(self, status, content=b"", **headers):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    self.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": len(content), **headers}.items():
      self.send_header(name.replace("_", "-"), str(value))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(content)

  def refuse(self, status, code):
    self.answer(status, {"error": code}, X_Error_Code=code)

  def do_HEAD(self):  # noqa: N802
    self.do_GET()

  def do_GET(self):  # noqa: N802
    hub, path = self.server.hub, self.path.partition("?")[0]
    about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
    file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
    name = (about or file)[1] if about or file else None
    if name not in hub.repositories:
      return self.refuse(404, "RepoNotFound")
    if (about[3] if about else file[2]) not in (None, "main", hub.sha(name)):
      return self.refuse(404, "RevisionNotFound")
    files = hub.repositories[name]
    if about and about[2] == "tree":
      return self.answer(200, [{"type": "file", "path": path, "size": len(value),
                                "oid": hashlib.sha1(value).hexdigest()} for path, value in files.items()])
    if about:
      return self.answer(200, {"id": name, "modelId": name, "sha": hub.sha(name), "private": False,
                               "siblings": [{"rfilename": path} for path in files]})
    if name in hub.gated:
      return self.refuse(403, "GatedRepo")
    if file[3] not in files:
      return self.refuse(404, "EntryNotFound")
    content = files[file[3]]
    return self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=hub.sha(name))

  def do_POST(self):  # noqa: N802
    hub, path = self.server.hub, self.path.partition("?")[0]
    length = self.headers.get("Content-Length")
    body = self.rfile.read(int(length)) if length else b"".join(self.chunks())
    if path == "/api/repos/create":
      given = json.loads(body)
      name = "/".join(filter(None, (given.get("organization"), given["name"])))
      if name in hub.repositories:
        return self.answer(409, {"error": "exists", "url": f"http://{self.headers['Host']}/{name}"})
      hub.repositories[name] = {}
      return self.answer(200, {"url": f"http://{self.headers['Host']}/{name}", "name": name})
    if path == "/api/validate-yaml":
      return self.answer(200, {"errors": [], "warnings": []})
    found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/([^/]+)", path)
    if not found or found[1] not in hub.repositories:
      return self.refuse(404, "RepoNotFound")
    if found[1] in hub.gated:
      return self.answer(403, {"error": "You do not have the right to write here"})
    if found[2] == "preupload":
      return self.answer(200, {"files": [{"path": entry["path"], "uploadMode": "regular", "shouldIgnore": False}
                                         for entry in json.loads(body)["files"]]})
    for line in map(json.loads, body.splitlines()):
      if line["key"] == "file":
        hub.repositories[found[1]][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
      elif line["key"] == "header":
        hub.commits.append(line["value"]["summary"])
    sha = hub.sha(found[1])
    return self.answer(200, {"success": True, "commitOid": sha, "commitUrl": f"http://{self.headers['Host']}/{found[1]}/commit/{sha}"})

  def chunks(self):
    """The parts of a body that is sent in chunks."""
    while size := int(self.rfile.readline(), 16):
      yield self.rfile.read(size)
      self.rfile.readline()
    self.rfile.readline()


@contextlib.contextmanager
def serving():
  """(a `Hub`, its address) while the `with` block lasts."""
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  server.hub = Hub()
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield server.hub, f"http://127.0.0.1:{server.server_address[1]}"
  finally:
    server.shutdown()
    server.server_close()
