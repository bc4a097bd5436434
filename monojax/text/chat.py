"""Chats as text: the messages of a record are put together by the template of the tokenizer's model.

Templates are programs in Jinja, which is optional (pip install 'monojax[pretrained]'), and are run in its sandbox.
"""

import json
from collections.abc import Callable
from typing import Any

from monojax.config import InputError, require
from monojax.text.config import TextConfig
from monojax.text.conventions import Conventions

Render = Callable[[Any], str]  # from messages to text; raises ValueError for what are no messages


def renderer(config: TextConfig, conventions: Conventions) -> Render | None:
  """The function that makes text of the messages of a record, or None where records hold text.

  Where every context has a BOS token in front, the one that the template begins with is taken away, and a chat with
  another one within it is left out: the subject reads it once.

  Raises:
    InputError: chats are asked for and there is no template, or it cannot be used.
  """
  if not config.chat_field:
    return None
  require(conventions.chat_template, "tokens.chat_field", config.chat_field, "the tokenizer has no template for chats: "
          "give that of a model that was made for them with --tokens.tokenizer")
  template = _compiled(conventions.chat_template)
  bos = conventions.bos(config.bos) or ""
  names = {"bos_token": conventions.bos_token or "", "eos_token": conventions.eos_token or "",
           "add_generation_prompt": False}

  def render(messages: Any) -> str:
    if not isinstance(messages, list) or not messages or not all(
        isinstance(message, dict) and "role" in message for message in messages):
      raise ValueError("no list of messages with role and content")
    try:
      text = template.render(messages=messages, **names)
    except Exception as error:  # templates refuse chats by errors of their own, for instance of roles that take turns
      raise ValueError(f"refused by the template: {' '.join(str(error).split())[:100]}") from error
    text = text.removeprefix(bos)
    if bos and bos in text:
      raise ValueError(f"{bos} within the text")
    return text
  return render


def _compiled(source: str) -> Any:
  """A template of Jinja with what templates of models use: errors and JSON."""
  try:
    import jinja2
    import jinja2.sandbox
  except ImportError as error:
    raise InputError("tokens.chat_field: templates of chats need Jinja: pip install 'monojax[pretrained]'") from error

  def refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                             extensions=["jinja2.ext.loopcontrols"])
  environment.globals["raise_exception"] = refuse  # and no date of today, which would make other text every day
  environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
  try:
    return environment.from_string(source)
  except jinja2.TemplateError as error:
    raise InputError(f"tokens.chat_field: the tokenizer's template for chats cannot be used: "
                     f"{' '.join(str(error).split())}") from error
