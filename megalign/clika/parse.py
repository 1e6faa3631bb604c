"""From a response to the option it names, as the released scorer does it and strictly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint8]

# Cyrillic, Greek and full-width capitals drawn like the Latin A to E (and a few letters beyond).
LOOK_ALIKES = {
    **dict(zip("АВСЕНІЈКМОРТХ", "ABCEHIJKMOPTX", strict=True)),
    **dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "ABEZHIKMNOPTYX", strict=True)),
    **{chr(0xFF21 + place): chr(0x41 + place) for place in range(26)},
}
ASCII_LETTERS = np.array([chr(point).isalpha() for point in range(128)])


@dataclass(frozen=True)
class Parsed:
    """Options named by responses: 0 none, 1 the first option, and so on.

    Attributes:
        released: [n] uint8, the first character of the stripped response, case-sensitive (the authors' scorer).
        strict: [n] uint8, the same where no letter follows: "A", "A.", "A) x", but not "Answer" or "And".
        look_alike: [n] uint8, the option whose letter the first character only looks like; 0 elsewhere.
    """

    released: Codes
    strict: Codes
    look_alike: Codes


def first_two(response: str) -> str:
    """The first two characters of the stripped response, filled up with spaces."""
    return response.lstrip()[:2].ljust(2)


def parse_pairs(pairs: Sequence[str], num_options: int, *, accept_look_alikes: bool = False) -> Parsed:
    """Parse many responses at once.

    Args:
        pairs: [n] what `first_two` gives for each response.
        num_options: options of the questions, lettered from A.
        accept_look_alikes: count a look-alike letter as the option it looks like.
    """
    # Surrogates cannot come from JSON text but may come from a table; they name no option.
    points = np.frombuffer("".join(pairs).encode("utf-32-le", "replace"), dtype="<u4").reshape(-1, 2)
    first, second = points[:, 0], points[:, 1]
    released = np.where((first >= 65) & (first < 65 + num_options), first - 64, 0).astype(np.uint8)
    look_alike = np.zeros(len(first), dtype=np.uint8)
    for place in np.flatnonzero(first > 127):
        letter = LOOK_ALIKES.get(chr(first[place]))
        if letter is not None and ord(letter) < 65 + num_options:
            look_alike[place] = ord(letter) - 64
    if accept_look_alikes:
        released = np.where(look_alike > 0, look_alike, released)
    followed = ASCII_LETTERS[np.minimum(second, 127)]
    for place in np.flatnonzero(second > 127):
        followed[place] = chr(second[place]).isalpha()
    return Parsed(released, np.where(followed, 0, released).astype(np.uint8), look_alike)


def label_codes(labels: Sequence[str], num_options: int) -> Codes:
    """[n] uint8, 1 for the first option and so on; 0 where a label is not a single option letter."""
    if set(map(len, labels)) <= {1}:
        points = np.frombuffer("".join(labels).encode("utf-32-le", "replace"), dtype="<u4")
    else:
        points = np.array([ord(label) if len(label) == 1 else 0 for label in labels], dtype="<u4")
    return np.where((points >= 65) & (points < 65 + num_options), points - 64, 0).astype(np.uint8)
