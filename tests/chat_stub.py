"""A server on this machine that speaks the part of OpenAI's protocol that monojax uses, with a model made of a rule."""

import contextlib
import http.server
import json
import re
import threading
import time


class Server:
  """What the stub has been asked and how it behaves.

  Attributes:
    requests: (headers, body) of each request.
    answer: (system, user) -> the text of the model's answer.
    key: what it asks for; "" if nothing.
    status, body: if set, what it answers with instead, `n_failures` times or, by default, always.
  """

  def __init__(self, answer, key=""):
    self.requests, self.answer, self.key = [], answer, key
    self.status, self.body, self.n_failures, self.sleep_s = None, b"", None, 0.0


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers for `self.server.stub`."""

  def log_message(self, *_):
    """Prints nothing."""

  def do_POST(self):  # noqa: N802
    stub = self.server.stub
    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    stub.requests.append((dict(self.headers), body))
    time.sleep(stub.sleep_s)
    fails = stub.status is not None and stub.n_failures != 0
    if fails and stub.n_failures:
      stub.n_failures -= 1
    if fails:
      return self.send(stub.status, stub.body)
    if stub.key and self.headers.get("Authorization") != f"Bearer {stub.key}":
      return self.send(401, b'{"error": {"message": "no such key"}}')
    if self.path != "/v1/chat/completions":
      return self.send(404, b"not found")
    system, user = (message["content"] for message in body["messages"])
    choice = {"index": 0, "message": {"role": "assistant", "content": stub.answer(system, user)}}
    return self.send(200, json.dumps({"object": "chat.completion", "choices": [choice]}).encode())

  def send(self, status, content):
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who asked did not wait
      self.send_response(status)
      self.send_header("Content-Type", "application/json")
      self.send_header("Content-Length", str(len(content)))
      self.end_headers()
      self.wfile.write(content)


@contextlib.contextmanager
def serving(stub):
  """The address of a server that answers as `stub` says."""
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  server.stub = stub
  thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
  thread.start()
  try:
    yield f"http://127.0.0.1:{server.server_port}/v1"
  finally:
    server.shutdown()
    server.server_close()


def model(system, user):
  """A model that names the token with the largest activation, and predicts 9 on that token and 0 elsewhere."""
  if "ready" in user:
    return '{"ready": true}'
  if user.startswith("Passage"):
    lines = [line.split("\t") for line in user.split("\n") if "\t" in line]
    token = max(lines, key=lambda line: int(line[1]))[0]
    return f"<think>Let me {{see}}.</think>\n```json\n{json.dumps({'explanation': f'the token {token}'})}\n```"
  if "plausible" in system:
    return '{"plausible": [1, 2]}'
  token = json.loads(re.search(r'the token (".*")', user.split("\n")[0])[1])
  passages = [line.partition(": ") for line in user.split("\n")[2:]]
  return json.dumps({number: [9 if word == token else 0 for word in json.loads(words)]
                     for number, _, words in passages})
