"""A byte-level BPE tokenizer from a language-balanced sample, or an existing tokenizer made ready.

python tools/train_tokenizer.py --input culturax --languages en,de,zh --vocab-size 32000 --output tokenizer.json
python tools/train_tokenizer.py --existing path/to/hf-model --output tokenizer.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from _command import EosToken, OnBadRow, Output, Seed, command, whole

from megalign.corpus.preprocess import PreprocessSettings, parse_languages
from megalign.corpus.tokenizer import Tokenizer, train_tokenizer
from megalign.corpus.tokenizer_sample import balanced_sample
from megalign.errors import ConfigError


def tokenizer(
    output: Output,
    input: Annotated[str, typer.Option(help="A file, folder or quoted glob of parquet, jsonl or txt, or hub:ID.")] = "",
    languages: Annotated[str, typer.Option(help="Languages: en,de,zh.")] = "en",
    vocab_size: Annotated[int, typer.Option(help="Tokens, the 256 bytes and the end of text among them.")] = 32000,
    megabytes: Annotated[float, typer.Option(help="Text per language to learn from.")] = 100.0,
    seed: Seed = 0,
    on_bad_row: OnBadRow = "skip",
    existing: Annotated[
        Path | None,
        typer.Option(help="Take this tokenizer.json, its folder or SentencePiece .model instead of training."),
    ] = None,
    eos_token: EosToken = None,
) -> None:
    """Train a tokenizer, or check and copy an existing one."""
    if existing is not None:
        made = Tokenizer.load(existing, eos_token)
        made.save(output)
    elif not input:
        raise ConfigError("There is nothing to train on.", fix="Give --input, or --existing.")
    else:
        settings = PreprocessSettings(input, "", parse_languages(languages), seed, on_bad_row=on_bad_row)
        made = train_tokenizer(
            balanced_sample(settings, whole(megabytes * 1e6, "--megabytes"), print), vocab_size, output
        )
    print(
        f"{output}: {made.vocab_size} tokens, end of text {made.eos_token} = {made.eos_id}, fingerprint {made.fingerprint}"
    )
    print(
        "Encoding goes through tiktoken." if made.is_fast else "Encoding goes through Hugging Face tokenizers (slower)."
    )


if __name__ == "__main__":
    tokenizer.__doc__ = __doc__
    command(tokenizer)
