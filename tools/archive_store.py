"""A compressed copy of a token store for keeping, and the way back, byte for byte.

python tools/archive_store.py store --output archive
python tools/archive_store.py archive --restore --output store
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from _command import Output, command

from megalign.corpus.store.transform import archive_store, restore_archive


def archive(
    path: Annotated[Path, typer.Argument(help="The store, or with --restore the archive.")],
    output: Output,
    restore: Annotated[bool, typer.Option(help="Make the store from the archive.")] = False,
    level: Annotated[int, typer.Option(min=1, max=22, help="zstd level; higher is smaller and slower.")] = 9,
) -> None:
    """Compress a store, or restore it."""
    if restore:
        restore_archive(path, output)
    else:
        archive_store(path, output, level)
    print(f"Written: {output}")


if __name__ == "__main__":
    archive.__doc__ = __doc__
    command(archive)
