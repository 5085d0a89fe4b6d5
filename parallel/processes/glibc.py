"""How glibc keeps the memory that tensors free."""

import ctypes
import mmap
import os
import resource
import sys
from functools import cache
from pathlib import Path

_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


@cache
def keep_pages(processes: int = 1) -> None:
    """Let glibc keep the pages that tensors free, and let them be huge ones.

    A training step frees and asks again for the same gigabytes; with the default settings each one is zeroed by
    the kernel anew. Takes effect for allocations after the call. Does nothing where there is no glibc.
    processes: how many on this machine call it.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, -1)  # never, mallopt(3)
    libc.mallopt(m_top_pad, 64 << 20)
    if _addresses_are_free():
        size = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE // (2 * processes)
        libc.malloc.restype = ctypes.c_void_p
        start = libc.malloc(ctypes.c_size_t(size))  # stays with glibc, and takes no memory until it is used
        if start:
            begin = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size - mmap.PAGESIZE), mmap.MADV_HUGEPAGE)
            libc.free(ctypes.c_void_p(start))


def _addresses_are_free() -> bool:
    """Return whether addresses without memory behind them are unlimited: no `ulimit -v`, no strict overcommit."""
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return False
    try:
        return _OVERCOMMIT.read_text().strip() != "2"
    except OSError:  # as in a container that hides it
        return False
