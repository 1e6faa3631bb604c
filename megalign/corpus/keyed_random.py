"""Random generators named by a seed and words, so that no two uses ever share or disturb a stream."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator that depends on nothing but `seed` and `names`."""
    digest = hashlib.blake2b("\x1f".join([str(seed), *map(str, names)]).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
