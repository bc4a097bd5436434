"""`python -m monojax` is the command `monojax`."""

from monojax.cli import main

if __name__ == "__main__":
  main()
