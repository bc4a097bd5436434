"""Host memory: how much there is, and on Linux, keeping what was freed instead of asking for fresh pages."""

import ctypes
import os
import pathlib
import sys

# Parameter numbers of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def total_bytes():
  """Memory this process may use: the machine's, or its control group's if less; unbounded where unknown."""
  try:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  except (AttributeError, ValueError):  # not a POSIX system
    return sys.maxsize
  try:
    limit = pathlib.Path("/sys/fs/cgroup/memory.max").read_text().strip()
  except OSError:
    return total
  return min(total, int(limit)) if limit.isdigit() else total


def keep_freed_memory():
  """Makes glibc reuse large freed blocks; does nothing elsewhere.

  XLA's CPU backend allocates its temporaries anew for each call. By default glibc maps a block of
  more than 32 MB from the kernel each time, and writing 32 MB of fresh pages costs several times what
  an element-wise pass over them does. `experiments/bench_sae.py --fresh_pages` measures the difference.
  Call it before the first computation; the process then holds on to its peak memory.
  """
  if not sys.platform.startswith("linux"):
    return
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError):  # a C library without mallopt, such as musl
    return
  mallopt(_M_ARENA_MAX, 1)
  mallopt(_M_MMAP_MAX, 0)
  mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
