"""The memory of the host: how much of it there is, and how to keep freed memory for the next use."""

import ctypes
import os
import pathlib
import sys

# The numbers by which glibc's function mallopt knows its parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def total_bytes() -> int:
  """The bytes of memory that this process may use.

  This is the memory of the machine, or the limit of the process's control group if that is less. On systems that say
  neither it is `sys.maxsize`.
  """
  try:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  except (AttributeError, ValueError):  # not a POSIX system
    return sys.maxsize
  try:
    limit = pathlib.Path("/sys/fs/cgroup/memory.max").read_text().strip()
  except OSError:
    return total
  return min(total, int(limit)) if limit.isdigit() else total


def keep_freed_memory() -> None:
  """Makes large blocks of memory that are freed available again, on Linux with glibc; elsewhere it does nothing.

  XLA's CPU backend allocates its temporary arrays anew in each call. By default glibc asks the kernel for fresh pages
  whenever a block is larger than 32 MB, and writing 32 MB of fresh pages costs several times what an element-wise pass
  over them does. `experiments/bench_sae.py --fresh_pages` measures the difference.

  Call this before the first computation. From then on the process never gives back memory, so that it holds as much as
  it once needed.
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
