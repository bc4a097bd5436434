"""The commands, each with its help text, its flags and what it does; `monojax/cli.py` runs them."""

import sys

from absl import flags

from monojax import cli
from monojax.cli import Command, own
from monojax.config import require
from monojax.evidence_commands import EVIDENCE, define_dictionary
from monojax.study_commands import STUDIES

# Settings of --sae that the benchmark takes; the others are the recipes' own.
_BENCHMARKED = ("n_features", "reads", "writes", "batch_rows", "buffer_rows", "n_steps", "warmup_steps", "scan_steps",
                "checkpoint_every_steps", "val_tokens")


def _one_stage(name: str):
  """What a command does that is one stage of a run: the stage, and its figures printed."""
  def main() -> None:
    from monojax.pipeline.checks import look_ahead
    from monojax.pipeline.stages import IN_ORDER
    run, config = cli.run_and_config()
    look_ahead(run, config, (name,))
    cli.print_figures(IN_ORDER[name](run, config)["figures"])
  return main


def _whole_run() -> None:
  from monojax.pipeline.checks import look_ahead
  from monojax.pipeline.stages import IN_ORDER
  run, config = cli.run_and_config()
  look_ahead(run, config, IN_ORDER)
  for stage in IN_ORDER.values():
    stage(run, config)
  print()
  cli.print_figures(run.write_summary())
  print(f"\nOpen {run.directory / 'browser' / 'site' / 'index.html'} in a browser.")


def _pretrained() -> None:
  from monojax.pipeline import load, plan, stages
  from monojax.pipeline.checks import look_ahead
  from monojax.pipeline.stages import IN_ORDER
  run, config = cli.run_and_config(default_preset="pretrained")
  require(config.subject.weights, "--subject.weights", "", "name a pretrained transformer: a Hugging Face folder, "
          "hf:NAME, or a .gguf file")
  look_ahead(run, config, IN_ORDER)
  if not run.stage("sae"):
    n_available = load.tokens_meta(run)["n_tokens"]["train"] if run.stage("tokens") else 0
    print(plan.of_run(config, n_available, flags.FLAGS.each_site))
  if flags.FLAGS.plan_only:
    return
  for stage in IN_ORDER.values():
    stage(run, config)
  homes = [""] + (stages.each_site(run, config) if flags.FLAGS.each_site else [])
  print()
  cli.print_figures(run.write_summary())
  for home in homes:
    print(f"\nOpen {run.directory / f'{home}browser' / 'site' / 'index.html'} in a browser.")


def _define_pretrained() -> None:
  _define_source_alias()
  own(flags.DEFINE_boolean("each_site", False, "train, analyse and show a dictionary of each of "
                            "activations.more_sites, too, with the same settings; each is in dictionaries/SITE"))
  own(flags.DEFINE_boolean("plan_only", False, "print what the run will take, and do nothing"))


def _define_source_alias() -> None:
  flags.DEFINE_alias("source", "activations.source")


def _define_demo() -> None:
  flags.FLAGS["workdir"].default, flags.FLAGS["workdir"].value = "runs/demo", "runs/demo"
  _define_source_alias()


def _define_train_sae() -> None:
  own(flags.DEFINE_string("name", "", "train a dictionary beside the run's own, in dictionaries/NAME"))
  own(flags.DEFINE_boolean("extend", False, "train a finished dictionary further, to the larger --sae.n_steps given"))


def _train_sae() -> None:
  from monojax.pipeline.checks import look_ahead
  from monojax.pipeline.folder import OWN_DICTIONARY
  from monojax.pipeline.settings import stage_of_name
  from monojax.pipeline.stages import harvest, train_sae, write_comparison
  from monojax.pipeline.stages.activations import adopted
  name = flags.FLAGS.name
  stage = stage_of_name(name, "--name") if name else OWN_DICTIONARY
  run, config = cli.run_and_config(stage)
  if not run.begun("activations") and not run.begun("subject"):
    require(config.activations.url, "--activations.url", "",
            f"{run.directory} has no activations: harvest them first (`monojax harvest`), or say where activations of "
            "your own are")
    config = adopted(config, flags.FLAGS["activations.site"].value or "")
  look_ahead(run, config, (stage,))
  if config.activations.source == "given":
    harvest(run, config)
  cli.print_figures(train_sae(run, config, stage, flags.FLAGS.extend)["figures"])
  if name:
    write_comparison(run)


