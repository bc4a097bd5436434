"""A map of features: dictionaries laid out by UMAP, in clusters, printed, drawn and kept beside the dictionary."""

import typing

from monojax import config as configs
from monojax import files
from monojax.analysis.config import MapConfig
from monojax.config import require
from monojax.pipeline import load
from monojax.pipeline.folder import OWN_DICTIONARY, RunFolder

if typing.TYPE_CHECKING:
  from monojax.analysis.maps import FeatureMap
  from monojax.pipeline.loaded import LoadedRun

FOLDER = "map"
_SHOWN, _MEMBERS = 12, 3  # clusters that are printed, and features of each


def map_features(run: RunFolder, config: MapConfig, dictionary: str = OWN_DICTIONARY) -> "FeatureMap":
  """Lays out a dictionary's features, and those of others, by UMAP of their directions, and prints the clusters.

  In the folder `map` of the dictionary's home are then `map.json` (the settings and figures), `features.csv` and
  `.json` (a row for each feature, in the order of the list) and `map.png`.

  Args:
    run: the run's folder.
    config: UMAP's settings, and the further dictionaries.
    dictionary: the name of the dictionary, by default the run's own.

  Raises:
    InputError: there is no such dictionary, one is not analysed, they write different sites, or umap-learn is missing.
  """
  from monojax.activations.owner import owned
  from monojax.analysis.pictures import draw_map
  names = [run.dictionary(name).name for name in (dictionary, *config.others)]
  require(len(set(names)) == len(names), "--others", config.others, "names a dictionary that is on the map already")
  loaded = [load.load(run.directory, name) for name in names]
  found, figures = mapped(config, loaded)
  rows = _rows(loaded, found)
  home = run.directory / f"{run.dictionary(dictionary).home}{FOLDER}"
  _print(figures, rows)
  with owned(home):
    files.write_record(home / "map.json", {"dictionaries": names, "settings": configs.to_dict(config),
                                           "figures": figures})
    files.write_table(home / "features", rows)
    drawn = draw_map(rows, home / "map.png")
  print(f"\nSee {home}" + ("" if drawn else "; its picture needs matplotlib, pip install 'monojax[report]'"))
  return found


def places(run: RunFolder, dictionary: str) -> dict[str, list[float | None]] | None:
  """{"x", "y"}: where each feature of a dictionary lies, None where it was left out; None without a map."""
  place = run.dictionary(dictionary)
  rows = files.read_json(run.directory / f"{place.home}{FOLDER}" / "features.json")
  if rows is None:
    return None
  mine = {row["feature"]: row for row in rows if row["dictionary"] == place.name}
  listed = lambda name: [round(mine[i][name], 3) if i in mine else None for i in range(max(mine, default=-1) + 1)]
  return {"x": listed("x"), "y": listed("y")}


def mapped(config: MapConfig, loaded: "list[LoadedRun]") -> "tuple[FeatureMap, dict[str, typing.Any]]":
  """The map of the features that are neither dead nor ultralow, and its figures.

  The figures are the numbers of features and clusters, the share of the features that are in one, and, where the text
  has domains, the share of those whose top domain is the commonest of their cluster: beside it, the same for clusters
  of as many features drawn at random. Directions drawn at random are clustered as well, which tells how many clusters
  the method finds where there are none.
  """
  import numpy as np

  from monojax.analysis import maps
  from monojax.analysis.tables import DEAD, ULTRALOW
  sites = {run.writes for run in loaded}
  require(len(sites) == 1, "--others", [run.dictionary for run in loaded], "must all write the same sites")
  chosen = [np.flatnonzero(~np.isin(run.features.status_F, (DEAD, ULTRALOW))) for run in loaded]
  directions = [run.sae.direction_FO for run in loaded]
  found = maps.make_map(config, directions, chosen)
  rng = np.random.default_rng(config.seed)
  drawn_PO = rng.normal(size=(len(found.feature_P), directions[0].shape[1])).astype(np.float32)
  random_P = maps.clusters(config, maps.unit(drawn_PO))
  inside = found.cluster_P >= 0
  figures = {"features": len(inside), "clusters": found.n_clusters, "in_clusters": float(inside.mean()),
             "clusters_random": int(random_P.max(initial=-1)) + 1, "in_clusters_random": float((random_P >= 0).mean())}
  if all(run.features.domains for run in loaded) and inside.any():
    domain_P = np.concatenate([run.features.domain_share_FD[of_J].argmax(1)
                               for run, of_J in zip(loaded, chosen, strict=True)])[inside]
    cluster_P = found.cluster_P[inside]
    same = lambda of_P: maps.commonest_share(of_P, cluster_P)
    figures |= {"same_domain": same(domain_P),
                "same_domain_shuffled": float(np.mean([same(rng.permutation(domain_P)) for _ in range(20)]))}
  return found, figures


def _rows(loaded: "list[LoadedRun]", found: "FeatureMap") -> list[dict[str, typing.Any]]:
  """A row for each feature of a map, in the order of its list."""
  rows: list[dict[str, typing.Any]] = [{} for _ in found.order_P]
  for i, place in enumerate(found.order_P.tolist()):
    run, feature = loaded[int(found.dictionary_P[i])], int(found.feature_P[i])
    tables = run.features
    x, y = found.place_P2[i].tolist()
    rows[place] = {"dictionary": run.dictionary, "feature": feature, "x": x, "y": y,
                   "cluster": int(found.cluster_P[i]), "label": tables.labels[feature] if tables.labels else "",
                   "density": float(tables.density_F[feature]), "domain": ""}
    if tables.domains:
      rows[place]["domain"] = tables.domains[int(tables.domain_share_FD[feature].argmax())]
  return rows


def _print(figures: dict[str, typing.Any], rows: list[dict[str, typing.Any]]) -> None:
  print(f"{figures['features']:,} features; {figures['clusters']:,} clusters, in which {figures['in_clusters']:.1%} of "
        f"them are; of as many random directions, {figures['clusters_random']:,} clusters with "
        f"{figures['in_clusters_random']:.1%}")
  if "same_domain" in figures:
    print(f"features whose top domain is their cluster's commonest: {figures['same_domain']:.1%}, with domains "
          f"shuffled {figures['same_domain_shuffled']:.1%}")
  members: dict[int, list] = {}
  for row in rows:
    members.setdefault(row["cluster"], []).append(row)
  members.pop(-1, None)
  for number, of in sorted(members.items(), key=lambda item: -len(item[1]))[:_SHOWN]:
    print(f"\ncluster {number}: {len(of)} features")
    for row in of[:_MEMBERS]:
      named = f"{row['dictionary']} {row['feature']}"
      print(f"  {named:<16}{row['domain']:<18}{row['label']}")
