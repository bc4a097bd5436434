"""Whether features can make a subject write a kind of text: one is pinned, and a classifier judges what is written.

For each class of text some candidate features are tried on a few continuations, and the one of which most are called
the class is then tested on others. Towards Monosemanticity shows single samples with a feature held at its largest
activation, behind the prompt "1,2,3,4,5,6,7,8,9,10"; here the same is counted.

Letters: F features, D domains.
"""

import dataclasses
import typing

import numpy as np

from monojax.analysis.config import SteerabilityConfig
from monojax.analysis.tables import FeatureTables
from monojax.config import require


@dataclasses.dataclass(frozen=True)
class Steerable:
  """What pinning a feature does for one class of text.

  Attributes:
    name: the class.
    feature: the feature that was chosen; None where no feature is a candidate.
    value: the activation at which it was pinned.
    pinned: the share of its continuations that are called the class; None without a feature.
    unpinned: the share of the subject's own continuations that are called it.
    random: the share of continuations with another feature pinned, one drawn at random for each, that are called it.
    called: {domain: how many of the pinned continuations are called it}, the commonest first.
    texts: the pinned continuations.
  """
  name: str
  feature: int | None
  value: float
  pinned: float | None
  unpinned: float
  random: float
  called: dict[str, int]
  texts: list[str]


def candidates(tables: FeatureTables, domains: typing.Sequence[int], n: int, min_share: float = 0.25) -> list[int]:
  """The features that are active most in some domains: by total activation there, of those not mainly active elsewhere.

  Args:
    tables: the feature tables.
    domains: the numbers of the domains.
    n: how many at most.
    min_share: the least share of a feature's activation that is in these domains.
  """
  share_F = tables.domain_share_FD[:, list(domains)].sum(1)
  total_F = np.where(share_F >= min_share, share_F * tables.mean_act_F * tables.n_fires_F, 0)
  return [int(f) for f in np.argsort(-total_F, kind="stable")[:n] if total_F[f] > 0]


def steerability(config: SteerabilityConfig, tables: FeatureTables, classes: dict[str, list[int]],
                 write: typing.Callable[[dict[int, float], int], str],
                 classify: typing.Callable[[list[str]], np.ndarray],
                 progress: typing.Callable[[], None] = lambda: None) -> list[Steerable]:
  """Pins a feature for each class, and counts which continuations are called it.

  Args:
    config: how many continuations, and how features are chosen.
    tables: the feature tables.
    classes: {name: the numbers of its domains}.
    write: ({feature: value}, seed) -> a continuation, without the prompt.
    classify: texts -> the number of the domain of each.
    progress: is called after each continuation.
  """
  require(tables.has("domain_share_FD"), "--workdir", "", "this run's text has no domains to be told apart")
  rng = np.random.default_rng(config.seed)
  alive = np.flatnonzero(tables.max_act_F > 0)
  choosing = range(config.n, config.n + config.n_choosing)  # seeds apart from those that are counted

  def written(features_of, seeds):
    texts = []
    for seed in seeds:
      texts.append(write(features_of(seed), config.seed + seed))
      progress()
    return texts

  pin = lambda f: {int(f): float(tables.max_act_F[f])}
  plain_P = classify(written(lambda _: {}, range(config.n)))
  others = rng.choice(alive, config.n)
  random_P = classify(written(lambda seed: pin(others[seed]), range(config.n)))
  found = []
  for name, domains in classes.items():
    share = lambda told_P, domains=domains: float(np.isin(told_P, domains).mean())
    tried = [(share(classify(written(lambda _, f=f: pin(f), choosing))), -place, f)
             for place, f in enumerate(candidates(tables, domains, config.n_candidates))]
    if not tried:
      found.append(Steerable(name, None, 0.0, None, share(plain_P), share(random_P), {}, []))
      continue
    feature = max(tried)[2]
    texts = written(lambda _, f=feature: pin(f), range(config.n))
    told_P = classify(texts)
    counts = np.bincount(told_P, minlength=len(tables.domains))
    called = {tables.domains[d]: int(counts[d]) for d in np.argsort(-counts, kind="stable") if counts[d]}
    found.append(Steerable(name, feature, float(tables.max_act_F[feature]), share(told_P), share(plain_P),
                           share(random_P), called, texts))
  return found
