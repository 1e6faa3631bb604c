"""Opens the translator that a setting names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from megalign.crossin.data.sources import ENGLISH, read_source
from megalign.crossin.data.translate import ChatTranslator, LineTranslator, Translator, translate_lud
from megalign.endpoint import Cache, Client
from megalign.errors import ConfigError
from megalign.translation import options as translation
from megalign.translation.languages import language_of
from megalign.translation.options import TranslatorOptions as TranslatorOptions


def with_translations(
    files: Mapping[str, str],
    targets: str,
    options: TranslatorOptions,
    folder: Path,
    say: Callable[[str], None],
    advance: Callable[[int, int], None],
) -> dict[str, str]:
    """LUD files by language, with those added that are translated from the English one, into `folder`; the cache lies beside them.

    Args:
        files: LUD files by language.
        targets: languages to translate into, such as "zh,es"; empty for none.
        options: the translator.
        folder: for the written files and the cache.
        say: gets a line per language.
        advance: gets the rows done so far, and of all languages.

    Raises:
        ConfigError: no English file, or a language that has a file already; see open_translator for the rest.
    """
    codes = list(filter(None, targets.split(",")))
    if not codes:
        return dict(files)
    if ENGLISH not in files:
        raise ConfigError("There is no English LUD file to translate.", fix="Give --lud en=FILE.")
    if given := [code for code in codes if code in files]:
        raise ConfigError(f"{given[0]} is to be translated, and has a file.", fix="Leave one of the two out.")
    for code in codes:
        language_of(code)
    translator = open_translator(options, folder / "cache.jsonl")
    return {**files, **translate_lud(read_source(files[ENGLISH]), codes, translator, folder, say, advance)}


def open_translator(options: TranslatorOptions, cache: Path) -> Translator:
    """The translator, with a cache in the file `cache`.

    Raises:
        ConfigError, DataError, EnvironmentProblem: see Endpoint, Client and TranslationModel.
    """
    opened = translation.open_translator(options)
    if isinstance(opened, Client):
        return ChatTranslator(opened, Cache(cache))
    return LineTranslator(opened, Cache(cache))