def _sweep() -> None:
  from monojax.pipeline import stages
  from monojax.pipeline.checks import look_ahead
  from monojax.pipeline.folder import SWEEPS
  run, config = cli.run_and_config()
  look_ahead(run, config, (f"{SWEEPS}/{config.sweep.name}",))
  stages.sweep(run, config)
  stages.write_comparison(run)
  print((run.directory / "sweeps" / "all.csv").read_text(), end="")


def _benchmark() -> None:
  from monojax.pipeline.checks import look_ahead
  from monojax.pipeline.folder import SWEEPS
  from monojax.pipeline.settings import remembered
  from monojax.studies.recipes.study import compare_recipes, recipes_for
  run, config = cli.run_and_config(f"{SWEEPS}/benchmark")  # its steps are not those of the run's own dictionary
  look_ahead(run, config, [f"{SWEEPS}/benchmark-{recipe}" for recipe in recipes_for(run, config)])
  compare_recipes(run, config, remembered(run, flags.FLAGS.preset).preset)


def _analyze() -> None:
  from monojax.pipeline.stages import analyze
  run, config = cli.run_and_config()
  cli.print_figures(analyze(run, config, flags.FLAGS.dictionary)["figures"])


def _build_browser() -> None:
  from monojax.pipeline.stages import build_all, build_browser
  run, config = cli.run_and_config()
  if flags.FLAGS.all:
    require(flags.FLAGS.dictionary == "sae", "--dictionary", flags.FLAGS.dictionary, "with --all there are all of them")
    print(f"Open {build_all(run, config)} in a browser.")
    return
  build_browser(run, config, flags.FLAGS.dictionary)
  home = run.dictionary(flags.FLAGS.dictionary).home
  print(f"Open {run.directory / f'{home}browser' / 'site' / 'index.html'} in a browser.")


def _define_build_browser() -> None:
  define_dictionary()
  own(flags.DEFINE_boolean("all", False, "the pages of every dictionary that was analysed, in the run's folder pages, "
                            "with a switch between them and a page that compares them"))


def _define_serve() -> None:
  from monojax.browser.config import ServeConfig
  cli.define_study_flags(ServeConfig, "the folder of a run whose pages are built")
  define_dictionary()


def _serve() -> None:
  from monojax.browser.config import ServeConfig
  from monojax.browser.serve import make_server, require_site
  from monojax.pipeline import load
  from monojax.pipeline.live_answers import live_answers
  run, config = cli.study_run_and_config(ServeConfig(), lambda _: None, "run")
  site = run.directory / f"{run.dictionary(flags.FLAGS.dictionary).home}browser" / "site"
  require_site(site)
  loaded = load.load(run.directory, flags.FLAGS.dictionary)
  with make_server(site, live_answers(loaded), config.port, loaded.subject.output == "logits") as server:
    print(f"Open http://localhost:{server.server_port}/#/try in a browser on this machine. Ctrl-C ends this.",
          flush=True)
    try:
      server.serve_forever()
    except KeyboardInterrupt:
      print()


def _define_watch() -> None:
  from monojax.browser.config import WatchConfig
  cli.define_study_flags(WatchConfig, "the run's folder")


