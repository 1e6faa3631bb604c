"""Invented names, spelled in every language by rule.

A name is a sequence of three syllables, a consonant and a vowel each. The inventory is what all five scripts tell apart:
Arabic writes three vowels, and has no letters for g, p and v; Chinese has one character for each syllable (l stands alone, as
Chinese transliterates r like it). So spelling can be undone, and different names differ in every language. Names end in i or
u, as Russian declines neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

CONSONANTS = "bdfhklmnstz"
VOWELS = "aiu"
NUM_SYLLABLES = 3

Names = dict[str, str]

_CYRILLIC = {**dict(zip(CONSONANTS, "бдфхклмнстз", strict=True)), **dict(zip(VOWELS, "аиу", strict=True))}
_ARABIC = {**dict(zip(CONSONANTS, "بدفهكلمنستز", strict=True)), **dict(zip(VOWELS, "ايو", strict=True))}
# In the order of CONSONANTS, then of VOWELS: characters that transliterations of foreign names use for these syllables.
_CHINESE = "巴比布达迪杜法菲富哈希胡卡基库拉利卢马米穆纳尼努萨西苏塔蒂图扎济祖"


def _by_letter(table: dict[str, str]) -> Callable[[str], str]:
    return lambda root: "".join(table[letter] for letter in root)


def _chinese(root: str) -> str:
    places = (CONSONANTS.index(root[at]) * len(VOWELS) + VOWELS.index(root[at + 1]) for at in range(0, len(root), 2))
    return "".join(_CHINESE[place] for place in places)


SPELLERS: dict[str, Callable[[str], str]] = {
    "en": str.capitalize,
    "zh": _chinese,
    "de": str.capitalize,
    "ru": lambda root: _by_letter(_CYRILLIC)(root).capitalize(),
    "ar": _by_letter(_ARABIC),
}


def spell(root: str, languages: Iterable[str]) -> Names:
    """A root such as "kalibu" in every language.

    Args:
        root: syllables of CONSONANTS and VOWELS.
        languages: keys of SPELLERS.
    """
    return {language: SPELLERS[language](root) for language in languages}


def draw_roots(rng: np.random.Generator, count: int, taken: Iterable[str] = ()) -> list[str]:
    """Roots that differ from each other and, in their Latin spelling, from all words in `taken`."""
    known = {word.lower() for word in taken}
    roots: list[str] = []
    while len(roots) < count:
        parts = []
        for number in range(NUM_SYLLABLES):
            vowels = VOWELS[1:] if number == NUM_SYLLABLES - 1 else VOWELS
            parts.append(CONSONANTS[rng.integers(len(CONSONANTS))] + vowels[rng.integers(len(vowels))])
        root = "".join(parts)
        if root not in known:
            known.add(root)
            roots.append(root)
    return roots
