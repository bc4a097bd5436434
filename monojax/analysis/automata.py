"""Automata: loops of features, each of which raises tokens on which the next one fires.

A step from feature i to feature j goes through the tokens k that i raises (Towards Monosemanticity, "Finite State
Automata"). Its weight is

  T[i, j] = sum over k of relu(v[i, k]) E[f_j on token k | i fires on the token before it],

where v are logit weights, of which the largest of each feature count. A feature that always fires would be led to by
all. So the *score* of a step is how much more active j is than anywhere, as a share of what it is where it fires:

  score[i, j] = sum over k of relu(v[i, k]) (E[f_j | i, then k] - E[f_j]) / (E[f_j where it fires] - E[f_j])
                / sum over k of relu(v[i, k]).

It is 1 if j is on every token that i raises as active as it ever is on average, and 0 if i and j are independent. A
token that never follows i in the text counts as one on which j is as active as anywhere. A loop is as strong as its
weakest step.

Letters: F features, J of them at a time; N rows, one for each token; V vocabulary; P pairs of a row and a feature that
fires there; K what is kept of longer lists: raised tokens, steps from a feature; S states of a path, R paths.
"""

import dataclasses
import typing
from collections.abc import Callable

import numpy as np
from scipy import sparse

from monojax.activations.kept import EVERY, Kept
from monojax.analysis import text as texts
from monojax.analysis.codes import Codes, collect, tokens_that_fit
from monojax.analysis.config import AutomataConfig
from monojax.analysis.fidelity import make_encode
from monojax.analysis.logits import path_of, used_tokens
from monojax.analysis.matched_effects import logits_of
from monojax.analysis.text import AnalysedText
from monojax.config import require
from monojax.sae.dictionary import SAE
from monojax.subjects.subject import LoadedSubject
from monojax.text.tokens import Tokens

_BLOCK_NUMBERS = 1 << 23  # in a table of features by features, or by tokens, that is computed at a time
_LISTED_STEPS = 12  # the best steps from a feature, along which loops are looked for
_STARTS = 512  # features from which loops are looked for at a time
_LISTED_TOKENS = 6  # of a step

WeightsOf = Callable[[np.ndarray], np.ndarray]


class State(typing.NamedTuple):
  """A feature of a loop, the domain where most of its activation is ("" if none is known), and the share there."""
  feature: int
  domain: str
  share: float


class Step(typing.NamedTuple):
  """A step from a state to the next: its score, and the tokens through which most of it goes in the text."""
  score: float
  tokens: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Loop:
  """Features that lead to one another in a circle.

  Attributes:
    score: that of the weakest step.
    states: the features.
    steps: step i leads from state i to the next one, and the last step back to the first state.
  """
  score: float
  states: list[State]
  steps: list[Step]

  def __str__(self) -> str:
    shown = lambda state: f"{state.feature}" + (f" ({state.domain} {state.share:.0%})" if state.domain else "")
    parts = [f"{shown(state)} --{' '.join(map(repr, step.tokens[:4]))}--> "
             for state, step in zip(self.states, self.steps, strict=True)]
    return f"{self.score:.3f}  {''.join(parts)}{self.states[0].feature}"


@dataclasses.dataclass(frozen=True)
class Automata:
  """The loops of a dictionary's features.

  Attributes:
    loops: those of one state first, then those of two and so on, of each the strongest first.
    figures: "tokens" read, "features" that took part, and for each number of states S "loops_S", how many loops are
      above the smallest score, "best_S", the score of the strongest, and both again with the ending "_shuffled" for the
      control: each feature has the logit weights of another one, drawn at random.
  """
  loops: list[Loop]
  figures: dict[str, int | float]

  def first(self, n: int) -> list[Loop]:
    """The `n` strongest loops of each number of states."""
    sizes = sorted({len(loop.states) for loop in self.loops})
    return [loop for size in sizes for loop in [loop for loop in self.loops if len(loop.states) == size][:n]]

  def to_dict(self) -> dict[str, typing.Any]:
    """All of it, ready for JSON."""
    loops = [{"score": loop.score, "states": [state._asdict() for state in loop.states],
              "steps": [{"score": step.score, "tokens": list(step.tokens)} for step in loop.steps]}
             for loop in self.loops]
    return {"figures": self.figures, "loops": loops}


