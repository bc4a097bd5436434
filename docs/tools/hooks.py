"""What MkDocs does beside rendering: tables of flags, parts of CONTRIBUTING.md, notebooks without a network.

In a page, a comment of the form `<!-- make: NAME ARGUMENT -->` on a line of its own is replaced by what the function
`make_NAME` returns.
"""

import os
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import flags as flag_tables  # noqa: E402

ROOT = flag_tables.ROOT
MARKER = re.compile(r"^<!-- make: (\w+) ?(.*?) -->$", re.M)
MATHJAX = re.compile(r"<!-- Load mathjax -->.*?<!-- End of mathjax configuration -->", re.S)
MERMAID = re.compile(r"<script type=\"module\">.{0,400}?mermaid.*?</script>", re.S)


def on_config(config):
  """Has the hooks import this checkout's monojax, whether or not one is installed."""
  if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


def on_page_markdown(markdown, page, config, files):
  """Replaces the markers of a page."""
  return MARKER.sub(lambda found: globals()[f"make_{found[1]}"](found[2], page), markdown)


def on_page_content(html, page, config, files):
  """Takes the scripts out of a rendered notebook that would be fetched from the network; no page needs them."""
  if page.file.src_uri.endswith(".ipynb"):
    html = MERMAID.sub("", MATHJAX.sub("", html))
  return html


def make_include(source, page):
  """A file of the repository, or with FILE#NAME its part between the comments `<!-- part: NAME -->` and the next."""
  name, _, part = source.partition("#")
  text = (ROOT / name).read_text()
  if part:
    text = re.search(rf"<!-- part: {part} -->\n(.*?)(?=<!-- part: |\Z)", text, re.S)[1]
  text = re.sub(r"<!-- part: .*? -->\n", "", text)
  here = (pathlib.Path("docs") / page.file.src_uri).parent
  relative = lambda found: f"]({os.path.relpath(found[1], here)}"
  return re.sub(r"\]\((docs/[^)#]+)", relative, text)


def make_run_flags(stage, page):
  """The flags of one stage: their defaults, by preset where presets differ, and their meaning."""
  from monojax.pipeline.presets import PRESETS
  tables = {name: {flag.name: flag for flag in flag_tables.run_settings(config)[stage]}
            for name, config in PRESETS.items()}
  rows = []
  for name, flag in tables["demo"].items():
    values = {preset: table[name].default for preset, table in tables.items()}
    shown = (_code(flag.default) if len(set(values.values())) == 1 else
             "<br>".join(f"{preset}:&nbsp;{_code(value) or 'empty'}" for preset, value in values.items()))
    rows.append((f"`--{name}`", shown, _help(flag)))
  return _table(("flag", "default", "meaning"), rows)


def make_recipe_flags(preset, page):
  """The settings that differ between recipes, with the values that hold in a preset if none is given."""
  from monojax.pipeline.presets import preset as preset_of
  from monojax.sae.recipes import RECIPES
  columns = {recipe: {flag.name: flag.default for flag in flag_tables.settings(
      preset_of(preset, recipe).sae.resolved(), "sae.")} for recipe in RECIPES}
  first = next(iter(columns.values()))
  rows = [(f"`--{name}`", *(_code(column[name]) for column in columns.values())) for name in first
          if name != "sae.recipe" and len({column[name] for column in columns.values()}) > 1]
  return _table(("flag", *(f"`{recipe}`" for recipe in columns)), rows)


def make_recipes(_, page):
  """Every recipe, from its record."""
  from monojax.sae.recipes import RECIPES
  return _table(("recipe", "what it is", "knob", "grid"), [
      (f"`{recipe.name}`", recipe.about, f"`--sae.{recipe.knob}`", flag_tables.typed(recipe.grid).replace(",", ", "))
      for recipe in RECIPES.values()])


def make_script_flags(name, page):
  """The flags that a script has besides those of a run's stages."""
  of_a_run = {flag.name for flags in flag_tables.run_settings(_run_config()).values() for flag in flags}
  rows = [(f"`--{flag.name}`", _code(flag.default), _help(flag))
          for flag in flag_tables.script_flags(flag_tables.EXPERIMENTS / f"{name}.py")
          if flag.name not in of_a_run and flag.name not in COMMON]
  return _table(("flag", "default", "meaning"), rows)


COMMON = ("workdir", "preset", "coordinator", "num_processes", "process_id")


def make_common_flags(_, page):
  """The flags that every script of a run has."""
  found = {flag.name: flag for flag in flag_tables.script_flags(flag_tables.EXPERIMENTS / "monosemanticity.py")}
  return _table(("flag", "default", "meaning"),
                [(f"`--{name}`", _code(found[name].default), _help(found[name])) for name in COMMON])


def make_commands(_, page):
  """Every command, what it does, and the groups of settings that are its flags."""
  from monojax.commands import COMMANDS
  rows = []
  for name, command in COMMANDS.items():
    groups = [f"[`{group}`](#{group})" + (f" ({', '.join(command.only[group])})" if group in command.only else "")
              for group in command.sections]
    rows.append((f"`{name}`", command.what, ", ".join(groups)))
  return _table(("command", "what it does", "groups of settings"), rows)


def make_modules(folders, page):
  """The API of every module in some folders: of `monojax` itself only what lies directly in it."""
  found = []
  for folder in folders.split():
    paths = sorted((ROOT / folder).glob("*.py" if folder == "monojax" else "**/*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    found += [f"::: {name}\n" for name in names if not name.rpartition(".")[2].startswith("__")]
  return "\n".join(found)


def _run_config():
  from monojax.pipeline.presets import PRESETS
  return PRESETS["demo"]


def _code(value):
  return f"`{value}`" if value else ""


def _help(flag):
  """A flag's meaning as a sentence, with its choices."""
  text = re.sub(r" \(default: .*?; a preset may differ\)$", "", flag.help)
  text = text[:1].upper() + text[1:].rstrip(".") + "."
  return text + (f" One of {', '.join(f'`{choice}`' for choice in flag.choices)}." if flag.choices else "")


def _table(heads, rows):
  cell = lambda text: " ".join(str(text).split()).replace("|", "\\|")
  lines = ["| " + " | ".join(map(cell, row)) + " |" for row in (heads, *rows)]
  return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])
