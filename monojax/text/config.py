"""Settings of text: which documents are read, and how they become tokens."""

import dataclasses

from monojax.config import COUNT_OR_0, NOT_NEGATIVE, POSITIVE, PROPER_FRACTION, SEED, option, require, require_rules

DOMAIN_FIELD = "domain"  # the field that is looked for where no other is named; records may lack it
SMALLEST_VOCABULARY = 257  # 256 bytes and the end-of-text token


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Which text a run is made from, how it is cut into tokens, and how much of it is held out (`prepare.prepare`)."""
  paths: tuple[str, ...] = option(
      (), "where the text is: files, directories or globs of *.jsonl and *.txt, each of which may be compressed (.gz, "
          ".xz or .zst), and *.parquet (needs: pip install 'monojax[parquet]'); or hf:NAME, hf:NAME:SPLIT or "
          "hf:NAME:SUBSET:SPLIT for a Hugging Face dataset (needs: pip install 'monojax[huggingface]'). Hidden files "
          "and folders in a directory are left out. By default it is the small multilingual sample that comes with "
          "monojax")
  text_field: str = option("text", "name of the field of a record (a JSON line, a row of a table) that holds the "
                                   "document; meta.body is the field body in the field meta")
  chat_field: str = option("", "name of the field of a record that holds a chat, a list of messages with role and "
                               "content, for instance messages. It is read in the place of text_field, and made text "
                               "by the template of the tokenizer's model, whose marks become special tokens")
  domain_field: str = option(DOMAIN_FIELD, "name of the field of a record that holds the document's domain, which is "
                                           "its label, for instance meta.pile_set_name. Plain text, records without "
                                           "this field, and all records if the name is empty have the name of their "
                                           "file or dataset as their domain")
  separator: str = option("", "text that stands between two documents of a plain file, where \\n is the end of a line. "
                              "By default <|endoftext|> and the end token of --tokens.tokenizer (unless that is also "
                              "a tag of HTML); without any, a plain file is one document")
  tokenizer: str = option("", "tokenizer to use: a tokenizer.json, a folder of a Hugging Face model, hf:NAME or "
                              "hf:NAME@REVISION, or a .gguf file. By default that of subject.weights, or, where a "
                              "subject is trained, a byte-level BPE tokenizer that is trained, too")
  bos: str = option("auto", "whether a BOS token (for BERT: [CLS]) stands in front of every context that the subject "
                            "reads; auto does what the tokenizer's model was trained with", ("auto", "always", "never"))
  end_token: str = option("", "name of the token of --tokens.tokenizer that is put in front of every document, to mark "
                              "where the one before it ends; by default the one that such tokenizers commonly have, "
                              "for instance <|endoftext|>, </s> or <|im_end|>")
  vocab_size: int = option(2048, "number of tokens of the tokenizer that is trained, the end-of-text token included. "
                                 "Text that yields up to a tenth fewer is accepted", COUNT_OR_0)
  tokenizer_bytes: int = option(50_000_000, "bytes of text, spread over the corpus, that the tokenizer is trained on",
                                POSITIVE)
  val_fraction: float = option(0.05, "fraction of the documents that are held out, chosen by a hash of their text",
                               PROPER_FRACTION)
  sample_bytes: int = option(0, "about how many bytes of text are used, in documents chosen by a hash of their text, "
                                "so that every file and domain keeps its share; for a run that needs less text than "
                                "there is. 0 uses all", NOT_NEGATIVE)
  seed: int = option(0, "seed of the choices of documents", SEED)
  max_bytes: int = option(0, "bytes of text after which reading stops, where files are read in the order of their "
                             "names; 0 reads all", NOT_NEGATIVE)

  def __post_init__(self) -> None:
    require_rules(self, "tokens.")
    require(all(self.paths), "tokens.paths", self.paths, "must not hold an empty path")
    require(self.text_field, "tokens.text_field", self.text_field, "must not be empty")
    require(self.tokenizer or self.vocab_size >= SMALLEST_VOCABULARY, "tokens.vocab_size", self.vocab_size,
            f"must be at least {SMALLEST_VOCABULARY}: 256 bytes and the end-of-text token")
