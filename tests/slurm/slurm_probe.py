"""A step that takes a moment, in place of training: `python -m slurm_probe BEHAVIOUR FOLDER`.

Writes a line for each attempt into FOLDER/attempts, and checkpoints' pointers as training does.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType


def main(behaviour: str, folder: Path) -> int:
    restart, rank = int(os.environ.get("SLURM_RESTART_COUNT") or 0), int(os.environ.get("SLURM_PROCID", "0"))
    asked: list[str] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(signal.Signals(number).name)

    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, ask)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "attempts").open("a") as stream:
        stream.write(f"{os.environ['SLURM_JOB_ID']} {restart} {rank} {os.environ['SLURMD_NODENAME']}\n")
    lines = [line.split() for line in (folder / "attempts").read_text().splitlines()]
    attempts = sum(line[2] == str(rank) for line in lines)
    print(f"probe {behaviour}: attempt {attempts}", flush=True)

    def save() -> None:
        pointer = folder / "checkpoints" / "pretrain" / "latest"
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.write_text(f"step_{attempts:08d}\n")

    def wait_to_be_asked() -> None:
        deadline = time.monotonic() + 60
        while not asked and time.monotonic() < deadline:
            time.sleep(0.02)
        print(f"probe: asked by {asked}", flush=True)

    match behaviour.split(":"):
        case ["exit", code]:
            if code == "3":
                print("error: the text is damaged.\n  It has no words.", file=sys.stderr)
            return int(code)
        case ["wait", until]:
            deadline = time.monotonic() + 60
            while not Path(until).exists() and not asked and time.monotonic() < deadline:
                time.sleep(0.02)
            return 75 if asked else 0
        case ["stop-first", times]:  # asked to stop, it saves and leaves with 75; after so many times it is done
            if attempts > int(times):
                return 0
            wait_to_be_asked()
            save()
            return 75
        case ["save-fails-first", times]:
            if attempts > int(times):
                return 0
            wait_to_be_asked()
            return 1
        case ["crash"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["crash-after-save", times]:
            if attempts > int(times):
                return 0
            save()
            os.kill(os.getpid(), signal.SIGSEGV)
        case ["ranks"]:
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SRUN_CPUS_PER_TASK", "A_B")
            print("probe:", *(f"{name}={os.environ.get(name)}" for name in names), flush=True)
            return 0
    raise ValueError(behaviour)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
