"""A thread that notices when a rank no longer gets on, dumps every rank's stacks and names the late one."""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from megalign.errors import EnvironmentProblem, report_error
from megalign.files import write_json

# In the order in which a step goes through them.
PHASES = ("start", "data", "compute", "measure", "save")
_POLL_SECONDS = 10.0


@dataclass(frozen=True)
class Heartbeat:
    """Where a rank was when it last wrote: read by the others when they hang.

    Attributes:
        stage, stage_number, step, phase: where; the number says which stage comes first, -1 before any.
        since_seconds: how long it has been there.
        waits: whether its main thread stands in a collective, waiting for others.
        line: where its main thread stands.
        written: seconds since the epoch.
    """

    rank: int
    host: str
    stage: str
    stage_number: int
    step: int
    phase: str
    since_seconds: float
    waits: bool
    line: str
    written: float


class Watchdog:
    """While active, ends the process when it does not get on for `limit_seconds`.

    Ranks that wait for a late one hang with it, so all of them come here at about the same time: each dumps its stacks into
    FOLDER, waits for the others' heartbeats, and the first of those that still write reports.

    Args:
        folder: a folder all ranks see.
        rank, world_size: this process.
        limit_seconds: None: nothing is watched.
        stages: names of the run's stages, in order.
    """

    def __init__(
        self, folder: Path, rank: int, world_size: int, limit_seconds: float | None, stages: Sequence[str]
    ) -> None:
        self.folder, self.rank, self.world_size = folder, rank, world_size
        self.limit_seconds, self.stages = limit_seconds, tuple(stages)
        self._poll_seconds = min(_POLL_SECONDS, (limit_seconds or 0.0) / 4)
        self._at = ("", 0, "start", time.monotonic())
        self._ended = threading.Event()
        self._main = threading.main_thread().ident
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self.limit_seconds is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._beat()  # an older attempt's must not be taken for this one's
            self._thread.start()
        return self

    def at(self, stage: str, step: int, phase: str) -> None:
        """This rank got to a phase of a step (see PHASES)."""
        self._at = (stage, step, phase, time.monotonic())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        if self.limit_seconds is not None:
            self._path(self.rank).unlink(missing_ok=True)

    def _path(self, rank: int) -> Path:
        return self.folder / f"heartbeat{rank}.json"

    def _watch(self) -> None:
        assert self.limit_seconds is not None
        while not self._ended.wait(self._poll_seconds):
            self._beat()
            if time.monotonic() - self._at[3] > self.limit_seconds:
                self._give_up()

    def _beat(self) -> None:
        stage, step, phase, since = self._at
        number = self.stages.index(stage) if stage else -1
        waits, line = self._main_thread()
        since_seconds = time.monotonic() - since
        beat = Heartbeat(
            self.rank, socket.gethostname(), stage, number, step, phase, since_seconds, waits, line, time.time()
        )
        write_json(self._path(self.rank), asdict(beat))

    def _main_thread(self) -> tuple[bool, str]:
        frame = sys._current_frames().get(self._main or -1)
        line, waits = "", False
        while frame is not None:
            name = frame.f_code.co_filename
            waits |= f"{os.sep}torch{os.sep}distributed{os.sep}" in name
            if not line and f"{os.sep}site-packages{os.sep}" not in name:
                line = f"{Path(name).name}:{frame.f_lineno} in {frame.f_code.co_name}"
            frame = frame.f_back
        return waits, line

    def _give_up(self) -> None:
        with (self.folder / f"stacks{self.rank}.txt").open("w", encoding="utf-8") as stream:
            faulthandler.dump_traceback(stream, all_threads=True)
        time.sleep(2 * self._poll_seconds)  # the others write theirs
        if self._ended.is_set():
            return  # it got on after all
        self._beat()
        beats = read_heartbeats(self.folder, self.world_size)
        alive = [rank for rank, beat in beats.items() if beat and time.time() - beat.written < 4 * self._poll_seconds]
        if self.rank == min(alive, default=self.rank):
            told = describe_hang(beats, alive, self.folder)
            report_error(told)
        else:
            time.sleep(self._poll_seconds)  # let that one speak before a launcher ends it
        os._exit(EnvironmentProblem.exit_code)


def read_heartbeats(folder: Path, world_size: int) -> dict[int, Heartbeat | None]:
    """The last heartbeat of every rank; None where there is none."""
    beats: dict[int, Heartbeat | None] = {}
    for rank in range(world_size):
        try:
            beats[rank] = Heartbeat(**json.loads((folder / f"heartbeat{rank}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            beats[rank] = None
    return beats


def late_ranks(beats: dict[int, Heartbeat | None], alive: list[int]) -> list[int]:
    """The ranks the others wait for: those that are silent, or else those least far that are in no collective."""
    silent = [rank for rank in beats if rank not in alive]
    if silent:
        return silent
    known = [beat for beat in beats.values() if beat is not None]
    least = min((beat.stage_number, beat.step, PHASES.index(beat.phase)) for beat in known)
    behind = [b for b in known if (b.stage_number, b.step, PHASES.index(b.phase)) == least]
    return [beat.rank for beat in behind if not beat.waits] or [beat.rank for beat in behind]


def describe_hang(beats: dict[int, Heartbeat | None], alive: list[int], folder: Path) -> EnvironmentProblem:
    """What a person needs to know."""
    late = late_ranks(beats, alive)
    places = []
    for rank in late[:4]:
        beat = beats[rank]
        if beat is None:
            places.append(f"rank {rank} wrote no sign of life")
        elif rank not in alive:
            seen = f"{beat.phase} of {beat.stage} step {beat.step}" if beat.stage else "start"
            places.append(f"rank {rank} on {beat.host} does not answer, last seen in {seen}")
        else:
            places.append(
                f"rank {rank} on {beat.host} is in {beat.phase} of {beat.stage} step {beat.step} for "
                f"{beat.since_seconds:.0f} s, at {beat.line}"
            )
    more = f" and {len(late) - 4} more" if len(late) > 4 else ""
    others = f" {len(beats) - len(late)} others wait for it." if len(late) < len(beats) else ""
    return EnvironmentProblem(
        f"The run hangs: {'; '.join(places)}{more}.{others}",
        f"The stacks of every rank that still answers are in {folder}.",
        "Look at the late rank's stack and host; raise guards.hang_seconds if that step may take so long.",
    )
