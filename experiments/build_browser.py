"""Tables of features to pages that open from disk.

`python experiments/build_browser.py --help` explains it; `monojax build_browser` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("build_browser")
