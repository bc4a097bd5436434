"""The keyed permutation: a bijection, a pure function, and without visible order."""

import numpy as np
import pytest

from monojax.shuffle import permute


def test_bijection_of_every_small_size():
  for size in range(1, 301):
    assert np.array_equal(np.sort(permute(np.arange(size), size, 3, size)), np.arange(size))


@pytest.mark.parametrize("size", [2**16, 2**16 + 1, 2**17 - 1, 300_007])
def test_bijection_of_large_sizes(size):
  image = permute(np.arange(size), size, 0)
  assert image.dtype == np.int64
  assert np.array_equal(np.bincount(image, minlength=size), np.ones(size, np.int64))


def test_sizes_beyond_32_bits_stay_in_range_and_distinct():
  size = 10**12 + 39
  image = permute(np.arange(50_000) + size - 50_000, size, 7)
  assert image.min() >= 0 and image.max() < size and len(np.unique(image)) == 50_000
  assert abs(image.mean() / size - 0.5) < 0.01  # its standard deviation is 0.0013


def test_any_index_alone_gives_what_it_gives_among_others():
  whole = permute(np.arange(1000), 1000, 5, 1)
  assert [int(permute(i, 1000, 5, 1)) for i in range(0, 1000, 97)] == whole[::97].tolist()
  assert np.array_equal(permute(np.arange(1000).reshape(10, 100), 1000, 5, 1), whole.reshape(10, 100))


def test_keys_name_different_permutations():
  images = [permute(np.arange(500), 500, *key) for key in [(0,), (1,), (0, 0), (0, 1), (1, 0)]]
  for i, a in enumerate(images):
    for b in images[:i]:
      assert np.mean(a == b) < 0.02  # one in 500 by chance


@pytest.mark.parametrize("size", [1000, 4096, 5000])
def test_looks_uniform(size):
  n_bins = 10
  n_keys = 40
  tables = np.zeros((n_bins, n_bins))
  for key in range(n_keys):
    image = permute(np.arange(size), size, key)
    np.add.at(tables, (np.arange(size) * n_bins // size, image * n_bins // size), 1)
  expected = size * n_keys / n_bins**2
  chi_square = np.sum((tables - expected) ** 2) / expected
  assert 40 < chi_square < 140  # 81 degrees of freedom: 81 +- 13


@pytest.mark.parametrize("size", [999, 4096])
def test_neighbours_are_unrelated(size):
  for key in range(5):
    image = permute(np.arange(size), size, key).astype(float)
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 5 / size**0.5
    steps = np.diff(image.astype(int)) % size
    assert np.bincount(steps, minlength=size).max() < 10  # no step recurs, as in a linear generator


@pytest.mark.parametrize("size", [1, 2, 3, 17, 1000, 65_537])
def test_an_array_of_keys_names_a_permutation_each(size):
  keys = np.array([0, 7, 3])
  index_KJ = np.broadcast_to(np.arange(size), (len(keys), size))
  images_KJ = permute(index_KJ, size, 4, keys[:, None])
  for key, image_J in zip(keys, images_KJ, strict=True):
    np.testing.assert_array_equal(image_J, permute(np.arange(size), size, 4, int(key)))
