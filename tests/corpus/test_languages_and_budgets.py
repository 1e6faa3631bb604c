"""What is asked for of every language: its name, and how many tokens."""

from __future__ import annotations

import pytest

from megalign.corpus.preprocess import parse_languages
from megalign.errors import ConfigError


@pytest.mark.parametrize("text", ["en=x", "en=1", "en=2.5", "=5", "en=-3", "en=inf", "en=nan"])
def test_unreadable_budgets(text: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read\. Write en=2e6"):
        parse_languages(text)


def test_budgets() -> None:
    assert [(b.language, b.budget_tokens) for b in parse_languages("en=2e6, de=all,zh,fr=1_000")] == [
        ("en", 2_000_000), ("de", None), ("zh", None), ("fr", 1000),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="named twice"):
        parse_languages("en,en=5")
    with pytest.raises(ConfigError, match="No language is named"):
        parse_languages("")


@pytest.mark.parametrize("language", ["x/y", "..", "_build", "a b", ".hidden"])
def test_a_language_is_the_name_of_a_folder(language: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a language"):
        parse_languages(language)
