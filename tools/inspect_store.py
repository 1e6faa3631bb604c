"""What is inside a token store.

python tools/inspect_store.py store                              (languages, tokens, documents, a sample of each)
python tools/inspect_store.py store --language en --document 7   (one document, words marked, and where it is from)
python tools/inspect_store.py store --language en --sample 12    (the documents behind the 12th window of --length tokens)
python tools/inspect_store.py store --run runs/x/joint/seed0 --sample 12         (behind sample 12 of a training run)
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from _command import command

from megalign.config import load_run
from megalign.corpus.store import TokenStore
from megalign.corpus.store.describe import marked_text, summary, trace
from megalign.errors import ConfigError
from megalign.training.order import window_of


def inspect(
    store: Annotated[Path, typer.Argument(help="The store.")],
    language: Annotated[str | None, typer.Option(help="Which language.")] = None,
    split: Annotated[str, typer.Option(help="train or valid.")] = "train",
    document: Annotated[int | None, typer.Option(help="Show this document.")] = None,
    sample: Annotated[int | None, typer.Option(help="Trace window number I, which starts at token I x length.")] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of a run: --sample counts in its order.")] = None,
    length: Annotated[int, typer.Option(help="Tokens per window.")] = 2048,
    tokens: Annotated[int, typer.Option(help="Tokens of text to show.")] = 60,
) -> None:
    """Show what is inside a store."""
    opened = TokenStore.open(store)
    window = sample
    if run is not None and sample is not None:
        language, window, length = window_of(load_run(run / "config.yaml"), opened, sample)
    if (document is not None or sample is not None) and language is None:
        raise ConfigError("Which language is meant?", fix="Give --language.")
    if window is not None:
        for piece in trace(opened, str(language), window * length, length, split):
            origin = f"{piece.source} row {piece.row} {piece.url or ''}"
            print(f"document {piece.document}, tokens {piece.first} to {piece.first + piece.tokens}: {origin}")
    elif document is not None:
        found = opened.document(str(language), document, split)
        print(f"{found.source} row {found.row} {found.url or ''}, {len(found.ids)} tokens")
        print(marked_text(opened, found, tokens))
    else:
        print(f"{'language':<12}{'split':<8}{'units':>7}{'documents':>12}{'tokens':>16}{'bytes/token':>13}")
        for row in summary(opened):
            name = f"{row.language:<12}{row.split:<8}{row.units:>7}{row.documents:>12}"
            print(f"{name}{row.tokens:>16}{row.bytes_per_token:>13.2f}")
            print(f"  {marked_text(opened, opened.document(row.language, 0, row.split), tokens)}")


if __name__ == "__main__":
    inspect.__doc__ = __doc__
    command(inspect)
