"""Index arithmetic: the difference of two digits that two pointers select, a task whose every variable is known.

A row holds two columns of four digits and a pointer each, [c1 (4), p1, c2 (4), p2]; the answer is |c1[p1] - c2[p2]|.
Digits are U{0..9}, pointers U{0..3}, all independent.
"""

import jax
import jax.numpy as jnp
import numpy as np

from monojax.config import require

WIDTH, N_DIGITS, N_POINTERS = 10, 10, 4
# A row's variables and how many values each has; the sign is that of v1 - v2, plus 1.
VARIABLES = {"p1": N_POINTERS, "p2": N_POINTERS, "v1": N_DIGITS, "v2": N_DIGITS, "sign": 3, "difference": N_DIGITS}


def draw_rows(key, n_rows):
  """(n_rows, 10) float32 rows; to be traced."""
  digit_key, pointer_key = jax.random.split(key)
  digits_B8 = jax.random.randint(digit_key, (n_rows, 8), 0, N_DIGITS)
  pointers_B2 = jax.random.randint(pointer_key, (n_rows, 2), 0, N_POINTERS)
  parts = (digits_B8[:, :4], pointers_B2[:, :1], digits_B8[:, 4:], pointers_B2[:, 1:])
  return jnp.concatenate(parts, axis=1).astype(jnp.float32)


def answers(rows_BI):
  """(B,) answers of rows; of numpy arrays or traced ones."""
  v1_B, v2_B = selected(rows_BI)
  return abs(v1_B - v2_B)


def selected(rows_BI):
  """The two selected digits, each (B,)."""
  xp = np if isinstance(rows_BI, np.ndarray) else jnp
  pick = lambda column_B4, pointer_B: xp.take_along_axis(column_B4, pointer_B.astype(int)[:, None], axis=1)[:, 0]
  return pick(rows_BI[:, :4], rows_BI[:, 4]), pick(rows_BI[:, 5:9], rows_BI[:, 9])


def variables(rows_BI):
  """{name: (B,) int64 values} of the variables behind rows: `VARIABLES`."""
  rows_BI = np.asarray(rows_BI)
  v1_B, v2_B = (v_B.astype(int) for v_B in selected(rows_BI))
  return {"p1": rows_BI[:, 4].astype(int), "p2": rows_BI[:, 9].astype(int), "v1": v1_B, "v2": v2_B,
          "sign": np.sign(v1_B - v2_B) + 1, "difference": np.abs(v1_B - v2_B)}


def changed(rows_BI, variable, rng):
  """Rows like the given ones but for one variable, with as little else changed as possible.

  A pointer points elsewhere; the selected digit of its column is another one. The sign changes by the selected digit
  of either column, to one on another side of the other's; the difference by one on the same side, where there is
  any other.

  Args:
    rows_BI: numpy array.
    variable: a key of `VARIABLES`.
    rng: numpy generator.
  """
  rows_BI, now = np.array(rows_BI), variables(rows_BI)
  if variable in ("p1", "p2"):
    column_B = np.full(len(rows_BI), 4 if variable == "p1" else 9)
    allowed_BV = np.arange(N_POINTERS)[None] != now[variable][:, None]
  else:
    second_B = {"v1": np.zeros(len(rows_BI), bool), "v2": np.ones(len(rows_BI), bool)}.get(
        variable, rng.random(len(rows_BI)) < 0.5)  # whether the second column's digit changes
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


def parse(text):
  """(1, 10) row of ten comma-separated numbers.

  Raises:
    InputError: they are not eight digits and two pointers in their places.
  """
  try:
    row = np.array([[float(part) for part in text.split(",")]], np.float32)
  except ValueError:
    row = np.zeros((1, 0), np.float32)
  limits = np.array([9, 9, 9, 9, 3, 9, 9, 9, 9, 3])
  require(row.shape == (1, WIDTH) and np.all((row >= 0) & (row <= limits) & (row == np.round(row))), "--probe", text,
          "give four digits, a pointer 0..3, four digits and a pointer, such as 8,9,5,1,3,2,9,4,7,1")
  return row