def _watch() -> None:
  import time

  import jax

  from monojax.browser.config import WatchConfig
  from monojax.pipeline import watch
  jax.config.update("jax_platforms", "cpu")  # an accelerator is the run's, which is going on
  run, config = cli.study_run_and_config(WatchConfig(), lambda _: None, "run")
  page, found = watch.write_page(run), None
  print(f"Open {page} in a browser. Ctrl-C ends this.", flush=True)
  try:
    while True:
      time.sleep(config.seconds)
      found = watch.write_progress(run, found)
  except KeyboardInterrupt:
    print()


def _define_check_store() -> None:
  own(flags.DEFINE_boolean("repair", False, "harvest damaged shards again"))


def _check_store() -> None:
  from monojax.pipeline.stages import check_store
  run, config = cli.run_and_config()
  damaged = check_store(run, config, flags.FLAGS.repair)
  print(f"{len(damaged)} damaged shards" + (", harvested again" if damaged and flags.FLAGS.repair else ""))
  sys.exit(1 if damaged and not flags.FLAGS.repair else 0)


def _define_source() -> None:
  from monojax.interop.names import FORMATS
  own(flags.DEFINE_string("source", None, "what is read: a folder or file of another tool, a dictionary's folder or a "
                           "run's, or either on the Hugging Face hub, hf:NAME[@REVISION]/PATH"))
  own(flags.DEFINE_enum("source_format", "auto", ("auto", *FORMATS), "what the source is; auto lets its files tell"))
  own(flags.DEFINE_integer("k", None, "features of a row that a TopK source keeps, where its files do not say",
                            lower_bound=1))
  own(flags.DEFINE_list("sites", None, "the site that the source reads, and the one that it writes if that is "
                         "another, where its files do not say; for instance layer.3.mlp.in,layer.3.mlp.out"))


def _read_source():
  """The dictionary that the flags of `_define_source` name."""
  from monojax import interop
  values = flags.FLAGS
  require(values.source, "--source", values.source, "name the dictionary to read")
  return interop.read(values.source, values.source_format, values.k, tuple(values.sites or ()))


def _define_convert_sae() -> None:
  from monojax.interop.names import WRITTEN
  _define_source()
  own(flags.DEFINE_string("target", None, "the folder that is written"))
  own(flags.DEFINE_enum("format", "safetensors", WRITTEN, "the files that are written"))
  own(flags.DEFINE_string("model_name", "", "the subject's name on the Hugging Face hub, which the files say"))


def _convert_sae() -> None:
  from monojax import interop
  values = flags.FLAGS
  require(values.target, "--target", values.target, "name the folder to write")
  from monojax.pipeline.load import told_to_others
  sae, told = _read_source(), told_to_others(values.source)
  name = told.pop("model_name", "")
  # What another tool's files said of a dictionary that a run has taken in is true of it still.
  interop.write(sae, values.target, values.format, values.model_name or name, {} if sae.about.get("interop") else told)
  print(f"{values.target}: {sae.n_features:,} features as {values.format}")


def _define_adopt_sae() -> None:
  own(flags.DEFINE_string("name", None, "what it is called in the run: it becomes dictionaries/NAME"))
  _define_source()


def _adopt_sae() -> None:
  from monojax.interop.fitted import fitted
  from monojax.pipeline.load import layout_of
  from monojax.pipeline.settings import stage_of_name
  from monojax.pipeline.stages import adopt_sae, write_comparison
  require(flags.FLAGS.name, "--name", flags.FLAGS.name, "say what it is called in the run")
  stage_of_name(flags.FLAGS.name, "--name")
  run, config = cli.run_and_config()
  sae = fitted(_read_source(), *layout_of(run))
  cli.print_figures(adopt_sae(run, config, flags.FLAGS.name, sae, flags.FLAGS.source)["figures"])
  write_comparison(run)


_ALL = ("tokens", "subject", "activations", "sae", "frontier", "analysis", "browser", "mesh", "metrics")

