"""Documents to tokens: trains (or takes) a tokenizer and writes a run's `tokens/` folder.

  python experiments/prepare_text.py --workdir=runs/mine --text.paths='data/*.jsonl.zst'

Reads JSON lines (a field `text`, and optionally `domain`) and plain text, each also as .gz, .xz or .zst,
globs, folders, and Hugging Face datasets as hf:NAME. Without --text.paths it takes the sample in the package.
"""

from monojax import cli

if __name__ == "__main__":
  cli.define_run_flags(["text"])
  cli.run(cli.run_stage("tokens"))
