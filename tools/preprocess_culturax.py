"""Text into a token store.

  python tools/preprocess_culturax.py --input culturax --output store --tokenizer tokenizer.json --languages en=2e6,de=all
  mpiexec -n 8 python -m mpi4py tools/preprocess_culturax.py ... (rank 0 hands out work, 7 ranks do it)
Killed or out of time, it goes on where it stopped when started again. The store is the same whatever the workers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from _command import EosToken, Input, Languages, NumWorkers, OnBadRow, Output, Seed, command, progress_bars, whole

from megalign.corpus.preprocess import PreprocessSettings, open_workers, parse_languages, run
from megalign.corpus.store import SPLITS, TokenStore
from megalign.corpus.store.transform import archive_store


def preprocess(
    input: Input,
    output: Output,
    languages: Languages,
    tokenizer: Annotated[Path, typer.Option(help="A tokenizer.json, or the folder of one.")],
    seed: Seed = 0,
    workers: NumWorkers = 1,
    on_bad_row: OnBadRow = "error",
    max_bad_fraction: Annotated[float, typer.Option(help="Fail when more of the rows are bad.")] = 0.01,
    valid_fraction: Annotated[float, typer.Option(help="Share of documents held out, by a hash of their text.")] = 0.0,
    min_length: Annotated[int, typer.Option(help="Leave out documents of fewer characters.")] = 0,
    deduplicate: Annotated[bool, typer.Option(help="Keep only the first of equal texts of a language.")] = False,
    keep_url: Annotated[list[str], typer.Option(help="Only addresses that match one of these patterns.")] = [],  # noqa: B006
    drop_url: Annotated[list[str], typer.Option(help="No address that matches one of these patterns.")] = [],  # noqa: B006
    collection: Annotated[list[str], typer.Option(help="Only these values of the field source.")] = [],  # noqa: B006
    unit_megabytes: Annotated[float, typer.Option(help="Text per unit, the work that is never redone.")] = 64.0,
    eos_token: EosToken = None,
    archive: Annotated[Path | None, typer.Option(help="Also write a compressed copy here, for keeping.")] = None,
) -> None:
    """Turn text into a token store: zarr units that are memory-mapped in training."""
    settings = PreprocessSettings(
        input, str(tokenizer), parse_languages(languages), seed, valid_fraction, min_length, deduplicate, tuple(keep_url),
        tuple(drop_url), tuple(collection), on_bad_row, max_bad_fraction, whole(unit_megabytes * 2**20, "--unit-megabytes"), eos_token,
    )  # fmt: skip
    with open_workers(workers) as opened:
        if opened is None:
            return
        with progress_bars() as progress:
            counts = run(settings, output, opened, progress)["counts"]
    store = TokenStore.open(output)
    for language, count in counts.items():
        tokens = [f"{store.num_tokens(language, s):,} tokens ({s})" for s in SPLITS if store.has(language, s)]
        print(f"{language}: " + ", ".join([*tokens, *(f"{number:,} {name}" for name, number in count.items())]))
    if archive is not None:
        archive_store(output, archive)


if __name__ == "__main__":
    preprocess.__doc__ = __doc__
    command(preprocess)
