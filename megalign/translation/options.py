"""Which translator is meant, and how it is opened: a chat model behind an endpoint, or an encoder-decoder of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from megalign.endpoint import Client, Endpoint
from megalign.errors import ConfigError

if TYPE_CHECKING:
    from megalign.translation.model import TranslationModel

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


def open_translator(options: TranslatorOptions) -> Client | TranslationModel:
    """The endpoint's client, or the encoder-decoder.

    Raises:
        ConfigError, DataError, EnvironmentProblem: see Endpoint, Client and TranslationModel.
    """
    if options.name.startswith(HF):
        from megalign.translation.model import TranslationModel

        return TranslationModel(options.name.removeprefix(HF), allow_download=options.allow_download)
    if not options.name:
        raise ConfigError("No translator is named.", fix="Give --translator with an address, or hf:FOLDER.")
    if not options.model:
        raise ConfigError("The endpoint's model is not named.", fix="Give --model NAME.")
    return Client(
        Endpoint(options.name, options.model, options.api_key_variable),
        requests_per_minute=options.requests_per_minute,
        num_parallel=options.num_parallel,
        num_attempts=options.num_attempts,
        timeout_seconds=options.timeout_seconds,
        json_mode=options.json_mode,
    )
