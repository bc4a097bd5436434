"""How the API reference reads the code.

A setting is shown by its default and its help, in place of the call that makes it: the field
`n_steps: int = option(1000, "optimiser steps")` as `n_steps: int = 1000`, with its help as docstring. Lines of a
docstring that are indented after an empty line are code, as in Markdown those are that have four spaces.
"""

import ast
import contextlib
import re
from typing import Any

import griffe

MAKERS = ("option", "only", "nested")  # the functions that make fields; the default is the argument before the help


class Options(griffe.Extension):
  """The extension that mkdocs.yml names."""

  def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
    """Fences the code in one docstring."""
    if obj.docstring is not None:
      obj.docstring.value = fenced(obj.docstring.value)

  def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
    """Rewrites one attribute, before signatures of dataclasses are made of them."""
    call = attr.value
    if not isinstance(call, griffe.ExprCall) or str(call.function) not in MAKERS:
      return
    if str(call.function) == "nested":
      attr.value = f"{call.arguments[0]}()"
      return
    given = [argument for argument in call.arguments if not isinstance(argument, griffe.ExprKeyword)]
    first = 1 if str(call.function) == "only" else 0  # `only` is given the setting's name first
    attr.value = given[first]
    if len(given) > first + 1 and attr.docstring is None:
      with contextlib.suppress(ValueError):  # a help text that is computed is not shown
        text = ast.literal_eval(str(given[first + 1]))
        attr.docstring = griffe.Docstring(text[:1].upper() + text[1:] + ".", parent=attr)


def fenced(text: str) -> str:
  """A docstring whose indented paragraphs, unless they stand right below a heading such as `Args:`, are fenced code."""
  parts, heading = text.split("\n\n"), False
  out: list[str] = []
  for part in parts:
    indented = bool(part.strip()) and all(line.startswith("  ") or not line for line in part.split("\n"))
    if indented and not heading:
      code = "\n".join(line[2:] for line in part.split("\n"))
      if out and out[-1].startswith("```") and out[-1].endswith("```"):
        out[-1] = out[-1][:-3] + "\n" + code + "\n```"
      else:
        out.append(f"```python\n{code}\n```")
    else:
      heading = bool(re.match(r"(Args|Attributes|Returns|Raises|Yields):\n", part)) or (heading and indented)
      out.append(part)
  return "\n\n".join(out)