@dataclasses.dataclass(frozen=True)
class Steps:
  """Pairs of neighbouring rows of a text, and the features that fire on either.

  Attributes:
    token_N: the token of the second row of each pair.
    before_FN: 1 where a feature fires on the first row, a sparse matrix, rows of which are features.
    after_NF: the features' activations on the second row, a sparse matrix of any format.
    documents_F: in how many documents each feature fires.
  """
  token_N: np.ndarray
  before_FN: sparse.csr_matrix
  after_NF: sparse.spmatrix
  documents_F: np.ndarray


def find(config: AutomataConfig, subject: LoadedSubject, sae: SAE, tokens: Tokens, token_strings: list[str],
         kept: Kept = EVERY) -> Automata:
  """The loops of a dictionary's features on a text.

  Args:
    config: how much text, and which loops are listed.
    subject, sae: the subject and its dictionary.
    tokens: the text.
    token_strings: a string for each token id.
    kept: the positions that count.

  Raises:
    InputError: what the features write reaches the logits only through later layers, or not at all.
  """
  found = path_of(subject, sae)
  require(found, "dictionary", "+".join(sae.writes), "what its features write reaches the logits only through later "
          "layers, or not at all, and steps of automata are made of logit weights")
  assert found is not None
  used_V = used_tokens(tokens, subject.model.n_vocab, config.min_token_count)
  codes, text = _read(config, subject, sae, tokens, kept)
  path, columns = found
  weights_of = logits_of(sae.direction_FO[:, columns], path, used_V)
  return of_codes(config, codes, text, weights_of, used_V, token_strings, tokens.domains)


def _read(config: AutomataConfig, subject: LoadedSubject, sae: SAE, tokens: Tokens,
          kept: Kept) -> tuple[Codes, AnalysedText]:
  """The features' activations on some contexts of a text, as many as memory allows, and these contexts."""
  encode_both = make_encode(subject.model, sae.model, sae.reads, kept)
  encode = lambda tokens_BT: encode_both(subject.params, sae.params, tokens_BT)[0]
  size, n_context = config.batch_contexts, subject.n_context
  choose = lambda n_tokens: tokens.choose(n_context, n_tokens, config.seed)
  first_BT = tokens.context(np.resize(choose(size * n_context), size), n_context)
  wanted = min(config.n_tokens or tokens.n_tokens, tokens.n_tokens)
  chosen_C = choose(tokens_that_fit(wanted, float((np.asarray(encode(first_BT)) != 0).sum(1).mean())))
  text = texts.of_contexts(tokens, chosen_C, n_context, kept)
  return collect(encode, texts.batches(tokens, chosen_C, n_context, size), text.n_rows, "features"), text


