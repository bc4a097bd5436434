"""Loops of features as a picture: an SVG file, which needs no library to be drawn and none to be read."""

import html
import math
import os
from collections.abc import Sequence

from monojax import files
from monojax.analysis.automata import Loop

_WIDTH, _HEIGHT, _PER_ROW = 330, 300, 3  # of the field of one loop, and fields side by side
_RING, _RADIUS = 88, 25  # of the circle that features are on, and of a feature
_STYLE = """text{font:12px sans-serif;fill:#222} .small{font-size:10px;fill:#555}
.tokens{font:11px monospace;fill:#0b5394} circle{fill:#fff3d6;stroke:#b8860b;stroke-width:1.5}
path{fill:none;stroke:#666}"""


def draw_loops(loops: Sequence[Loop], path: str | os.PathLike[str]) -> None:
  """Draws each loop in a field of its own: features on a circle, and on each arrow the tokens of its step.

  Args:
    loops: the loops.
    path: the file.
  """
  n_rows = max(1, -(-len(loops) // _PER_ROW))
  width, height = _PER_ROW * _WIDTH, n_rows * _HEIGHT
  parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
           f'viewBox="0 0 {width} {height}"><style>{_STYLE}</style>',
           '<rect width="100%" height="100%" fill="#fff"/><defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" '
           'markerWidth="8" markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z" style="fill:#666"/></marker></defs>']
  for i, loop in enumerate(loops):
    parts += [f'<g transform="translate({i % _PER_ROW * _WIDTH} {i // _PER_ROW * _HEIGHT})">', *_field(loop), "</g>"]
  with files.replacing(path) as file:
    file.write(("\n".join([*parts, "</svg>"]) + "\n").encode())


def _field(loop: Loop) -> list[str]:
  """The elements of one loop, in a field whose upper left corner is 0, 0."""
  n = len(loop.states)
  x, y = _WIDTH / 2, _HEIGHT / 2 + 12
  ring = 0 if n == 1 else _RING
  places = [(x + ring * math.sin(2 * math.pi * i / n), y - ring * math.cos(2 * math.pi * i / n)) for i in range(n)]
  found = [_text(x, 16, f"{loop.score:.2f}")]
  for i, step in enumerate(loop.steps):
    (ax, ay), (bx, by) = places[i], places[(i + 1) % n]
    tokens = " ".join(map(_shown, step.tokens[:3]))
    if n == 1:
      found += [f'<path d="M{ax - 14:.1f} {ay - 22:.1f}C{ax - 70:.1f} {ay - 100:.1f} {ax + 70:.1f} {ay - 100:.1f} '
                f'{ax + 14:.1f} {ay - 22:.1f}" marker-end="url(#tip)"/>', _text(ax, ay - 88, tokens, "tokens")]
      continue
    # An arrow bends to its left, away from the middle and from the arrow that leads back.
    length = math.hypot(bx - ax, by - ay)
    ux, uy = (bx - ax) / length, (by - ay) / length
    bend = 26
    mx, my = (ax + bx) / 2 + bend * uy, (ay + by) / 2 - bend * ux
    sx, sy, tx, ty = ax + _RADIUS * ux, ay + _RADIUS * uy, bx - _RADIUS * ux, by - _RADIUS * uy
    found += [f'<path d="M{sx:.1f} {sy:.1f}Q{mx:.1f} {my:.1f} {tx:.1f} {ty:.1f}" marker-end="url(#tip)"/>',
              _text(mx + 8 * uy, my - 8 * ux + 4, tokens, "tokens",
                    "start" if uy > 0.5 else "end" if uy < -0.5 else "middle")]
  for (cx, cy), state in zip(places, loop.states, strict=True):
    found += [f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="{_RADIUS}"/>', _text(cx, cy + 4, str(state.feature))]
    if state.domain:
      found.append(_text(cx, cy + _RADIUS + 13, f"{state.domain} {state.share:.0%}", "small"))
  return found


def _text(x: float, y: float, text: str, name: str = "", anchor: str = "middle") -> str:
  """A text that begins or ends at a point, or lies around it."""
  style = f' class="{name}"' if name else ""
  return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{html.escape(text)}</text>'


def _shown(token: str) -> str:
  """A token on one line, in quotation marks, so that spaces can be seen; at most 12 letters of it."""
  text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in token)
  return f"“{text if len(text) <= 12 else text[:11] + '…'}”"
