"""Build an alignment table: the words of a corpus and their translations, as one parquet file.

python tools/build_table.py --counts counts/en.tsv --muse de=en-de.txt --muse ru=en-ru.txt --out table.parquet
... --muse zh=en-zh.txt --script zh=simplified --case en=counts/en.tsv --case de=counts/de.tsv
... --clone en-clone       (the golden table of En-Clone)
... --translate zh,ar --translator http://127.0.0.1:8000/v1 --model M        (or hf:FOLDER; only for words without a translation)
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from _command import command

from megalign.corpus.word_counts import read_counts
from megalign.crossin.data.sources import parse_named
from megalign.prealign.build import TableOptions, build_table
from megalign.prealign.word_translator import open_word_translator
from megalign.translation.options import TranslatorOptions


def build(
    counts: Annotated[list[Path], typer.Option(help="Word counts of the source language; several are added up.")],
    out: Annotated[Path, typer.Option(help="The parquet file to write.")],
    source: Annotated[str, typer.Option(help="The source language.")] = "en",
    muse: Annotated[list[str] | None, typer.Option(help="LANGUAGE=FILE, a dictionary; once per language.")] = None,
    clone: Annotated[str | None, typer.Option(help="A clone language, whose words are the source's.")] = None,
    translate: Annotated[str, typer.Option(help="Languages to ask a model for: zh,ar.")] = "",
    translator: Annotated[str, typer.Option(help="An endpoint's address, or hf:FOLDER.")] = "",
    model: Annotated[str, typer.Option(help="The endpoint's model.")] = "",
    api_key_variable: Annotated[str, typer.Option(help="Environment variable with the endpoint's key.")] = "",
    requests_per_minute: Annotated[float, typer.Option(help="At most.")] = 600.0,
    words_per_question: Annotated[int, typer.Option(help="Words asked for at once.")] = 10,
    max_words: Annotated[int | None, typer.Option(help="Ask a model for the most frequent so many words.")] = None,
    min_count: Annotated[int, typer.Option(help="Words must occur more often than this.")] = 20,
    max_translations: Annotated[int, typer.Option(help="Of a word in a language.")] = 5,
    fraction: Annotated[float, typer.Option(help="Keep the most frequent share of the words.")] = 1.0,
    script: Annotated[list[str] | None, typer.Option(help="zh=simplified or zh=traditional.")] = None,
    case: Annotated[list[str] | None, typer.Option(help="LANGUAGE=COUNTS: write words as the corpus does.")] = None,
) -> None:
    """Build a table."""
    files = {language: Path(file) for language, file in parse_named(muse or []).items()}
    cased = {language: read_counts([Path(file)]) for language, file in parse_named(case or []).items()}
    limits, scripts = (min_count, max_words, max_translations, fraction), parse_named(script or [])
    asked_for = [code for code in translate.split(",") if code]
    options = TableOptions(read_counts(counts), source, files, clone, asked_for, *limits, scripts, cased)
    named = TranslatorOptions(translator, model, api_key_variable, requests_per_minute)
    cache = out.with_suffix(".cache.jsonl")
    asked = open_word_translator(named, cache, source, max_translations, words_per_question) if asked_for else None
    table = build_table(options, asked, print)
    table.save(out)
    print(f"{out}: {len(table):,} words, {table.num_rows:,} translations")


if __name__ == "__main__":
    build.__doc__ = __doc__
    command(build)
