"""JSON objects in what a chat model says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from megalign.endpoint.client import BadAnswer


def json_object(text: str, keys: Sequence[str]) -> dict[str, Any]:
    """The JSON object of an answer, alone or in a fenced block.

    Args:
        text: what the model said.
        keys: the object's keys, exactly.

    Raises:
        BadAnswer: there is no object, it is broken, or its keys are others.
    """
    inner = text.strip()
    if inner.startswith("```"):
        inner = inner.removeprefix("```").removeprefix("json").rpartition("```")[0]
    try:
        value = json.loads(inner)
    except json.JSONDecodeError as error:
        raise BadAnswer(f"the answer is not JSON ({error.msg} at character {error.pos})") from None
    if not isinstance(value, dict):
        raise BadAnswer(f"the answer is a {type(value).__name__}, not an object")
    if set(value) != set(keys):
        raise BadAnswer(f"the answer has the keys {', '.join(sorted(value)) or 'none'}, not {', '.join(keys)}")
    return value
