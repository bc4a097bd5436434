"""A page that shows a run in progress.

`python experiments/watch.py --help` explains it; `monojax watch` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("watch")
