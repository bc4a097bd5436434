"""What verification costs: the checksums of a finished run, written once and compared twice, beside the run's time.

  python experiments/bench_checksums.py --workdir=runs/demo

Each file that has a checksum is read once when the checksum is written, once when a later stage reads the file, and
once when the same command finds the stage done. Files of a store of activations have checksums of their own, which are
part of reading and writing them (`bench_store.py`).
"""

import pathlib
import time

from absl import flags

from monojax import benchmark, cli, files
from monojax.config import require
from monojax.pipeline.folder import RunFolder

flags.DEFINE_string("workdir", None, "the folder of a finished run")
flags.DEFINE_string("out", None, "a JSON file that receives the figures")

_READS = 3  # of each file: see above


def main() -> None:
  """Prints the figures."""
  require(flags.FLAGS.workdir, "--workdir", flags.FLAGS.workdir, "name the folder of a finished run")
  run = RunFolder(flags.FLAGS.workdir)
  folders = [path.parent for path in run.directory.rglob(files.SUMS)]
  seconds = sum(value for name, value in run.write_summary().items() if name.endswith("/seconds"))
  require(folders and seconds, "--workdir", flags.FLAGS.workdir, "holds no finished run with checksums")
  start, n_bytes, n_files = time.perf_counter(), 0, 0
  for folder in folders:
    if fault := files.fault(folder):
      raise files.damaged(folder, fault)
    names = [line.partition("  ")[2] for line in (folder / files.SUMS).read_text().splitlines()]
    n_bytes += sum((pathlib.Path(folder) / name).stat().st_size for name in names)
    n_files += len(names)
  once = time.perf_counter() - start
  benchmark.report({"checksums/files": n_files, "checksums/megabytes": n_bytes / 1e6, "checksums/seconds_once": once,
                    "checksums/gigabytes_per_second": n_bytes / 1e9 / once, "run/seconds": seconds,
                    "checksums/ratio_to_run": _READS * once / seconds}, flags.FLAGS.out)


if __name__ == "__main__":
  cli.run(main)
