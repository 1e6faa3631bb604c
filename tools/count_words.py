"""How often each word occurs, one file per language: OUTPUT/en.tsv with "word TAB count" lines, the most frequent first.

python tools/count_words.py --input culturax --languages en,de --output counts
python tools/count_words.py --merge counts1/en.tsv --merge counts2/en.tsv --output all/en.tsv
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from _command import NumWorkers, OnBadRow, Output, command

from megalign.corpus.preprocess import PreprocessSettings, open_workers, parse_languages
from megalign.corpus.word_counts import count_words, read_counts, write_counts
from megalign.errors import ConfigError


def count(
    output: Output,
    input: Annotated[str, typer.Option(help="A file, folder or quoted glob of parquet, jsonl or txt, or hub:ID.")] = "",
    languages: Annotated[str, typer.Option(help="Languages: en,de. All of their text is counted.")] = "en",
    workers: NumWorkers = 1,
    on_bad_row: OnBadRow = "skip",
    lowercase: Annotated[bool, typer.Option(help="Count words in lower case.")] = False,
    minimum: Annotated[int, typer.Option(help="Leave out words that occur less often.")] = 1,
    merge: Annotated[list[Path], typer.Option(help="Add up these files instead; OUTPUT is a file then.")] = [],  # noqa: B006
) -> None:
    """Count words, or add counts up."""
    if merge:
        write_counts(output, read_counts(merge), minimum)
        return
    if not input:
        raise ConfigError("There is nothing to count.", fix="Give --input, or --merge.")
    settings = PreprocessSettings(input, "", parse_languages(languages), on_bad_row=on_bad_row)
    with open_workers(workers) as opened:
        if opened is None:
            return
        for language, counts in count_words(settings, opened, lowercase, print).items():
            written = write_counts(output / f"{language}.tsv", counts, minimum)
            left_out = f", {len(counts) - written} of them too rare to be written" if written < len(counts) else ""
            print(f"{output / f'{language}.tsv'}: {counts.total()} words, {len(counts)} different{left_out}")


if __name__ == "__main__":
    count.__doc__ = __doc__
    command(count)
