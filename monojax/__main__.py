"""`python -m monojax` is the command `monojax`. Commands begin here, so that Ctrl-C is understood from the start on."""


def main() -> None:
  """The installed command `monojax`."""
  _begin(None)


def script(name: str) -> None:
  """The script `experiments/NAME.py`: the command of that name."""
  _begin(name)


def _begin(name: str | None) -> None:
  try:
    from monojax import ending
    ending.watch()
  except KeyboardInterrupt:  # in the first milliseconds
    from monojax import ending
    ending.interrupted()
  from monojax import cli
  if name is None:
    cli.main()
  else:
    cli.run_command(name)


if __name__ == "__main__":
  main()
