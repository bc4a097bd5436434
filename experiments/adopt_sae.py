"""Any tool's dictionary into a run, to be analysed and browsed.

`python experiments/adopt_sae.py --help` explains it; `monojax adopt_sae` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("adopt_sae")
