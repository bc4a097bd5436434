"""A text continued with features changed, beside the subject as it is.

`python experiments/steer.py --help` explains it; `monojax steer` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("steer")
