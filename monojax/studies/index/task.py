"""The task of the index-arithmetic study: the difference between two digits that two pointers select.

A row has ten numbers: a column c1 of four digits, a pointer p1 into it, a second column c2 and a pointer p2 into that.
The answer is |c1[p1] - c2[p2]|. For example, the row 8,9,5,1,3,2,9,4,7,1 has c1[3] = 1 and c2[1] = 9, and the answer is
8. Digits are uniform in 0..9 and pointers in 0..3, all independent of each other. Everything that the answer depends on
is thus known, and named: these are the task's variables.

Letters: B rows, I the ten numbers of a row. In this module V is values of a variable.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from monojax.config import require

WIDTH, N_DIGITS, N_POINTERS = 10, 10, 4
N_VALUES = (*[N_DIGITS] * 4, N_POINTERS, *[N_DIGITS] * 4, N_POINTERS)  # how many values each number of a row has
N_SYMBOLS = sum(N_VALUES)
# The variables behind a row and how many values each has: the pointers, the digits that they select, the sign of
# v1 - v2 (0 for -1, 1 for 0, 2 for +1), and the answer |v1 - v2|.
VARIABLES = {"p1": N_POINTERS, "p2": N_POINTERS, "v1": N_DIGITS, "v2": N_DIGITS, "sign": 3, "difference": N_DIGITS}


def draw_rows(key: jax.Array, n_rows: int) -> jax.Array:
  """Random rows, (n_rows, 10), float32; it can be compiled."""
  digit_key, pointer_key = jax.random.split(key)
  digits_B8 = jax.random.randint(digit_key, (n_rows, 8), 0, N_DIGITS)
  pointers_B2 = jax.random.randint(pointer_key, (n_rows, 2), 0, N_POINTERS)
  parts = (digits_B8[:, :4], pointers_B2[:, :1], digits_B8[:, 4:], pointers_B2[:, 1:])
  return jnp.concatenate(parts, axis=1).astype(jnp.float32)


def answers(rows_BI: Any) -> Any:
  """The answer of each row, (B,), an array of NumPy or jax as the rows are."""
  v1_B, v2_B = selected(rows_BI)
  return abs(v1_B - v2_B)


def selected(rows_BI: Any) -> tuple[Any, Any]:
  """The two digits that each row's pointers select, each (B,)."""
  xp: Any = np if isinstance(rows_BI, np.ndarray) else jnp
  pick = lambda column_B4, pointer_B: xp.take_along_axis(column_B4, pointer_B.astype(int)[:, None], axis=1)[:, 0]
  return pick(rows_BI[:, :4], rows_BI[:, 4]), pick(rows_BI[:, 5:9], rows_BI[:, 9])


def answers_with_one_changed(rows_BI: np.ndarray, other_BI: np.ndarray) -> dict[str, np.ndarray]:
  """What the answer would be if one quantity had its value on another row, and all else stayed.

  Moving a pointer selects another digit of the same column; a selected digit is replaced where it is. The sign cannot
  be changed in this way: an absolute difference is the same for either sign. But the answer is the sum of two amounts,
  one for each sign, of which at most one is not 0: "less", by how much v1 < v2, and "more", by how much v1 > v2. Each
  of them can be replaced alone, even where the sum is then no answer of any row.

  Args:
    rows_BI: the rows.
    other_BI: as many other rows.

  Returns:
    {quantity: answers, (B,)} for "p1", "p2", "v1", "v2", "less" and "more".
  """
  (v1_B, v2_B), (other_1_B, other_2_B) = selected(rows_BI), selected(other_BI)
  found = {}
  for pointer, column in (("p1", 4), ("p2", 9)):
    moved_BI = rows_BI.copy()
    moved_BI[:, column] = other_BI[:, column]
    found[pointer] = answers(moved_BI)
  less_B, more_B = np.maximum(v2_B - v1_B, 0), np.maximum(v1_B - v2_B, 0)
  return {**found, "v1": abs(other_1_B - v2_B), "v2": abs(v1_B - other_2_B),
          "less": np.maximum(other_2_B - other_1_B, 0) + more_B, "more": less_B + np.maximum(other_1_B - other_2_B, 0)}


