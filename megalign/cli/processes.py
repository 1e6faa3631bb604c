"""Work in the processes of a layout: those this one is of, or new ones on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence

import typer

from megalign.config.layout import Layout


def run_worker(arguments: Sequence[str], layout: Layout, threads: int) -> bool:
    """Do what `megalign.study.worker` is asked to; under torchrun or srun as one of its processes.

    Args:
        arguments: of the worker.
        layout: says how many processes there are.
        threads: CPU threads of each.

    Returns:
        whether processes were started here, and have ended well.

    Raises:
        typer.Exit: they ended with another code.
    """
    from megalign.cluster.local import run_locally
    from megalign.cluster.ranks import discover

    if discover().origin != "single":
        from megalign.study.worker import work

        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        work(list(arguments))
        return False
    code = run_locally(["megalign.study.worker", *arguments], world_size=layout.world_size, threads=threads)
    if code:
        raise typer.Exit(code)
    return True
