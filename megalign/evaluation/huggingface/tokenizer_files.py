"""A store's tokenizer as files that transformers reads, and back.

An exported tokenizer puts the end-of-text token before a text, once, as every document had it before it in training. That
stands in the post-processor of tokenizer.json, which transformers of every version follows; what stood there before is kept
in config.json, so that the tokenizer that comes back is the one of the token store.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from megalign.corpus.tokenizer import Tokenizer
from megalign.errors import ConfigError, DataError
from megalign.files import read_json_object, write_json, write_text

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
# The key of ours in config.json.
OWN = "megalign"


def write_tokenizer(folder: Path, tokenizer: Tokenizer, max_length_tokens: int) -> dict[str, Any]:
    """Write tokenizer.json and tokenizer_config.json; what `read_tokenizer` needs from config.json to undo it."""
    spec = orjson.loads(tokenizer.to_json())
    start = {"SpecialToken": {"id": tokenizer.eos_token, "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [start, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            tokenizer.eos_token: {
                "id": tokenizer.eos_token,
                "ids": [tokenizer.eos_id],
                "tokens": [tokenizer.eos_token],
            }
        },
    }
    content = orjson.dumps({**spec, "post_processor": template}, option=orjson.OPT_INDENT_2)
    write_text(folder / TOKENIZER, content.decode() + "\n")
    write_json(
        folder / TOKENIZER_CONFIG,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokenizer.eos_token,
            "eos_token": tokenizer.eos_token,
            "pad_token": tokenizer.eos_token,
            "clean_up_tokenization_spaces": False,
            "model_max_length": max_length_tokens,
        },
    )
    return {
        "fingerprint": tokenizer.fingerprint,
        "eos_token": tokenizer.eos_token,
        "post_processor": spec.get("post_processor"),
    }


def read_tokenizer(folder: Path, eos_token: str | None) -> Tokenizer:
    """The tokenizer of a Hugging Face folder; of one that was exported, the store's.

    Args:
        folder: has tokenizer.json or tokenizer.model.
        eos_token: its end-of-text token; None: that of tokenizer_config.json, else one of the usual.

    Raises:
        ConfigError: it was exported with another end-of-text token.
        DataError: there is none, or it is not the one that was exported.
    """
    path = next((folder / name for name in (TOKENIZER, "tokenizer.model") if (folder / name).is_file()), None)
    if path is None:
        raise DataError(
            f"{folder} has neither {TOKENIZER} nor tokenizer.model.",
            "Without the tokenizer nobody could build a token store for the model.",
            "Save the tokenizer with the model (AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)).",
        )
    kept = own_facts(folder).get("tokenizer")
    if kept and path.name == TOKENIZER:
        if eos_token not in (None, kept["eos_token"]):
            raise ConfigError(
                f"The end-of-text token is to be {eos_token!r}; {folder} was exported with {kept['eos_token']!r}.",
                "The model was trained with that one.",
                "Leave --eos-token out.",
            )
        spec = {**read_json_object(path), "post_processor": kept["post_processor"]}
        tokenizer = Tokenizer(orjson.dumps(spec).decode(), kept["eos_token"])
        if tokenizer.fingerprint != kept["fingerprint"]:
            raise DataError(
                f"{path} is not the tokenizer that was exported: its fingerprint is {tokenizer.fingerprint}, not "
                f"{kept['fingerprint']}.",
                "Its ids may mean other words.",
                f"Restore the file, or remove the key {OWN!r} from config.json to take it as it is.",
            )
        return tokenizer
    return Tokenizer.load(path, eos_token or _named_eos(folder))


def own_facts(folder: Path) -> dict[str, Any]:
    """What an export noted in config.json of a Hugging Face folder; empty where it is another's model.

    Raises:
        DataError: config.json is damaged, or the note is none of an export.
    """
    path = folder / "config.json"
    found = read_json_object(path).get(OWN)
    if found is None:
        return {}
    if not _is_of_export(found):
        raise DataError(
            f"The key {OWN!r} of {path} is not what an export writes.",
            "It says which languages and clones the ids belong to.",
            "Restore the file, or remove the key to take the model as another's.",
        )
    return dict(found)


def _is_of_export(found: Any) -> bool:
    kept = found.get("tokenizer") if isinstance(found, dict) else None
    whole = isinstance(kept, dict) and {"post_processor", "eos_token", "fingerprint"} <= kept.keys()
    languages, clones = (found.get("languages"), found.get("clone_of")) if whole else (None, None)
    return isinstance(languages, list) and bool(languages) and isinstance(clones, dict)


def _named_eos(folder: Path) -> str | None:
    if not (folder / TOKENIZER_CONFIG).is_file():
        return None
    named = read_json_object(folder / TOKENIZER_CONFIG).get("eos_token")
    if isinstance(named, dict):
        named = named.get("content")
    return named if isinstance(named, str) else None
