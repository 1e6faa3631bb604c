"""The union of token stores with one tokenizer; units are hard-linked where possible.

python tools/merge_stores.py english german clone --output all
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from _command import Output, command

from megalign.corpus.store.describe import summary
from megalign.corpus.store.transform import merge_stores


def merge(stores: Annotated[list[Path], typer.Argument(help="The stores, in order.")], output: Output) -> None:
    """Join stores."""
    for share in summary(merge_stores(stores, output)):
        print(f"{share.language} ({share.split}): {share.tokens} tokens in {share.units} units")


if __name__ == "__main__":
    merge.__doc__ = __doc__
    command(merge)