COMMANDS = {
    "demo": Command(
        "the whole pipeline on the text that comes with monojax, in minutes", """\
Makes the demo: from text that comes with monojax to pages of features, in minutes on two cores.

  {command}
  {command} --workdir=runs/mine

The same command resumes an interrupted demo. It is `monojax monosemanticity --preset=demo`.
""", _whole_run, _ALL, define=_define_demo),
    "monosemanticity": Command(
        "every stage of a run, from documents to pages of features", """\
From documents to pages of features: every stage of Towards Monosemanticity.

  {command} --preset=demo --workdir=runs/demo
  {command} --preset=small --workdir=runs/small --tokens.paths='corpus/*.jsonl'

Stages: tokens, subject, activations, sae, frontier, analysis, browser. Each leaves its folder in the workdir. The same
command skips what is finished and resumes what was interrupted. Presets: `demo` takes minutes on two cores and the text
that comes with monojax; `small` takes an hour on two cores and some hundred megabytes of text; `paper` has the paper's
sizes, for an accelerator. Every setting below is a flag. With --source=stream activations are computed where the
dictionary trains, instead of being stored first.
""", _whole_run, _ALL, define=_define_source_alias),
    "pretrained": Command(
        "a pretrained transformer to pages of its features", """\
A dictionary of a transformer that was trained elsewhere: from its weights and a text to pages of features.

  {command} --workdir=runs/smol --subject.weights=hf:HuggingFaceTB/SmolLM2-135M
  {command} --workdir=runs/mine --subject.weights=FOLDER --activations.site=layer.15.resid --tokens.paths='*.jsonl'
  {command} --workdir=runs/mine --subject.weights=MODEL.gguf --activations.site=layer.-1.mlp.hidden --plan_only
  {command} --workdir=runs/mine --subject.weights=FOLDER --activations.site=layer.15.resid \
      --activations.more_sites=layer.3.mlp.hidden,layer.-1.mlp.hidden --each_site

Weights are a Hugging Face folder (config.json, *.safetensors, tokenizer.json), hf:NAME or hf:NAME@REVISION, or a .gguf
file, of GPT-2, GPT-NeoX (Pythia), Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3, or BERT. The text is cut by the model's
own tokenizer. A plan of memory, disk and time is printed first. The same command skips what is finished and resumes
what was interrupted. Sites are named layer.L.resid, layer.L.mlp.hidden, layer.L.mlp.out, layer.L.attn.z and so on;
layer.-1 is the last. The first position of each context, where transformers keep a sink of attention, is left out.
""", _pretrained, _ALL, define=_define_pretrained, preset="pretrained"),
    "prepare_text": Command(
        "documents to tokens", """\
Turns documents into tokens: trains (or takes) a tokenizer and writes a run's folder `tokens/`.

  {command} --workdir=runs/mine --tokens.paths='data/*.jsonl.zst'
  {command} --workdir=runs/mine --tokens.paths=data/ --tokens.domain_field=meta.source
  {command} --workdir=runs/mine --tokens.paths=stories.txt --tokens.separator='\\n\\n\\n'
  {command} --workdir=runs/mine --tokens.paths=hf:NAME:SUBSET:SPLIT --tokens.tokenizer=tokenizer.json

Reads JSON lines (a field `text`, and optionally `domain`) and plain text, each also as .gz, .xz or .zst; .parquet
tables; globs, folders, and Hugging Face datasets. Text is in UTF-8, or in UTF-16 with a byte order mark. Without
--tokens.paths it takes the text that comes with monojax. A tokenizer that is given is tried on some of the text first,
and what it loses of it is told. The same command resumes what was interrupted, skips what is finished, and stops if the
text has changed since.
""", _one_stage("tokens"), ("tokens",)),
    "train_subject": Command(
        "tokens to a trained transformer, the subject", """\
Trains the transformer under study on a run's tokens and measures it on held-out text.

  {command} --workdir=runs/mine --subject.n_steps=5000

The same command resumes interrupted training from the last checkpoint and ends with the same weights.
""", _one_stage("subject"), ("subject", "mesh", "metrics")),
    "harvest": Command(
        "a subject and tokens to a store of activations", """\
Runs a run's subject over its training tokens and stores the activations of one or more sites.

  {command} --workdir=runs/mine --activations.site=layer.0.mlp.hidden
  {command} --workdir=runs/mine --activations.url=s3://bucket/mine --activations.dtype=int8
  {command} --workdir=runs/mine --activations.more_sites=layer.0.mlp.in,layer.0.mlp.out

The subject runs up to the last of the sites and no further. An interrupted harvest resumes at the first shard that is
not finished, and ends with the same bytes.
""", _one_stage("activations"), ("activations", "mesh")),
    "train_sae": Command(
        "activations to a dictionary", """\
Trains a sparse autoencoder on a run's activations and measures it on held-out text.

  {command} --workdir=runs/mine --sae.n_features=4096 --sae.sparsity_coefficient=0.004
  {command} --workdir=runs/demo --name=topk --sae.recipe=topk --sae.k=16
  {command} --workdir=runs/mine --name=mlp --sae.reads=layer.0.mlp.in --sae.writes=layer.0.mlp.out
  {command} --workdir=runs/own --activations.url=PATH      (activations of your own; no subject is needed)
  {command} --workdir=runs/demo --extend --sae.n_steps=2000

Steer by L0, cross-entropy recovered and dead features together: losses at different penalties do not compare.

A run has one dictionary of its own, in sae/, which the analysis and the pages are of unless they are told otherwise.
With --name another one is trained beside it, in dictionaries/NAME. With --extend a finished one is trained for more
steps.
""", _train_sae, ("sae", "activations", "mesh", "metrics"), {"activations": ("url", "site")}, _define_train_sae),
    "train_frontier": Command(
        "the dictionary again at other sparsities", """\
Trains a run's dictionary again at other penalties: sparsity against recovered loss, as a table.

  {command} --workdir=runs/mine --frontier.sparsities=0.001,0.002,0.008

Writes frontier/frontier.csv and frontier.json. With --frontier.n_steps each starts from the main dictionary and goes on
for so many steps; by default each is trained from the start, for as long as the main one.
""", _one_stage("frontier"), ("frontier", "mesh", "metrics")),
    "benchmark": Command(
        "all recipes compared on a run's activations", """\
Trains every recipe at several sparsities, sizes and seeds on a run's activations, and compares the dictionaries.

  {command} --workdir=runs/demo --sae.n_steps=300
  {command} --workdir=runs/smollm2 --benchmark.recipes=topk,batchtopk,jumprelu --benchmark.seeds=0,1

All of them see the same rows, for as many steps. They are compared at equal L0: by the cross-entropy that they recover
and the variance that they explain on held-out text; by how well labels of their features predict, and how well their
best features tell classes of text, both on text that these were not chosen on; and by how many features dictionaries of
other seeds have, too. Intervals are over seeds. Beside that every recipe is trained on trees of planted features, whose
truth is known. Leaves points.csv, at_l0.csv and planted.csv (and .json of each) and, with matplotlib, benchmark.png in
benchmark/, and the dictionaries in sweeps/benchmark-RECIPE. The same command resumes where it was interrupted.
""", _benchmark, ("benchmark", "sae", "mesh", "metrics"), {"sae": _BENCHMARKED}),
    "sweep": Command(
        "a grid of dictionaries in one pass over the activations", """\
Trains a grid of dictionaries in one pass over a run's activations, and draws their frontier.

  {command} --workdir=runs/demo --sweep.name=topk --sae.recipe=topk --sweep.sparsities=8,16,32,64
  {command} --workdir=runs/demo --sweep.name=rates --sweep.learning_rates=1e-3,3e-3 --sweep.seeds=0,1

Dictionaries of one shape share one compiled step. Writes sweeps/NAME/points.csv; and over every sweep of the run
sweeps/all.csv, all.json and (with matplotlib, in the extra `report`) frontier.png. Study a member with
monojax.load(WORKDIR, dictionary="sweeps/NAME/dictionaries/MEMBER").
""", _sweep, ("sweep", "sae", "mesh", "metrics")),
    "analyze": Command(
        "a dictionary to tables of its features", """\
Makes the tables of a dictionary's features: densities, examples, logit weights, detectors of kinds of text.

  {command} --workdir=runs/mine
  {command} --workdir=runs/mine --dictionary=topk

The tables are `monojax.load(WORKDIR).features` in Python, and what the pages show.
""", _analyze, ("analysis",), define=define_dictionary),
    "build_browser": Command(
        "tables of features to pages that open from disk", """\
Writes the pages of a dictionary's features, which open from disk without a server or a network.

  {command} --workdir=runs/mine
  {command} --workdir=runs/mine --dictionary=topk
  {command} --workdir=runs/mine --all
""", _build_browser, ("browser",), define=_define_build_browser),
    "watch": Command(
        "a page that shows a run in progress", """\
Keeps a page up to date that shows a run while it is made: which stages are done, and the curves of training.

  {command} --workdir=runs/mine

Start it beside the run, in another terminal, and open the page, which is in the run's folder `watch`; it needs no
server. The page loads what is new every few seconds.
""", _watch, define=_define_watch),
    "serve": Command(
        "a run's pages, and its model on a reader's own text", """\
Serves a dictionary's pages on this machine, with a page on which features fire on a reader's own text.

  {command} --workdir=runs/smollm2
  {command} --workdir=runs/mine --dictionary=topk --port=8080

A small subject that monojax has trained runs in the page itself, also from disk. This is for those that are too big for
that, and for pretrained ones: the page *Your text* then asks this program for the features on each token, for what the
text would be without a feature, and for continuations with one held. Only this machine can connect.
""", _serve, define=_define_serve),
    **EVIDENCE,
    "check_store": Command(
        "find and repair damage in a store of activations", """\
Verifies a run's stored activations, every byte of them, and repairs what is damaged.

  {command} --workdir=runs/mine
  {command} --workdir=runs/mine --repair

Each shard's size, the checksum of each of its chunks and the sums over its rows are compared with what the harvest
left. With --repair the damaged shards are harvested again from the run's subject and tokens, with the same bytes. Exits
with 1 if damage was found and not repaired.
""", _check_store, ("mesh",), define=_define_check_store),
    "adopt_sae": Command(
        "any tool's dictionary into a run, to be analysed and browsed", """\
Takes a finished dictionary, of whatever tool, into a run that has activations of its sites.

  {command} --workdir=runs/mine --name=theirs --source=hf:owner/name/folder
  {command} --workdir=runs/mine --name=theirs --source=exported --sites=layer.0.mlp.hidden

It is measured on held-out text as the run's own are, and is then a dictionary of the run like any other: analyze,
build_browser and monojax.load take its name.
""", _adopt_sae, ("sae", "mesh"), {"sae": ("val_tokens",)}, _define_adopt_sae),
    "convert_sae": Command(
        "a dictionary from any tool's files to any other's", """\
Reads a dictionary from the files of any tool that monojax knows, and writes it as those of another.

  {command} --source=runs/demo --target=exported --format=sae_lens --model_name=gpt2
  {command} --source=hf:owner/name/folder --target=mine --format=monojax
  {command} --source=layer_12/params.npz --target=twelve --format=sae_lens --sites=layer.12.resid

Reads folders and files of SAELens, sparsify, Gemma Scope, circuit-tracer, dictionary_learning, OpenAI's sparse
autoencoders, Qwen-Scope and monojax. What a format cannot express is refused, with one that can. Weights in float32 are
not changed by a bit, unless something has to be folded into them.
""", _convert_sae, define=_define_convert_sae),
    **EVIDENCE,
    **STUDIES,
}
