"""What text is read and how it becomes tokens."""

import dataclasses

from monojax.config import option, require

SMALLEST_VOCABULARY = 257  # 256 bytes and the end-of-text token


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Settings of `prepare.prepare`."""
  paths: tuple[str, ...] = option(
      (), "files, directories or globs of *.jsonl and *.txt, each optionally .gz, .xz or .zst, or "
          "hf:NAME[:SPLIT] for a Hugging Face dataset (pip install 'monojax[huggingface]'); empty: the "
          "small multilingual sample that comes with monojax")
  text_field: str = option("text", "the field of a JSON line that holds the document")
  domain_field: str = option("domain", "the field of a JSON line that labels its document; without it, or "
                                       "if empty, the file's or dataset's name does, as for plain text")
  tokenizer: str = option("", "path of an existing tokenizer.json; empty: train a byte-level BPE")
  vocab_size: int = option(2048, "tokens of the BPE that is trained, the end-of-text token included; text "
                                "that yields up to a tenth fewer is taken")
  tokenizer_bytes: int = option(50_000_000, "bytes of text, spread over the corpus, the BPE is trained on")
  val_fraction: float = option(0.05, "the fraction of documents held out, chosen by a hash of their text")
  seed: int = option(0, "chooses which documents are held out")
  max_bytes: int = option(0, "stop after this many bytes of text, files being read in sorted order; 0: all")

  def __post_init__(self):
    require(not isinstance(self.paths, str), "tokens.paths", self.paths, "must be a tuple of strings")
    require(all(self.paths), "tokens.paths", self.paths, "must not hold an empty path")
    require(self.text_field, "tokens.text_field", self.text_field, "must not be empty")
    require(self.tokenizer or self.vocab_size >= SMALLEST_VOCABULARY, "tokens.vocab_size", self.vocab_size,
            f"must be at least {SMALLEST_VOCABULARY}: 256 bytes and the end-of-text token")
    require(self.tokenizer_bytes > 0, "tokens.tokenizer_bytes", self.tokenizer_bytes, "must be positive")
    require(0 < self.val_fraction < 1, "tokens.val_fraction", self.val_fraction,
            "must lie strictly between 0 and 1")
    require(self.seed >= 0, "tokens.seed", self.seed, "must not be negative")
    require(self.max_bytes >= 0, "tokens.max_bytes", self.max_bytes, "must not be negative; 0 reads all")
