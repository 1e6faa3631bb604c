"""Languages: names, scripts, and the small words by which texts in Latin script are told apart."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import regex

from megalign.errors import ConfigError


@dataclass(frozen=True)
class Language:
    """A language.

    Attributes:
        code: as in file names and tags.
        name: in English, as in translation tasks and in SeaEval's rows.
        scripts: Unicode scripts its texts are written in.
        words: frequent small words in lower case; empty where they are not needed or not known.
        like: codes of languages that the small words cannot tell from this one.
    """

    code: str
    name: str
    scripts: tuple[str, ...] = ("Latin",)
    words: frozenset[str] = frozenset()
    like: frozenset[str] = frozenset()


def _latin(code: str, name: str, words: str, like: str = "") -> Language:
    return Language(code, name, ("Latin",), frozenset(words.split()), frozenset(like.split()))


_ALL = (
    _latin("en", "English", "the of and to is that it for was with as on are this be have from at which not an by you what how"),
    _latin("es", "Spanish", "el la los las que en y un una por con para es se del al lo como más su está qué este sobre cómo"),
    _latin("pt", "Portuguese", "o os as que em um uma por com para é não se do da dos das no na como mais seu ao você são"),
    _latin("fr", "French", "le la les des et est une un dans que qui pour sur au du ce avec pas plus par sont vous il elle comment"),
    _latin("de", "German", "der die das und ist ein eine zu den mit nicht von auf für im sich dem auch als wie sie es werden was"),
    _latin("it", "Italian", "il lo la gli le di che è un una per con non sono del della nel come più si da questo anche cosa"),
    _latin("nl", "Dutch", "de het een en van is dat in op te zijn met voor niet aan die er wat hoe om ook naar wordt bij"),
    _latin(
        "vi",
        "Vietnamese",
        "và của là các một những cho trong được có không với này đã người để khi như từ về bạn hãy sau trên nào gì",
    ),
    _latin(
        "id",
        "Indonesian",
        "yang dan di untuk dengan ini itu dari pada adalah tidak dalam akan atau oleh sebagai apa bagaimana ke anda",
        "ms",
    ),
    _latin("ms", "Malay", "yang dan di untuk dengan ini itu dari pada adalah tidak dalam akan atau oleh sebagai apa ke anda", "id"),
    _latin("fil", "Filipino", "ang ng sa mga na at ay ito para ko mo niya kung hindi isang may ano paano nang si siya"),
    _latin("tr", "Turkish", "ve bir bu için ile de da ne çok daha olan olarak gibi en var mı nasıl değil ya o"),
    _latin("pl", "Polish", "i w na się nie z do to jest że o jak co są dla od po przez tego który czy oraz"),
    _latin("sv", "Swedish", "och att det i en som på är av för med den till inte om ett har de från hur vad"),
    _latin("cs", "Czech", "a se v na je že s z do o to jako pro jak nebo které by ve co který jsou podle"),
    _latin("ro", "Romanian", "și în de la o un cu este pe nu că din mai care pentru sunt ce să al cum"),
    Language("zh", "Chinese", ("Han",)),
    Language("ja", "Japanese", ("Hiragana", "Katakana", "Han")),
    Language("ko", "Korean", ("Hangul",)),
    Language("th", "Thai", ("Thai",)),
    Language("lo", "Lao", ("Lao",)),
    Language("km", "Khmer", ("Khmer",)),
    Language("my", "Burmese", ("Myanmar",)),
    Language("ar", "Arabic", ("Arabic",)),
    Language("fa", "Persian", ("Arabic",)),
    Language("ur", "Urdu", ("Arabic",)),
    Language("he", "Hebrew", ("Hebrew",)),
    Language("hi", "Hindi", ("Devanagari",)),
    Language("bn", "Bengali", ("Bengali",)),
    Language("ta", "Tamil", ("Tamil",)),
    Language("te", "Telugu", ("Telugu",)),
    Language("el", "Greek", ("Greek",)),
    Language("ru", "Russian", ("Cyrillic",)),
    Language("uk", "Ukrainian", ("Cyrillic",)),
    Language("bg", "Bulgarian", ("Cyrillic",)),
)  # fmt: skip
LANGUAGES = {language.code: language for language in _ALL}
_WORD = regex.compile(r"[\p{L}\p{M}]+")
_LETTER = regex.compile(r"\p{L}")
_SCRIPTS = sorted({script for language in _ALL for script in language.scripts})
_OF_SCRIPT = regex.compile("|".join(rf"(?P<{script}>\p{{Script={script}}})" for script in _SCRIPTS))
# Below this many small words, or this share of all words, a text in Latin script could be any language.
MIN_SMALL_WORDS, MIN_SHARE = 3, 0.12


def language_of(code: str) -> Language:
    """The language of a code such as zh.

    Raises:
        ConfigError: an unknown code.
    """
    if code not in LANGUAGES:
        raise ConfigError(f"There is no language {code!r}.", fix=f"Known are {', '.join(LANGUAGES)}.")
    return LANGUAGES[code]


def language_named(name: str) -> Language:
    """The language of an English name such as Chinese, or of a code.

    Raises:
        ConfigError: an unknown name.
    """
    found = LANGUAGES.get(name) or next((one for one in _ALL if one.name.lower() == name.lower()), None)
    if found is None:
        raise ConfigError(f"There is no language {name!r}.", fix=f"Known are {', '.join(one.name for one in _ALL)}.")
    return found


def known_language(code: str) -> Language | None:
    """The language of a code, whatever its region ("zh-TW", "pt_BR"); None for an unknown one."""
    return LANGUAGES.get(code.replace("_", "-").split("-")[0].lower())


def is_written_in(text: str, language: Language) -> bool:
    """Whether a text has a letter of one of a language's scripts; true for texts without letters.

    More is not asked for: Chinese terms have Latin letters in them ("T恤").
    """
    if not _LETTER.search(text):
        return True
    return any(regex.search(rf"\p{{Script={script}}}", text) for script in language.scripts)


@lru_cache(maxsize=4096)
def script_of(character: str) -> str | None:
    """The script of a letter, among those of the known languages; None for any other character."""
    found = _OF_SCRIPT.match(character)
    return found.lastgroup if found else None


def script_shares(text: str) -> dict[str, float]:
    """The share of each script among the letters of a text that are of a known script; empty for a text without letters."""
    counts = Counter(script for character in text if character.isalpha() and (script := script_of(character)))
    total = sum(counts.values())
    return {script: count / total for script, count in counts.items()}


def small_word_language(text: str) -> str | None:
    """The language in Latin script whose small words are clearly the most frequent in a text; None where none is.

    Counted are words of a language's list; the winner has at least `MIN_SMALL_WORDS` of them, `MIN_SHARE` of all words, and half
    as many again as any language it can be told from.
    """
    words = _WORD.findall(unicodedata.normalize("NFC", text).lower())
    counts = {one.code: sum(word in one.words for word in words) for one in _ALL if one.words}
    best = max(counts, key=lambda code: counts[code])
    rest = max(count for code, count in counts.items() if code != best and code not in LANGUAGES[best].like)
    if counts[best] < max(MIN_SMALL_WORDS, MIN_SHARE * len(words)) or counts[best] < 1.5 * rest:
        return None
    return best
