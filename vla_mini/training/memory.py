"""Freed memory stays with the process, since every training step asks for the same again."""

import ctypes
import platform

# From glibc's malloc.h: below which size freed memory at the heap's end stays, and up to which blocks lie in the heap.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Glibc hands freed blocks of some megabytes back to the system at once, and the next step pays again for each page
    that it touches: a sixth of a step's time on toy_pick. Other C libraries are left as they are."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # more is not allowed
