"""Scoring measured against a bare loop over the same files that parses each line with json and counts hits, in one run.

    python tests/benchmarks/clika_scoring.py --input FOLDER [--num-files 1840]

FOLDER has the layout DATASET/LANGUAGE/MODEL_res*.jsonl; its files are replicated under further model names until there are
--num-files. Each arm runs in a process of its own after one pass over the files' bytes; its CPU time and peak memory are printed.
The arm `report` scores with heat maps and page, `scores` without; both check the data and compute all bootstrap intervals.
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
    """Hard links (or copies) of the files under model names of their own: whole rounds, then as many as are missing."""
    files = sorted(path for path in source.glob("*/*/*_res*.jsonl"))
    for number in range(num_files):
        path = files[number % len(files)]
        copy = target / path.parent.relative_to(source) / f"copy{number // len(files)}_{path.name}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, copy)
        except OSError:
            copy.write_bytes(path.read_bytes())


def run_arm(arm: str, folder: Path, out: Path) -> None:
    files = sorted(folder.glob("*/*/*_res*.jsonl"))
    size = sum(len(path.read_bytes()) for path in files)
    if arm in ("json", "orjson"):
        import orjson

        loads = json.loads if arm == "json" else orjson.loads
        begun = time.process_time()
        hits = 0
        for path in files:
            with path.open("rb") as stream:
                for line in stream:
                    row = loads(line)
                    hits += row["res"].strip()[:1] == row["label"]
    else:
        from megalign.clika import ScoreOptions, load_protocol, score

        begun = time.process_time()
        score(folder, out, ScoreOptions(load_protocol(), report=arm == "report"))
    seconds = time.process_time() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"arm": arm, "cpu_seconds": seconds, "bytes": size, "files": len(files), "peak_bytes": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--num-files", type=int, default=1840)
    parser.add_argument("--arms", default="json,orjson,scores")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        run_arm(args.arm, args.input, args.out)
        return
    with tempfile.TemporaryDirectory(dir=args.out) as temporary:
        folder = Path(temporary) / "responses"
        replicate(args.input, folder, args.num_files)
        results = {}
        for arm in args.arms.split(","):
            command = [sys.executable, __file__, "--input", folder, "--arm", arm, "--out", f"{temporary}/{arm}"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            one = results[arm] = json.loads(done.stdout)
            megabytes, peak = one["bytes"] / 1e6, one["peak_bytes"] / 1e6
            print(
                f"{arm:8} {one['cpu_seconds']:6.2f} s for {one['files']} files, {megabytes:.0f} MB; peak {peak:.0f} MB"
            )
    if {"json", "scores"} <= set(results):
        ratio = results["scores"]["cpu_seconds"] / results["json"]["cpu_seconds"]
        print(f"scores / json: {ratio:.2f}")


if __name__ == "__main__":
    main()
