"""En-Clone: the text of a language again as a language of its own, with ids shifted by the vocabulary size.

python tools/clone_corpus.py --store store --language en --clone en-clone --output clone
python tools/merge_stores.py store clone --output both
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from _command import Output, command, whole

from megalign.corpus.store.transform import clone_store


def clone(
    store: Annotated[Path, typer.Option(help="The store with the original.")],
    output: Output,
    language: Annotated[str, typer.Option(help="What to clone.")] = "en",
    clone: Annotated[str, typer.Option(help="Name of the clone.")] = "en-clone",
    tokens: Annotated[
        float | None, typer.Option(help="Training tokens, from the first document on; all by default.")
    ] = None,
) -> None:
    """Write a store of the clone alone."""
    made = clone_store(store, output, language, clone, None if tokens is None else whole(tokens, "--tokens"))
    print(f"{output}: {made.num_tokens(clone)} tokens of {clone}, vocabulary {made.vocabulary.size}")


if __name__ == "__main__":
    clone_command = clone
    clone_command.__doc__ = __doc__
    command(clone_command)
