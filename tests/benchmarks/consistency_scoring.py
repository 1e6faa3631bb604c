"""Scoring of prediction files measured, beside a bare loop that only parses their JSON, in one run.

    python tests/benchmarks/consistency_scoring.py --input FOLDER [--num-files 300]

FOLDER holds SeaEval's prediction files in any depth; they are repeated under further names until there are --num-files. Each arm runs
in a process of its own; its wall time and the CPU time of all its processes are printed. `scores` is the plain command without its
page, `report` the plain command.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARMS = ("json", "orjson", "scores", "report")


def replicate(source: Path, target: Path, num_files: int) -> None:
    """Hard links (or copies) of the files under folders of their own."""
    files = [path for path in sorted(source.rglob("*.json")) if not path.stem.endswith("_score")]
    if not files:
        sys.exit(f"{source} holds no prediction files.")
    for number in range(num_files):
        path = files[number % len(files)]
        copy = target / f"copy{number // len(files)}" / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, copy)
        except OSError:
            copy.write_bytes(path.read_bytes())


def run_arm(arm: str, folder: Path, out: Path, workers: int | None) -> None:
    files = sorted(folder.rglob("*.json"))
    size = sum(path.stat().st_size for path in files)
    begun = time.perf_counter()
    if arm in ("json", "orjson"):
        import orjson

        loads = json.loads if arm == "json" else orjson.loads
        for path in files:
            loads(path.read_bytes())
    else:
        from megalign.crossin.scoring import ScoreOptions, score_files

        score_files(list(map(str, files)), out, ScoreOptions(report=arm == "report", workers=workers))
    wall = time.perf_counter() - begun
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(one.ru_utime + one.ru_stime for one in used)
    peak = max(one.ru_maxrss for one in used) * 1024
    print(json.dumps({"wall": wall, "cpu": cpu, "bytes": size, "files": len(files), "peak_bytes": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--num-files", type=int, default=300)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--arms", default="json,orjson,scores,report")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        run_arm(args.arm, args.input, args.out, args.workers)
        return
    with tempfile.TemporaryDirectory(dir=args.out) as temporary:
        folder = Path(temporary) / "predictions"
        replicate(args.input, folder, args.num_files)
        for arm in args.arms.split(","):
            command = [sys.executable, __file__, "--input", folder, "--arm", arm, "--out", f"{temporary}/{arm}"]
            if args.workers:
                command += ["--workers", str(args.workers)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            one = json.loads(done.stdout)
            print(
                f"{arm:8} {one['wall']:6.2f} s wall, {one['cpu']:6.2f} s CPU for {one['files']} files, "
                f"{one['bytes'] / 1e6:.0f} MB; largest process {one['peak_bytes'] / 1e6:.0f} MB"
            )


if __name__ == "__main__":
    main()
