"""Examples of a loaded run's features: the windows that the analysis kept, or longer ones read from the run's text.

Letters: E examples, W tokens of an example's window.
"""

import typing

import numpy as np

from monojax.analysis.around import Around, around
from monojax.analysis.tables import EXAMPLE_GROUPS
from monojax.config import require
from monojax.pipeline import load
from monojax.pipeline.answers import Example

if typing.TYPE_CHECKING:
  from monojax.pipeline.loaded import LoadedRun


def examples_of(run: "LoadedRun", feature: int, n: int, group: str, whole_characters: bool, n_tokens: int,
                effects: bool) -> list[Example]:
  """Places in the analysed text where a feature fires; see `LoadedRun.examples`."""
  names = [name for name, _ in EXAMPLE_GROUPS]
  require(group in names, "group", group, f"choose one of {', '.join(names)}")
  tables = run.features
  start = sum(size for _, size in EXAMPLE_GROUPS[:names.index(group)])
  middle_E = tables.example_tokens_FEW[feature, :, tables.example_tokens_FEW.shape[2] // 2]
  here = [e for e in range(start, start + dict(EXAMPLE_GROUPS)[group]) if middle_E[e] >= 0][:n]
  measured = tables.has("example_effects_FEW") and not np.isnan(tables.example_effects_FEW[feature]).any()
  windows = Around(tables.example_tokens_FEW[feature, here], tables.example_acts_FEW[feature, here],
                   tables.example_effects_FEW[feature, here] if measured else None)
  if n_tokens and here:
    windows = _around(run, feature, here, n_tokens, effects)
  return [_example(run, feature, e, windows, i, whole_characters) for i, e in enumerate(here)]


def _around(run: "LoadedRun", feature: int, examples: list[int], n_tokens: int, with_effects: bool) -> Around:
  """The windows of `n_tokens` tokens around some of a feature's examples."""
  require(n_tokens > 0 and n_tokens % 2 == 1, "n_tokens", n_tokens, "must be an odd number, or 0")
  run._require_subject()
  require(run.features.has("example_position_FE"), "n_tokens", n_tokens, "this analysis was made by monojax before "
          "0.2, which did not keep where examples are: delete its folder and run `monojax analyze` again")
  return around(run._subject, run.sae, load.open_tokens(run._folder, "train"), feature,
                run.features.example_position_FE[feature, examples], n_tokens,
                with_effects and run.subject.output == "logits", run.kept)


def _example(run: "LoadedRun", feature: int, e: int, windows: Around, i: int, whole_characters: bool) -> Example:
  """A feature's example number `e`, whose window is number `i` of `windows`."""
  tables, there_W = run.features, windows.ids_EW[i] >= 0
  ids_W, acts_W = windows.ids_EW[i][there_W], windows.acts_EW[i][there_W]
  effects_W = None if windows.effects_EW is None else windows.effects_EW[i][there_W]
  tokens = [tables.token_strings[token] for token in ids_W]
  if whole_characters:
    pieces = tables.pieces(ids_W)
    tokens = [piece.text for piece in pieces]
    acts_W = np.array([acts_W[piece.start:piece.stop].max() for piece in pieces])
    if effects_W is not None:
      effects_W = np.array([effects_W[piece.start:piece.stop].sum() for piece in pieces])

  def listed(name):
    if not tables.has(f"example_{name}_ids_FE5"):
      return ()
    pairs = zip(getattr(tables, f"example_{name}_ids_FE5")[feature, e].tolist(),
                getattr(tables, f"example_{name}_values_FE5")[feature, e].tolist(), strict=True)
    return tuple((tables.token_strings[token], change) for token, change in pairs if token >= 0)
  domain = int(tables.example_domain_FE[feature, e])
  position = int(tables.example_position_FE[feature, e]) if tables.has("example_position_FE") else -1
  return Example(tokens, acts_W, tables.domains[domain] if domain >= 0 else "",
                 int(tables.example_document_FE[feature, e]), effects_W, listed("lowered"), listed("raised"),
                 position)
