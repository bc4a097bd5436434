"""Data as scripts: a page that was opened from disk may load those, and nothing else."""

import json
import typing


def call(function: str, *arguments: typing.Any) -> str:
  """A script that calls `function`; ASCII, and without "<", whatever the strings hold."""
  texts = [json.dumps(argument, separators=(",", ":"), allow_nan=False) for argument in arguments]
  return f"{function}({','.join(texts)});\n".replace("<", "\\u003c")
