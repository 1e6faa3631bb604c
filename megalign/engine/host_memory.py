"""The host's memory between steps: kept by the process, instead of given back and fetched again page by page."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_LARGE_BYTES = 2**30
_LARGEST_OF_OLDER_GLIBC_BYTES = 2**25


def keep_freed_memory() -> bool:
    """Let malloc keep what a step frees: the next step asks for the same sizes.

    As it comes, glibc maps every block above some MB anew and unmaps it when it is freed, so that each step pays a page
    fault for every 4 KiB of its logits and activations: 10 to 20 % of a small model's step. Blocks of 1 GiB and more are
    still given back.

    Returns:
        whether the C library has these settings (glibc has, musl and macOS have not).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mapped = mallopt(_MMAP_THRESHOLD, _LARGE_BYTES) or mallopt(_MMAP_THRESHOLD, _LARGEST_OF_OLDER_GLIBC_BYTES)
    return bool(mapped and mallopt(_TRIM_THRESHOLD, _LARGE_BYTES))
