"""The documentation: it builds without a warning, its links and flags exist, and its Python blocks run.

  python tests/docs_test.py docs/tutorials/demo.md

runs the Python blocks of one page, or the cells of a notebook, in the current folder.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import traceback

import pytest
import warm_scripts
from tiny_run import ENVIRONMENT

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))
EXECUTED = [ROOT / "README.md", *sorted((DOCS / "tutorials").glob("*.md")), *sorted((DOCS / "how-to").glob("*.md")),
            *sorted((DOCS / "concepts").glob("*.md"))]
# What of other programs is named in commands: these and their flags are not monojax's.
OTHER_PROGRAMS = re.compile(r"(srun|mpirun|gcloud|pip|pytest|tensorboard|wandb)\b.*?(?=python experiments|monojax |$)")
NETWORK = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=["']?(?:https?:)?//[^>]*>""")

sys.path.insert(0, str(DOCS / "tools"))
import flags as flag_tables  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Block:
  """A fenced block of a page.

  Attributes:
    language: what stands behind the opening fence.
    line: number of its first line in the page.
    code: its text.
    reason: why it is not executed, if a comment above it says so.
  """
  language: str
  line: int
  code: str
  reason: str


def blocks_of(text):
  """The fenced blocks of a page, in order."""
  pattern = re.compile(r"(?:<!-- not executed: (?P<reason>.+?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$",
                       re.M | re.S)
  return [Block(found["language"], text[:found.start("code")].count("\n") + 1, found["code"], found["reason"] or "")
          for found in pattern.finditer(text)]


def cells_of(notebook):
  """The code cells of a notebook as blocks; magic commands, which begin with %, are left out."""
  cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
  return [Block("python", 1, re.sub(r"^%.*$", "", "".join(cell["source"]), flags=re.M), "") for cell in cells]


def execute(blocks, name):
  """Runs blocks one after the other in one namespace; an error names the page and the line."""
  namespace = {"__name__": "__page__"}
  for block in blocks:
    padded = "\n" * (block.line - 1) + block.code  # so that tracebacks have the page's own line numbers
    exec(compile(padded, name, "exec"), namespace)


def executable(page):
  """The blocks of a page, or cells of a notebook, that are to be executed."""
  if page.suffix == ".ipynb":
    return cells_of(page)
  return [block for block in blocks_of(page.read_text()) if block.language == "python" and not block.reason]


@pytest.fixture
def beside_a_run(finished, tmp_path):
  """A folder with a tiny finished run as `runs/demo`, which the pages name, for anything that they write."""
  shutil.copytree(finished[0], tmp_path / "runs" / "demo")
  return tmp_path


def run_page(page, directory):
  """Executes a page in a process of its own, which sees one device, as most readers' does.

  What a page trains without saying for how long is trained for a few steps.
  """
  result = warm_scripts.run([__file__, str(page), "--quick"], ENVIRONMENT, 600, directory)
  assert result.returncode == 0, result.stderr[-3000:]


def test_blocks_are_found_with_their_lines_and_reasons():
  text = "a\n```python\nx = 1\ny = 2\n```\n\n<!-- not executed: needs a TPU -->\n```python\nz\n```\n```\nplain\n```\n"
  assert blocks_of(text) == [Block("python", 3, "x = 1\ny = 2\n", ""), Block("python", 9, "z\n", "needs a TPU"),
                             Block("", 12, "plain\n", "")]


def test_blocks_share_a_namespace_and_errors_have_the_pages_line():
  with pytest.raises(ZeroDivisionError) as error:
    execute(blocks_of("```python\na = 0\n```\n\ntext\n```python\nb = 1\n1 / a\n```\n"), "page.md")
  frame = traceback.extract_tb(error.value.__traceback__)[-1]
  assert (frame.filename, frame.lineno) == ("page.md", 8)


@pytest.mark.parametrize("page", [page for page in EXECUTED if executable(page)],
                         ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_blocks_run(page, beside_a_run):
  if any("import torch" in block.code for block in executable(page)):
    pytest.importorskip("torch")
  run_page(page, beside_a_run)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(notebook, beside_a_run):
  pytest.importorskip("matplotlib")
  run_page(notebook, beside_a_run)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
  """The site, built as `make docs` builds it."""
  if not all(importlib.util.find_spec(name) for name in ("mkdocs", "material", "mkdocstrings", "mkdocs_jupyter")):
    pytest.skip("the extra docs is not installed")
  built = tmp_path_factory.mktemp("site")
  environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "JAX_PLATFORMS": "cpu"}
  result = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(built)], cwd=ROOT,
                          capture_output=True, text=True, env=environment, timeout=300)
  assert result.returncode == 0, result.stderr[-3000:]
  return built