def of_codes(config: AutomataConfig, codes: Codes, text: AnalysedText, weights_of: WeightsOf, used_V: np.ndarray,
             token_strings: list[str], domains: tuple[str, ...]) -> Automata:
  """The loops of features whose activations on a text are known.

  Args:
    config: which loops are listed.
    codes: the activations.
    text: what their rows are of.
    weights_of: (numbers of features) -> their logit weights (J, V), in any unit.
    used_V: bool, the tokens that can be raised.
    token_strings: a string for each token id.
    domains: names of the text's domains.
  """
  steps = steps_of(codes, text)
  to_FK, score_FK = best_steps(config, steps, weights_of, used_V)
  kept_loops, n_loops = _strongest(config, to_FK, score_FK)
  other_F = np.random.default_rng(config.seed).permutation(len(to_FK))
  shuffled, n_shuffled = _strongest(config, *best_steps(config, steps, lambda feature_J: weights_of(other_F[feature_J]),
                                                        used_V))
  figures: dict[str, int | float] = {"tokens": codes.n_rows, "features": int((score_FK > 0).any(1).sum())}
  for n in range(1, config.n_states + 1):
    for ending, loops, counts in (("", kept_loops, n_loops), ("_shuffled", shuffled, n_shuffled)):
      figures |= {f"loops_{n}{ending}": counts[n],
                  f"best_{n}{ending}": max((score for score, states in loops if len(states) == n), default=0.0)}
  steps = dataclasses.replace(steps, after_NF=steps.after_NF.tocsc())  # of which columns are quickly read
  told = [_told(states, score, (to_FK, score_FK), steps, weights_of, used_V, config.n_raised, token_strings, codes,
                text, domains) for score, states in kept_loops]
  return Automata(told, figures)


