"""Chinese in simplified or traditional characters: dictionaries mix them, a corpus mostly has one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megalign.errors import ConfigError, EnvironmentProblem

# OpenCC's conversions by character, without replacing a region's words by another's.
_CONFIGURATIONS = {"simplified": "t2s", "traditional": "s2t"}


def script_converter(script: str) -> Callable[[str], str]:
    """What turns a Chinese text into one script by OpenCC; texts in that script stay as they are.

    Args:
        script: "simplified" or "traditional".

    Raises:
        ConfigError: another script.
        EnvironmentProblem: OpenCC is not installed.
    """
    if script not in _CONFIGURATIONS:
        raise ConfigError(f"There is no script {script!r}.", fix=f"Use one of {', '.join(_CONFIGURATIONS)}.")
    try:
        from opencc import OpenCC
    except ImportError:
        raise EnvironmentProblem(
            "OpenCC is not installed.", "It turns traditional into simplified characters.", "pip install megalign[zh]"
        ) from None
    opened: Any = OpenCC(_CONFIGURATIONS[script])
    convert: Callable[[str], str] = opened.convert
    return convert
