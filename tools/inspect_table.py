"""What an alignment table covers, and what about it is suspect: collisions, copies, other scripts.

python tools/inspect_table.py table.parquet
python tools/inspect_table.py table.parquet --counts en=counts/en.tsv --counts de=counts/de.tsv      (coverage of corpora)
python tools/inspect_table.py table.parquet --json report.json
python tools/inspect_table.py table.parquet --word bank                                              (one word's entry)
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from _command import command

from megalign.corpus.word_counts import read_counts
from megalign.crossin.data.sources import parse_named
from megalign.errors import DataError
from megalign.files import write_json
from megalign.prealign.table import AlignmentTable
from megalign.prealign.table_report import as_text, report_on


def inspect(
    table: Annotated[Path, typer.Argument(help="The table.")],
    counts: Annotated[list[str] | None, typer.Option(help="LANGUAGE=FILE, word counts of a corpus.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the report to this file as well.")] = None,
    word: Annotated[str | None, typer.Option(help="Show the entry of this word.")] = None,
) -> None:
    """Show what is in a table."""
    opened = AlignmentTable.load(table)
    if word is not None:
        rows = [row for row in opened.rows() if row["word"].lower() == word.lower()]
        if not rows:
            raise DataError(f"{table} has no word {word!r}.")
        for row in rows:
            print("{word}  {frequency}  {language}  {rank}  {translation}  ({source})".format(**row))
        return
    counted = {code: read_counts([Path(file)]) for code, file in parse_named(counts or []).items()}
    reports = report_on(opened, counted)
    print(as_text(opened, reports))
    if json is not None:
        write_json(json, [report.to_json() for report in reports])


if __name__ == "__main__":
    inspect.__doc__ = __doc__
    command(inspect)
