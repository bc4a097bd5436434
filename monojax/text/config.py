"""Settings of text: which documents are read, and how they become tokens."""

import dataclasses

from monojax.config import COUNT_OR_0, NOT_NEGATIVE, POSITIVE, PROPER_FRACTION, SEED, option, require, require_rules

SMALLEST_VOCABULARY = 257  # 256 bytes and the end-of-text token


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Which text a run is made from, how it is cut into tokens, and how much of it is held out (`prepare.prepare`)."""
  paths: tuple[str, ...] = option(
      (), "where the text is: files, directories or globs of *.jsonl and *.txt, each of which may be compressed (.gz, "
          ".xz or .zst), or hf:NAME[:SPLIT] for a Hugging Face dataset (needs: pip install 'monojax[huggingface]'). "
          "By default it is the small multilingual sample that comes with monojax")
  text_field: str = option("text", "name of the field of a JSON line that holds the document")
  domain_field: str = option("domain", "name of the field of a JSON line that holds the document's domain, which is "
                                       "its label. Plain text, lines without this field, and all lines if the name is "
                                       "empty have the name of their file or dataset as their domain")
  tokenizer: str = option("", "path of a tokenizer.json to use; by default a byte-level BPE tokenizer is trained")
  vocab_size: int = option(2048, "number of tokens of the tokenizer that is trained, the end-of-text token included. "
                                 "Text that yields up to a tenth fewer is accepted", COUNT_OR_0)
  tokenizer_bytes: int = option(50_000_000, "bytes of text, spread over the corpus, that the tokenizer is trained on",
                                POSITIVE)
  val_fraction: float = option(0.05, "fraction of the documents that are held out, chosen by a hash of their text",
                               PROPER_FRACTION)
  seed: int = option(0, "seed of the choice of held-out documents", SEED)
  max_bytes: int = option(0, "bytes of text after which reading stops, where files are read in the order of their "
                             "names; 0 reads all", NOT_NEGATIVE)

  def __post_init__(self) -> None:
    require_rules(self, "tokens.")
    require(all(self.paths), "tokens.paths", self.paths, "must not hold an empty path")
    require(self.text_field, "tokens.text_field", self.text_field, "must not be empty")
    require(self.tokenizer or self.vocab_size >= SMALLEST_VOCABULARY, "tokens.vocab_size", self.vocab_size,
            f"must be at least {SMALLEST_VOCABULARY}: 256 bytes and the end-of-text token")
