"""Imports go one way, down the list of rooms in CONTRIBUTING.md; and what must not be known elsewhere is not."""

import ast
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp

from monojax.subjects.config import TransformerConfig
from monojax.subjects.transformer import Transformer

ROOT = pathlib.Path(__file__).parent.parent / "monojax"
FOUNDATION = {"config", "files", "places", "ending", "shuffle", "metrics", "mesh", "checkpoint", "training",
              "host_memory", "benchmark", "linear", "distributed", "variance", "safetensors_header", "hub"}
# Rooms in order: each may import itself, the foundation and the rooms before it, but not those it need not know.
ROOMS = ["text", "subjects", "activations", "sae", "analysis", "browser", "pipeline", "studies", "interop"]
# A dictionary reads and writes other tools' files by itself, through the room that translates them, when asked to.
LATE = {("sae/dictionary.py", "monojax.interop")}
NOT_KNOWN = {"sae": {"text", "subjects"}, "browser": {"text", "subjects", "activations", "sae"}}
TOP = {"cli", "commands", "study_commands", "evidence_commands", "__init__", "__main__"}


def imported(path):
  """Top-level names of what a module imports; for monojax, dotted names. What only a type checker reads is left out."""
  tree = ast.parse(path.read_text())
  blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
  for_checkers = {node for block in blocks for node in ast.walk(block)}
  for node in ast.walk(tree):
    if node in for_checkers:
      continue
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
      if target[0] != "monojax" or len(target) < 2 or (path.relative_to(ROOT).as_posix(), name) in LATE:
        continue
      seen += 1
      if len(parts) == 1:
        assert parts[0] in FOUNDATION and target[1] in FOUNDATION, f"{path} imports {name}"
      else:
        known = set(ROOMS[:ROOMS.index(parts[0]) + 1]) - NOT_KNOWN.get(parts[0], set())
        assert target[1] in FOUNDATION | known, f"{path} imports {name}"
  assert seen > 100


def test_each_outside_library_has_one_home():
  homes = {"orbax": {"checkpoint.py"}, "google_crc32c": {"activations/chunks.py"}}
  for library, files in homes.items():
    users = {path.relative_to(ROOT).as_posix() for path in modules()
             if any(name.split(".")[0] == library for name in imported(path))}
    assert users == files, library
  users = {path.relative_to(ROOT).parts[0] for path in modules()
           if any(name.split(".")[0] == "tensorstore" for name in imported(path))}
  assert users == {"activations"}
  users = {path.relative_to(ROOT).as_posix() for path in modules()
           if any(name.startswith("absl") for name in imported(path))}
  # config.py makes flags of settings for cli.py
  assert users == {"cli.py", "commands.py", "study_commands.py", "evidence_commands.py", "config.py"}


def test_browser_and_text_do_not_need_jax():
  for package in ("browser", "text"):
    for path in (ROOT / package).glob("*.py"):
      assert not any(name.split(".")[0] in ("jax", "flax") for name in imported(path)), path


def parameters_of_families():
  """The names of every parameter of every family of subjects, as the models themselves make them."""
  config = TransformerConfig(n_layers=1, d_model=8, n_heads=2, d_mlp=8, vocab_size=8)
  shapes = jax.eval_shape(lambda key: Transformer(config).init(key, jnp.zeros((1, 2), jnp.int32)), jax.random.key(0))
  return {str(key.key) for path, _ in jax.tree.leaves_with_path(shapes["params"]) for key in path}


def test_only_subjects_name_a_familys_parameters_and_classes():
  """Strings in code, docstrings left out; and attributes and classes by which one could reach into a family."""
  forbidden = parameters_of_families() | {"layer_"}
  assert {"W_out_MD", "W_unembed_DV", "layer_0", "gain_D"} <= forbidden
  for path in modules():
    if path.relative_to(ROOT).parts[0] in ("subjects", "studies"):
      continue
    tree = ast.parse(path.read_text())
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
      if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
        # `interop` knows the files of other tools, which are named layer_3, too.
        of_a_file = path.relative_to(ROOT).parts[0] == "interop" and node.value.startswith("layer_")
        assert of_a_file or not (node.value in forbidden or node.value.startswith("layer_")), (path, node.value)
      if isinstance(node, ast.Name):
        assert node.id != "Transformer", path
    assert not any("subjects.transformer" in name for name in imported(path)), path


def test_help_and_import_load_no_jax():
  for code in ("import monojax; assert monojax.__version__",
               "import sys; sys.argv = ['monojax', '--help']; from monojax.cli import main; main()"):
    check = f"{code}\nimport sys; assert not {{'jax', 'flax', 'orbax', 'tensorstore'}} & set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