def test_the_site_builds_strictly(site):
  assert (site / "index.html").is_file() and (site / "tutorials" / "demo.html").is_file()


def test_the_site_needs_no_network(site):
  """Nothing is fetched from elsewhere when a page is opened; links that a reader may follow are no matter."""
  for page in site.rglob("*.html"):
    found = [tag for tag in NETWORK.findall(page.read_text()) if 'rel="canonical"' not in tag]
    assert not found, f"{page.relative_to(site)} fetches {found[:3]}"


def test_every_link_of_the_site_resolves(site):
  """Files and anchors, in the built pages, so also those of generated tables and docstrings."""
  anchors = {page: set(re.findall(r'\b(?:id|name)="?([^"\s>]+)', page.read_text())) for page in site.rglob("*.html")}
  for page in anchors:
    for href in re.findall(r'<a\b[^>]*?\bhref="?([^"\s>]+)', page.read_text()):
      path, _, anchor = href.replace("&amp;", "&").partition("#")
      if re.match(r"[a-z]+:", href) or page.name == "404.html":
        continue
      target = (page.parent / path).resolve() if path else page
      assert target.exists(), f"{page.relative_to(site)} links to {href}"
      if anchor and target in anchors:
        assert anchor in anchors[target] or anchor.startswith("__"), f"{page.relative_to(site)} links to {href}"


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_of_pages_outside_the_site_resolve(page):
  text = page.read_text()
  for target in re.findall(r"\]\(([^)]+)\)", text):
    path, _, anchor = target.partition("#")
    if re.match(r"[a-z]+:", target):
      continue
    assert (page.parent / path).exists(), f"{page.name} links to {target}"
    if anchor and not path:
      headings = [re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
                  for heading in re.findall(r"^#+ (.+)$", text, re.M)]
      assert anchor in headings, f"{page.name} links to {target}"


def test_files_that_the_code_names_in_docs_exist():
  """Docstrings, help texts and errors may send a reader to a page."""
  for path in [*(ROOT / "monojax").rglob("*.py"), *(ROOT / "experiments").glob("*.py"), *(ROOT / "tests").glob("*.py")]:
    for named in re.findall(r"\bdocs/[\w/.-]+\.(?:md|png|ipynb)\b", path.read_text()):
      assert (ROOT / named).exists(), f"{path.relative_to(ROOT)} names {named}"


@pytest.fixture(scope="module")
def known_flags():
  """Every flag of every command, and what absl gives all of them."""
  known = {"help", "helpfull", "flagfile", "version"}
  for script in flag_tables.scripts():
    known |= {flag.name for flag in flag_tables.script_flags(script)}
  return known


def flags_in(text):
  """Names of the flags that a page writes as code, in blocks and in lines."""
  commands = [line for block in blocks_of(text) for line in re.sub(r"\\\n", " ", block.code).split("\n")]
  prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
  for code in commands + re.findall(r"`([^`]+)`", prose):
    yield from re.findall(r"(?<![\w-])--([a-z][\w.]*\w)", OTHER_PROGRAMS.sub("", code))


def test_flags_are_found_in_code_and_only_in_monojaxs_commands():
  text = ("--no `--sae.k=3` and `--mesh.data`\n```\nsrun --nodes=4 python experiments/x.py --workdir=a \\\n"
          "  --tokens.paths=b\npip install --upgrade x\n```\n")
  assert list(flags_in(text)) == ["workdir", "tokens.paths", "sae.k", "mesh.data"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_flags_that_are_named_exist(page, known_flags):
  groups = {name.split(".")[0] for name in known_flags if "." in name}
  for name in flags_in(page.read_text()):
    negated = name.removeprefix("no") in known_flags
    assert name in known_flags or negated or name in groups, f"{page.name} names --{name}, which no command has"


def test_the_notebook_is_what_its_script_writes():
  """`docs/tools/notebook.py` holds the cells; the file beside the tutorials may have outputs besides."""
  spec = importlib.util.spec_from_file_location("notebook", DOCS / "tools" / "notebook.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  saved = json.loads((DOCS / "tutorials" / "study_a_run.ipynb").read_text())["cells"]
  assert [(cell["cell_type"], "".join(cell["source"])) for cell in saved] == module.CELLS


if __name__ == "__main__":
  if "--quick" in sys.argv:
    from monojax.pipeline import train
    train.ROWS_SEEN, train.MIN_STEPS = 50_000, 50
  execute(executable(pathlib.Path(sys.argv[1])), sys.argv[1])
