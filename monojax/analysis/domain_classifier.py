"""A classifier of text by its domain, trained on a run's own text: what judges whether steering has worked.

It is a multinomial naive Bayes over sequences of one to three characters, of scikit-learn.

Letters: T tokens of a piece of text, V tokens of the vocabulary.
"""

import typing
from collections.abc import Sequence

import numpy as np

from monojax.config import InputError, require
from monojax.text.tokenizer import Tokenizer
from monojax.text.tokens import Tokens

_N_BUCKETS = 1 << 18  # sequences of characters are told apart by a hash of so many values
_SMOOTHING = 0.01     # what is added to each count
_AT_ONCE = 2048       # pieces of text that are read together


class DomainClassifier:
  """Says which of a run's domains pieces of text are of.

  Attributes:
    domains: names of the run's domains.
    known: the numbers of those that it can tell: one whose documents are all shorter than a piece is never said.
  """

  def __init__(self, tokens: Tokens, tokenizer: Tokenizer, n_tokens: int, n_pieces: int, seed: int):
    """Trains it on pieces of the text as long as those that it is asked about, as many of each domain.

    Args:
      tokens: the training split.
      tokenizer: the run's.
      n_tokens: tokens of a piece.
      n_pieces: pieces of all domains together, at most.
      seed: of their choice.

    Raises:
      InputError: scikit-learn is not installed, or fewer than two domains have documents as long as a piece.
    """
    try:
      from sklearn.feature_extraction.text import HashingVectorizer
      from sklearn.naive_bayes import MultinomialNB
    except ImportError as error:
      raise InputError("classifying text needs scikit-learn: pip install 'monojax[probes]'") from error
    require(len(tokens.domains) > 1, "domains", tokens.domains, "the text must have at least two domains")
    self.domains = tokens.domains
    self._tokenizer, self._n_tokens = tokenizer, n_tokens
    self._vectorizer = HashingVectorizer(analyzer="char", ngram_range=(1, 3), lowercase=False, n_features=_N_BUCKETS,
                                         alternate_sign=False, norm=None)
    # Domains count alike, however much text there is of each.
    self._model = MultinomialNB(alpha=_SMOOTHING, fit_prior=False)
    texts, domains = self._pieces(tokens, n_pieces, seed)
    self.known = np.unique(domains)
    there = ", ".join(self.domains[i] for i in self.known) or "none"
    require(len(self.known) > 1, "n_tokens", n_tokens, "a classifier of text needs two domains that have documents "
            f"with so many tokens, and there is {there}: take fewer")
    for start in range(0, len(texts), _AT_ONCE):
      part = slice(start, start + _AT_ONCE)
      self._model.partial_fit(self._vectorizer.transform(texts[part]), domains[part], self.known)

  def _pieces(self, tokens: Tokens, n_pieces: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Pieces that lie within one document each, and the domains of these; about as many of each domain."""
    rng = np.random.default_rng(seed)
    end_D = np.append(tokens.start_D[1:], tokens.n_tokens)
    room_D = end_D - tokens.start_D - 1 - self._n_tokens
    texts, domains = [], []
    for domain in range(len(tokens.domains)):
      documents = np.flatnonzero((tokens.domain_D == domain) & (room_D >= 0))
      if not len(documents):
        continue
      # A long document gives more pieces than a short one.
      share = room_D[documents] + 1.0
      drawn = rng.choice(documents, max(1, n_pieces // len(tokens.domains)), p=share / share.sum())
      start_P = tokens.start_D[drawn] + 1 + rng.integers(0, room_D[drawn] + 1)
      for start in start_P.tolist():
        texts.append(self._tokenizer.decode(tokens.tokens_N[start:start + self._n_tokens].tolist()))
      domains += [domain] * len(drawn)
    order = rng.permutation(len(texts))
    return [texts[i] for i in order], np.asarray(domains)[order]

  def predict(self, texts: Sequence[str]) -> np.ndarray:
    """The number in `domains` of the domain that each text is most likely of."""
    return self._model.predict(self._vectorizer.transform(texts)) if len(texts) else np.zeros(0, int)

  def found(self, tokens: Tokens, classes: dict[str, list[int]], n_pieces: int, seed: int) -> dict[str, typing.Any]:
    """How well it tells classes of domains on other text.

    Args:
      tokens: the held-out split.
      classes: {name: the numbers of the domains that belong to it}.
      n_pieces: pieces of all domains together, at most.
      seed: of their choice.

    Returns:
      {"accuracy": the share of pieces whose domain is told; "classes": {name: {"recall": the share of the class's
      pieces that are called it, None without such pieces; "false": the share of other pieces that are called it}}}.
    """
    texts, domain_P = self._pieces(tokens, n_pieces, seed)
    told_P = self.predict(texts)
    rows = {}
    for name, domains in classes.items():
      is_P, called_P = np.isin(domain_P, domains), np.isin(told_P, domains)
      rows[name] = {"recall": float(called_P[is_P].mean()) if is_P.any() else None,
                    "false": float(called_P[~is_P].mean()) if (~is_P).any() else None}
    return {"accuracy": float((told_P == domain_P).mean()), "classes": rows}