def symbols(rows_BI: Any) -> jax.Array:
  """The rows with each number as a symbol, (B, 88) float32: 1 at the place of its value, 0 at its other values."""
  numbers_BI = jnp.asarray(rows_BI).astype(jnp.int32)
  return jnp.concatenate([jax.nn.one_hot(numbers_BI[:, i], n) for i, n in enumerate(N_VALUES)], axis=1)


def variables(rows_BI: Any) -> dict[str, np.ndarray]:
  """{variable: its value on each row, (B,) int64} for each of `VARIABLES`."""
  rows_BI = np.asarray(rows_BI)
  v1_B, v2_B = (v_B.astype(int) for v_B in selected(rows_BI))
  return {"p1": rows_BI[:, 4].astype(int), "p2": rows_BI[:, 9].astype(int), "v1": v1_B, "v2": v2_B,
          "sign": np.sign(v1_B - v2_B) + 1, "difference": np.abs(v1_B - v2_B)}


def changed(rows_BI: np.ndarray, variable: str, rng: np.random.Generator) -> np.ndarray:
  """Rows in which one number is changed so that a variable takes another value, and others change as little as can be.

  * For "p1" or "p2" the pointer is changed.
  * For "v1" or "v2" the selected digit of that column is changed.
  * For "sign" the selected digit of a random column is changed so that v1 - v2 gets another sign.
  * For "difference" the selected digit of a random column is changed so that |v1 - v2| is different and, if possible,
    the sign is the same.

  Args:
    rows_BI: the rows.
    variable: the name of the variable, a key of `VARIABLES`.
    rng: what random choices are drawn from.
  """
  rows_BI, now = np.array(rows_BI), variables(rows_BI)
  if variable in ("p1", "p2"):
    column_B = np.full(len(rows_BI), 4 if variable == "p1" else 9)
    allowed_BV = np.arange(N_POINTERS)[None] != now[variable][:, None]
  else:
    second_B = {"v1": np.zeros(len(rows_BI), bool), "v2": np.ones(len(rows_BI), bool)}.get(
        variable, rng.random(len(rows_BI)) < 0.5)  # whether it is the second column whose digit changes
    column_B = np.where(second_B, rows_BI[:, 9] + 5, rows_BI[:, 4]).astype(int)
    selected_B, other_B = np.where(second_B, (now["v2"], now["v1"]), (now["v1"], now["v2"]))
    value_1V = np.arange(N_DIGITS)[None]
    allowed_BV = value_1V != selected_B[:, None]
    same_side_BV = np.sign(value_1V - other_B[:, None]) == np.sign(selected_B - other_B)[:, None]
    if variable == "sign":
      allowed_BV &= ~same_side_BV
    if variable == "difference":
      allowed_BV &= np.abs(value_1V - other_B[:, None]) != now["difference"][:, None]
      nearer_BV = allowed_BV & same_side_BV
      allowed_BV = np.where(nearer_BV.any(1, keepdims=True), nearer_BV, allowed_BV)
  rows_BI[np.arange(len(rows_BI)), column_B] = np.where(allowed_BV, rng.random(allowed_BV.shape), -1).argmax(1)
  return rows_BI


def parse(text: str) -> np.ndarray:
  """The row, (1, 10), that ten numbers with commas between them describe.

  Raises:
    InputError: they are not digits and pointers in their places.
  """
  try:
    row = np.array([[float(part) for part in text.split(",")]], np.float32)
  except ValueError:
    row = np.zeros((1, 0), np.float32)
  limits = np.array([9, 9, 9, 9, 3, 9, 9, 9, 9, 3])
  require(row.shape == (1, WIDTH) and np.all((row >= 0) & (row <= limits) & (row == np.round(row))), "--probe", text,
          "give four digits, a pointer 0..3, four digits and a pointer, such as 8,9,5,1,3,2,9,4,7,1")
  return row
