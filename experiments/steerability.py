"""Whether features can make a subject write a kind of text.

`python experiments/steerability.py --help` explains it; `monojax steerability` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("steerability")
