"""How faithful a dictionary is, with intervals, by domain, and in generated text.

`python experiments/fidelity.py --help` explains it; `monojax fidelity` is the same command.
"""

from monojax.__main__ import script

if __name__ == "__main__":
  script("fidelity")
