"""Maps of features: planted clusters are found, lists keep clusters whole, and the command leaves its tables."""

import json
import shutil

import numpy as np
import pytest
from tiny_run import run

from monojax.analysis import maps
from monojax.analysis.config import MapConfig
from monojax.config import InputError
from monojax.pipeline import stages
from monojax.pipeline.folder import RunFolder


def planted(n_clusters=8, n_members=12, n_alone=40, width=64, seed=0):
  """(directions_PO, cluster_P): tight clusters around random directions, and directions of no cluster."""
  rng = np.random.default_rng(seed)
  centre_CO = rng.normal(size=(n_clusters, width))
  member_PO = np.repeat(centre_CO, n_members, 0) + 0.2 * rng.normal(size=(n_clusters * n_members, width))
  points_PO = np.concatenate([member_PO, rng.normal(size=(n_alone, width))]).astype(np.float32)
  return points_PO, np.concatenate([np.repeat(np.arange(n_clusters), n_members), np.full(n_alone, maps.ALONE)])


def test_a_list_keeps_clusters_whole_and_begins_each_with_its_medoid():
  points_PO, cluster_P = planted(3, 5, 4)
  points_PO = maps.unit(points_PO)
  mixed_P = np.random.default_rng(1).permutation(len(points_PO))
  points_PO, cluster_P = points_PO[mixed_P], cluster_P[mixed_P]
  seen = []

  def lay_out(items_IO):
    seen.append(items_IO)
    return items_IO[:, :1]  # the place on the line is the first coordinate

  order_P, numbered_P = maps.in_one_line(points_PO, cluster_P, lay_out)
  assert sorted(order_P) == list(range(len(points_PO)))
  listed_P = np.argsort(order_P)
  firsts = []
  for number in range(3):
    place_J = np.sort(order_P[numbered_P == number])
    assert (np.diff(place_J) == 1).all() and len(place_J) == 5
    members_J = np.flatnonzero(numbered_P == number)
    assert len(set(cluster_P[members_J])) == 1
    cosine_JJ = points_PO[members_J] @ points_PO[members_J].T
    assert listed_P[place_J[0]] == members_J[cosine_JJ.sum(1).argmax()]
    firsts.append(place_J[0])
  assert firsts == sorted(firsts)
  alone_P = cluster_P == maps.ALONE
  assert (numbered_P[alone_P] == maps.ALONE).all()
  heads_I = [i for i in listed_P if alone_P[i] or order_P[i] in firsts]
  assert (np.diff(points_PO[heads_I, 0]) >= 0).all() and len(seen[0]) == len(heads_I)


def test_the_share_of_the_commonest_domain():
  assert maps.commonest_share(np.asarray([0, 0, 1, 2, 2, 2]), np.asarray([0, 0, 0, 1, 1, 1])) == pytest.approx(5 / 6)


def test_pages_are_made_again_where_there_is_a_new_map(finished, tmp_path):
  workdir = shutil.copytree(finished[0], tmp_path / "run")
  (workdir / "map").mkdir()
  rows = [{"dictionary": "sae", "feature": 3, "x": 1.5, "y": -2.0},
          {"dictionary": "other", "feature": 0, "x": 1, "y": 1}]
  (workdir / "map" / "features.json").write_text(json.dumps(rows))
  first, again = run("build_browser", workdir), run("build_browser", workdir)
  assert first.returncode == again.returncode == 0, first.stderr[-3000:] + again.stderr[-3000:]
  assert "already done" not in first.stdout and "browser: already done" in again.stdout
  index = (workdir / "browser" / "site" / "data" / "index.js").read_text()
  assert '"map":{"x":[null,null,null,1.5],"y":[null,null,null,-2.0]}' in index


@pytest.mark.slow
def test_planted_clusters_are_found():
  pytest.importorskip("umap")
  points_PO, cluster_P = planted()
  found = maps.make_map(MapConfig(min_cluster_size=5), [points_PO[:60], points_PO],
                        [np.arange(60), np.arange(60, len(points_PO))])
  assert (found.dictionary_P == (np.arange(len(points_PO)) >= 60)).all() and found.place_P2.shape == (136, 2)
  for number in range(8):
    inside = found.cluster_P[cluster_P == number]
    values, counts = np.unique(inside[inside >= 0], return_counts=True)
    assert counts.max() >= 10 and (found.cluster_P == values[counts.argmax()])[cluster_P == number].sum() >= 10
  again = maps.make_map(MapConfig(min_cluster_size=5), [points_PO], [np.arange(len(points_PO))])
  np.testing.assert_array_equal(again.place_P2, found.place_P2)
  near = np.linalg.norm(found.place_P2[:, None] - found.place_P2[None], axis=2)[:96, :96]
  same = cluster_P[:96, None] == cluster_P[None, :96]
  assert near[same].mean() < 0.3 * near[~same].mean()


@pytest.mark.slow
def test_the_command_leaves_a_table_and_a_picture(finished, tmp_path, capsys):
  pytest.importorskip("umap")
  workdir = shutil.copytree(finished[0], tmp_path / "run")
  sparser = next(name for name in RunFolder(workdir).dictionaries() if name.startswith("frontier/"))
  assert run("analyze", workdir, f"--dictionary={sparser}", "--analysis.effects=none").returncode == 0
  found = stages.map_features(RunFolder(workdir), MapConfig(others=(sparser,)))
  rows = json.loads((workdir / "map" / "features.json").read_text())
  assert len(rows) == len(found.feature_P) and {row["dictionary"] for row in rows} == {"sae", sparser}
  assert "random directions" in capsys.readouterr().out and (workdir / "map" / "map.png").stat().st_size > 10_000
  with pytest.raises(InputError, match="on the map already"):
    stages.map_features(RunFolder(workdir), MapConfig(others=("sae",)))
