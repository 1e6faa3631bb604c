"""What a folder was begun with, so that it is continued with the same."""

from __future__ import annotations

from collections.abc import Mapping


def differences(found: Mapping[str, object], wanted: Mapping[str, object], section: str = "") -> list[str]:
    """What is wanted otherwise than it was found, a text per key; keys of sections are written as section.key."""
    texts: list[str] = []
    for key, value in wanted.items():
        before = found.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            texts += differences(before, value, f"{section}{key}.")
        elif before != value:
            texts.append(f"{section}{key} was {before!r}, is {value!r}")
    return texts
