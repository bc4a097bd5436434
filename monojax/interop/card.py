"""A dictionary on the Hugging Face hub: its files and its model card, sent as one commit."""

import json
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

from monojax import hub
from monojax.config import require
from monojax.interop import convert
from monojax.sae.dictionary import SAE
from monojax.sae.form import form_of

_KINDS = {"relu": "ReLU", "threshold": "JumpReLU, with a threshold for each feature", "topk": "TopK", "gated": "Gated"}


def push(sae: SAE, spec: str, folder: str = "", format: str = "safetensors", private: bool = False,
         figures: Mapping[str, Any] | None = None, **options: Any) -> str:
  """Sends a dictionary to the hub with a model card; see `SAE.push`."""
  place = hub.place_of(spec)
  require(not (folder and place.folder), "folder", folder, f"{spec} names a folder already")
  folder = (folder or place.folder).strip("/")
  revision = f"@{place.revision}" if place.revision else ""
  target = hub.PREFIX + place.name + revision
  with tempfile.TemporaryDirectory() as temporary:
    directory = pathlib.Path(temporary) / "dictionary"
    convert.write(sae, directory, format, **options)
    where = target + (f"/{folder}" if folder else "")
    text = card(sae, where, format, figures or {}, options.get("model_name", ""))
    (directory / "README.md").write_text(text, "utf-8")
    return hub.send(directory, where, f"A sparse autoencoder of {sae.n_features:,} features", private)


def card(sae: SAE, where: str, format: str, figures: Mapping[str, Any], model_name: str = "") -> str:
  """The text of a model card: what the dictionary is, how it is loaded, and its figures.

  Args:
    sae: the dictionary.
    where: its name on the hub, "hf:NAME/FOLDER".
    format: in which files it is.
    figures: {name: number or text}; arrays are left out.
    model_name: the subject's name on the hub, "" if it has none.
  """
  form, wiring = form_of(sae.model), sae.model.wiring
  kind = "autoencoder" if wiring.autoencodes and len(wiring.reads) == 1 else (
      "crosscoder" if len(wiring.reads) > 1 or len(wiring.writes) > 1 else "transcoder")
  facts = {"kind": f"{_KINDS[form.nonlinearity]} {kind}" + (f", k = {form.k}" if form.k else ""),
           "features": f"{sae.n_features:,}", "reads": " and ".join(sae.reads) or f"rows of {wiring.n_inputs} numbers",
           **({} if kind == "autoencoder" else {
               "writes": " and ".join(sae.writes) or f"rows of {wiring.n_outputs} numbers"}),
           **({"subject": model_name} if model_name else {}),
           "recipe": sae.config.recipe if sae.form is None else "another tool's", "files": format}
  shown = {name: value for name, value in figures.items() if isinstance(value, int | float | str) or value is None}
  header = ["---", "library_name: monojax", "tags:", "- sparse-autoencoder", "- interpretability",
            *([f"base_model: {json.dumps(model_name)}"] if model_name else []), "---"]
  lines = [*header, "", f"# A sparse {kind} of {sae.n_features:,} features", "", "| | |", "|---|---|",
           *(f"| {name} | {value} |" for name, value in facts.items()), "", "## How to load it", "", "```python",
           "import monojax", "", f'sae = monojax.SAE.load("{where}")',
           "f_NF = sae.encode(x_NM)  # activations in, features out",
           f"y_NO = sae.decode(f_NF{', x_NM' if sae.model.needs_input else ''})", "```"]
  if shown:
    lines += ["", "## Figures", "", "| | |", "|---|---|", *(f"| {name} | {_shown(value)} |"
                                                           for name, value in shown.items())]
  return "\n".join(lines) + "\n"


def _shown(value: float | str | None) -> str:
  if value is None:
    return "undefined"
  return value if isinstance(value, str) else f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
