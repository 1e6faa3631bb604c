"""Check a token store: every byte against its checksum, offsets, ids, word starts, provenance.

  python tools/check_store.py store
  python tools/check_store.py store --repair     (drops damaged units and builds them again from the input)

Exits with 3 where something is wrong and was not repaired.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from _command import NumWorkers, command, progress_bars

from megalign.corpus.preprocess import open_workers
from megalign.corpus.preprocess.repair import repair_store
from megalign.corpus.store import check_store


def check(
    store: Annotated[Path, typer.Argument(help="The store.")],
    quick: Annotated[bool, typer.Option(help="Look at names and sizes only.")] = False,
    repair: Annotated[bool, typer.Option(help="Build what is damaged again.")] = False,
    workers: NumWorkers = 1,
) -> None:
    """Check a store, and repair it if asked."""
    if repair:
        with open_workers(workers) as opened:
            if opened is None:
                return
            with progress_bars() as progress:
                problems = repair_store(store, opened, progress)
    else:
        problems = check_store(store, deep=not quick)
    for problem in problems:
        print(f"{problem.kind}: {problem.unit or store}: {problem.message}")
    if problems and not repair:
        raise typer.Exit(3)
    print("Repaired." if problems else "Nothing is wrong.")


if __name__ == "__main__":
    check.__doc__ = __doc__
    command(check)
