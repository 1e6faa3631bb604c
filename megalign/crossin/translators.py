"""Opens the translator that a setting names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megalign.crossin.data.sources import read_source
from megalign.crossin.data.translate import ChatTranslator, LineTranslator, Translator, translate_lud
from megalign.endpoint import Cache, Client, Endpoint
from megalign.errors import ConfigError

HF = "hf:"


@dataclass(frozen=True)
class TranslatorOptions:
    """Which translator.

    Attributes:
        name: "hf:" and the folder of an encoder-decoder, or the address of an OpenAI-compatible endpoint.
        model: the model's name at the endpoint.
        api_key_variable: environment variable with the endpoint's key; empty for none.
        requests_per_minute, num_parallel, num_attempts, timeout_seconds, json_mode: of the endpoint's client.
        allow_download: may fetch a model from the Hub.
    """

    name: str
    model: str = ""
    api_key_variable: str = ""
    requests_per_minute: float = 600.0
    num_parallel: int = 8
    num_attempts: int = 5
    timeout_seconds: float = 120.0
    json_mode: bool = False
    allow_download: bool = False


def translate_files(
    english: str, targets: str, options: TranslatorOptions, folder: Path, progress: Callable[[str], None] = print
) -> dict[str, str]:
    """Translate the English LUD file into the languages of "zh,es": the written file by language; the cache lies beside them.

    Raises:
        ConfigError: no English file, or no languages; see open_translator for the rest.
    """
    if not english:
        raise ConfigError("There is no English LUD file to translate.", fix="Give --lud en=FILE.")
    translator = open_translator(options, folder / "cache.jsonl")
    return translate_lud(read_source(english), targets.split(","), translator, folder, progress)


def open_translator(options: TranslatorOptions, cache: Path) -> Translator:
    """The translator, with a cache in the file `cache`.

    Raises:
        ConfigError, DataError, EnvironmentProblem: see Endpoint, Client and TranslationModel.
    """
    if options.name.startswith(HF):
        from megalign.crossin.translation_model import TranslationModel

        model = TranslationModel(options.name.removeprefix(HF), allow_download=options.allow_download)
        return LineTranslator(model, Cache(cache))
    if not options.model:
        raise ConfigError("The endpoint's model is not named.", fix="Give --model NAME.")
    endpoint = Endpoint(options.name, options.model, options.api_key_variable)
    client = Client(
        endpoint,
        requests_per_minute=options.requests_per_minute,
        num_parallel=options.num_parallel,
        num_attempts=options.num_attempts,
        timeout_seconds=options.timeout_seconds,
        json_mode=options.json_mode,
    )
    return ChatTranslator(client, Cache(cache))
