"""Imports go one way: foundation, text and subjects, activations, sae, analysis, browser."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parent.parent / "monojax"
FOUNDATION = {"config", "files", "shuffle", "metrics", "mesh", "checkpoint", "training", "host_memory",
              "benchmark", "linear", "distributed"}
ALLOWED = {  # package -> packages it may import besides itself and the foundation
    "text": set(), "subjects": {"text"}, "activations": {"text", "subjects"}, "sae": set(),
    "analysis": {"text", "subjects", "activations", "sae"}, "browser": {"analysis"},
}
TOP = {"runs", "stages", "presets", "cli", "studies", "__init__"}  # what puts stages together may import anything


def imported(path):
  """Top-level names of what a module imports; for monojax, dotted names."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield node.module
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules():
  return sorted(path for path in ROOT.rglob("*.py"))


def test_imports_go_down():
  seen = 0
  for path in modules():
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] in TOP:
      continue
    for name in imported(path):
      target = name.split(".")
      if target[0] != "monojax" or len(target) < 2:
        continue
      seen += 1
      if len(parts) == 1:
        assert parts[0] in FOUNDATION and target[1] in FOUNDATION, f"{path} imports {name}"
      else:
        assert target[1] in FOUNDATION | {parts[0]} | ALLOWED[parts[0]], f"{path} imports {name}"
  assert seen > 30


def test_each_outside_library_has_one_home():
  homes = {"orbax": {"checkpoint.py"}, "google_crc32c": {"activations/chunks.py"},
           "tensorstore": {f"activations/{name}.py" for name in ("folder", "layout", "store")}}
  for library, files in homes.items():
    users = {path.relative_to(ROOT).as_posix() for path in modules()
             if any(name.split(".")[0] == library for name in imported(path))}
    assert users == files, library


def test_browser_and_text_do_not_need_jax():
  for package in ("browser", "text"):
    for path in (ROOT / package).glob("*.py"):
      assert not any(name.split(".")[0] in ("jax", "flax") for name in imported(path)), path