def steps_of(codes: Codes, text: AnalysedText) -> Steps:
  """The pairs of neighbouring rows of one context and one document, both of which count."""
  counts_N = np.ones(text.n_rows, bool) if text.counts_N is None else text.counts_N
  pair_N = np.flatnonzero((text.context_N[1:] == text.context_N[:-1]) & (text.document_N[1:] == text.document_N[:-1])
                          & counts_N[1:] & counts_N[:-1])
  n_features = len(codes.start_F) - 1
  active_FN = sparse.csr_matrix((codes.value_P, codes.row_P, codes.start_F), shape=(n_features, text.n_rows))
  active_NF = active_FN.T.tocsr()
  before_FN = active_NF[pair_N].T.tocsr()
  before_FN.data = np.ones_like(before_FN.data)
  documents = np.unique(text.document_N, return_inverse=True)[1]
  feature_P = np.repeat(np.arange(n_features), np.diff(codes.start_F))
  once = np.unique(feature_P * (int(documents.max(initial=0)) + 1) + documents[codes.row_P])
  documents_F = np.bincount(once // (int(documents.max(initial=0)) + 1), minlength=n_features)
  return Steps(text.token_N[pair_N + 1], before_FN, active_NF[pair_N + 1].astype(np.float64), documents_F)


def raised_tokens(weights_of: WeightsOf, feature_J: np.ndarray, used_V: np.ndarray, n_raised: int) -> np.ndarray:
  """relu(v) of some features, (J, V), 0 but for the tokens that each raises most."""
  v_JV = np.where(used_V[None], np.maximum(weights_of(feature_J), 0), 0).astype(np.float64)
  if n_raised < v_JV.shape[1]:
    least_J1 = np.partition(v_JV, -n_raised, axis=1)[:, -n_raised, None]
    v_JV[v_JV < least_J1] = 0
  return v_JV


def step_weights(steps: Steps, feature_J: np.ndarray, v_JV: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """T of the steps from some features to all, and what it is compared with.

  Args:
    steps: the pairs of rows.
    feature_J: the features.
    v_JV: relu of their logit weights.

  Returns:
    (T_JF; seen_J, the sum of relu(v) over the tokens that follow the feature in the text; how many pairs go through a
    raised token, for each feature).
  """
  part_JN = steps.before_FN[feature_J]
  number_P, token_P = np.repeat(np.arange(len(feature_J)), np.diff(part_JN.indptr)), steps.token_N[part_JN.indices]
  v_P = v_JV[number_P, token_P]
  _, place_P, count = np.unique(number_P * v_JV.shape[1] + token_P, return_inverse=True, return_counts=True)
  share_JN = sparse.csr_matrix((v_P / count[place_P], part_JN.indices, part_JN.indptr), shape=part_JN.shape)
  seen_J = np.asarray(share_JN.sum(1))[:, 0]
  n_steps_J = np.bincount(number_P, v_P > 0, minlength=len(feature_J))
  share_JN.eliminate_zeros()
  return (share_JN @ steps.after_NF).toarray(), seen_J, n_steps_J


def best_steps(config: AutomataConfig, steps: Steps, weights_of: WeightsOf,
               used_V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The best steps from each feature, (features that they lead to, scores), of shape (F, K); -1 and 0 where none is.

  A feature takes part if it fires in enough documents, and is often enough followed by a token that it raises.
  """
  n_features, n_pairs = steps.before_FN.shape[0], max(1, len(steps.token_N))
  sum_F, fires_F = np.asarray(steps.after_NF.sum(0))[0], np.asarray((steps.after_NF > 0).sum(0))[0]
  mean_F, typical_F = sum_F / n_pairs, sum_F / np.maximum(fires_F, 1)
  can_F = (steps.documents_F >= config.min_documents) & (typical_F > mean_F)
  n_listed = min(_LISTED_STEPS, n_features)
  to_FK, score_FK = np.full((n_features, n_listed), -1), np.zeros((n_features, n_listed))
  block = max(1, _BLOCK_NUMBERS // max(n_features, len(used_V)))
  able = np.flatnonzero(can_F)
  for first in range(0, len(able), block):
    feature_J = able[first:first + block]
    v_JV = raised_tokens(weights_of, feature_J, used_V, config.n_raised)
    weight_JF, seen_J, n_steps_J = step_weights(steps, feature_J, v_JV)
    all_J1 = np.maximum(v_JV.sum(1, keepdims=True), 1e-30)
    score_JF = np.divide((weight_JF - seen_J[:, None] * mean_F[None]) / all_J1, (typical_F - mean_F)[None],
                         out=np.zeros_like(weight_JF), where=can_F[None])
    score_JF[n_steps_J < config.min_steps] = 0
    to_JK = np.argpartition(-score_JF, n_listed - 1, axis=1)[:, :n_listed]
    best_JK = np.take_along_axis(score_JF, to_JK, axis=1)
    order_JK = np.argsort(-best_JK, axis=1, kind="stable")
    to_FK[feature_J] = np.take_along_axis(to_JK, order_JK, axis=1)
    score_FK[feature_J] = np.take_along_axis(best_JK, order_JK, axis=1)
  # A step to a feature that does not lead on is no part of a loop.
  leads_F = np.any(score_FK > 0, axis=1)
  score_FK = np.where((score_FK > 0) & leads_F[to_FK], score_FK, 0)
  return np.where(score_FK > 0, to_FK, -1), score_FK


def loops_among(to_FK: np.ndarray, score_FK: np.ndarray, n_states: int,
                min_score: float) -> list[tuple[float, tuple[int, ...]]]:
  """All loops of up to `n_states` features along the given steps, [(score of the weakest step, features)].

  Each loop begins with its smallest number, and no feature is in it twice.
  """
  to_FK = np.where(score_FK >= min_score, to_FK, -1)
  found: list[tuple[float, tuple[int, ...]]] = []
  starts = np.flatnonzero((to_FK >= 0).any(1))
  for first in range(0, len(starts), _STARTS):
    path_RS = starts[first:first + _STARTS, None]
    weakest_R = np.full(len(path_RS), np.inf)
    for length in range(1, n_states + 1):
      to_RK = to_FK[path_RS[:, -1]]
      weakest_RK = np.minimum(weakest_R[:, None], score_FK[path_RS[:, -1]])
      row, column = np.nonzero(to_RK == path_RS[:, :1])
      found += [(float(score), tuple(states)) for score, states in
                zip(weakest_RK[row, column], path_RS[row].tolist(), strict=True)]
      if length == n_states:
        break
      # On to a larger number than the first one's, which is not in the path yet.
      is_new_RK = np.all(to_RK[:, :, None] != path_RS[:, None], axis=2)
      row, column = np.nonzero((to_RK > path_RS[:, :1]) & is_new_RK)
      path_RS = np.concatenate([path_RS[row], to_RK[row, column][:, None]], axis=1)
      weakest_R = weakest_RK[row, column]
  return sorted(found, key=lambda loop: (-loop[0], len(loop[1]), loop[1]))


def _strongest(config: AutomataConfig, to_FK: np.ndarray,
               score_FK: np.ndarray) -> tuple[list[tuple[float, tuple[int, ...]]], dict[int, int]]:
  """(the loops that are listed, those of one state first; {number of states: how many loops there are})."""
  found = loops_among(to_FK, score_FK, config.n_states, config.min_score)
  chosen = telling(found)
  counts = {n: sum(len(states) == n for _, states in chosen) for n in range(1, config.n_states + 1)}
  listed = [loop for n in counts for loop in [loop for loop in chosen if len(loop[1]) == n][:config.n_loops]]
  return listed, counts


def telling(loops: list[tuple[float, tuple[int, ...]]]) -> list[tuple[float, tuple[int, ...]]]:
  """The loops that say more than shorter and stronger ones do.

  A loop is left out if each of its features is in a shorter loop, at least as strong, of some of its features; or if
  a stronger loop of as many features is the same but for one of them, where there are more than two. For instance, of
  three features of base64, each of which leads to itself and to the others, only the three loops of one remain.

  Args:
    loops: the strongest first.
  """
  best: dict[frozenset[int], float] = {}
  for score, states in loops:
    best.setdefault(frozenset(states), score)
  kept: list[tuple[float, tuple[int, ...]]] = []
  of_two: dict[frozenset[int], bool] = {}
  for score, states in loops:
    whole, n = frozenset(states), len(states)
    parts = [frozenset(states[i] for i in range(n) if mask >> i & 1) for mask in range(1, (1 << n) - 1)]
    covered = {state for part in parts if best.get(part, -1.0) >= score for state in part}
    nearly = [whole - {state} for state in states] if n > 2 else [whole]
    if covered != whole and not any(of_two.get(part) for part in nearly):
      kept.append((score, states))
      of_two |= {part: True for part in nearly}
  return kept


def _told(states: tuple[int, ...], score: float, best: tuple[np.ndarray, np.ndarray], steps: Steps,
          weights_of: WeightsOf, used_V: np.ndarray, n_raised: int, token_strings: list[str], codes: Codes,
          text: AnalysedText, domains: tuple[str, ...]) -> Loop:
  """A loop with the tokens of its steps and the domains of its features."""
  to_FK, score_FK = best
  v_SV = raised_tokens(weights_of, np.asarray(states), used_V, n_raised)
  told = []
  for i, state in enumerate(states):
    following = states[(i + 1) % len(states)]
    row_N = steps.before_FN[state].indices
    after_N = steps.after_NF[:, [following]].toarray()[row_N, 0]
    used_by_V = v_SV[i] * np.bincount(steps.token_N[row_N], after_N, minlength=v_SV.shape[1])
    order_K = [k for k in np.argsort(-used_by_V, kind="stable")[:_LISTED_TOKENS].tolist() if used_by_V[k] > 0]
    told.append(Step(float(score_FK[state][to_FK[state] == following][0]), tuple(token_strings[k] for k in order_K)))
  return Loop(score, [_state(state, codes, text, domains) for state in states], told)


def _state(feature: int, codes: Codes, text: AnalysedText, domains: tuple[str, ...]) -> State:
  """A feature with the domain in which most of its activation is."""
  row_P, value_P = codes.feature(feature)
  domain_P = text.domain_N[row_P]
  known_P = domain_P >= 0
  if not domains or not known_P.any():
    return State(feature, "", 0.0)
  mass_L = np.bincount(domain_P[known_P], value_P[known_P], minlength=len(domains))
  return State(feature, domains[int(mass_L.argmax())], float(mass_L.max() / mass_L.sum()))
