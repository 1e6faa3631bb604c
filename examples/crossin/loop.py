"""The whole of CrossIn in minutes on two CPU cores: make a tiny model, build mixes, tune on each, ask all the same questions, score.

  python examples/crossin/loop.py --out runs/crossin [--steps 800] [--seeds 0,1,2] [--mixes base,en2x,x2en,x2x,x2x_translation]

Each mix is tuned for the same number of steps from the same model. What is there is not made again: start it again to continue.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MIXES = {
    "base": "base=all",
    "en2x": "base=all,en2x=408",
    "x2en": "base=all,x2en=408",
    "x2x": "base=all,x2x=1632",
    "x2x_translation": "base=all,x2x=1632,translation=816",
}


def run(*words: object) -> None:
    """One command; an error it reports ends the loop with its exit code."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "TQDM_DISABLE": "1",
    }
    print("$", *words, flush=True)
    code = subprocess.run([sys.executable, *map(str, words)], check=False, env=environment).returncode
    if code:
        sys.exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/crossin"))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--model-steps", type=int, default=400)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--mixes", default="base,x2x,x2x_translation")
    args = parser.parse_args()
    chosen = args.mixes.split(",")
    if unknown := set(chosen) - set(MIXES):
        parser.error(f"there is no mix {unknown.pop()}; choose of {', '.join(MIXES)}")
    files = [part for code in ("en", "zh", "vi", "es") for part in ("--lud", f"{code}={HERE / f'lud_{code}.jsonl'}")]
    predictions: dict[tuple[str, str], Path] = {}
    for seed in args.seeds.split(","):
        model = args.out / f"model_{seed}"
        if not (model / "tokenizer.json").exists():
            run(HERE / "make_model.py", "--out", model, "--steps", args.model_steps, "--seed", seed)
        for mix in chosen:
            data, tuned = args.out / "mixes" / f"{mix}_{seed}", args.out / "tuned" / f"{mix}_{seed}"
            if not (data / "manifest.json").exists():
                wanted = ("--mix", MIXES[mix], "--seed", seed, "--out", data)
                run(ROOT / "tools" / "build_crossin.py", "--ctd", HERE / "ctd.jsonl", *files, *wanted)
            if not (tuned / "adapter" / "tune.json").exists():
                settings = (f"base_model={model}", f"data={data}", f"max_steps={args.steps}", f"seed={seed}")
                run("-m", "megalign", "crossin", "tune", HERE / "tune.yml", *settings, "--out", tuned)
            answers = args.out / "answers" / f"{mix}_{seed}"
            asked = ("--mode", "likelihood", "--options", "text", "--prompt", "{question}")
            run(
                "-m",
                "megalign",
                "crossin",
                "eval",
                tuned / "adapter",
                HERE / "questions.json",
                "--out",
                answers,
                *asked,
            )
            predictions[mix, seed] = answers / "predictions.json"
    compared = [
        part for (mix, seed), path in predictions.items() if mix != chosen[0]
        for part in ("--compare", f"{predictions[chosen[0], seed]}:{path}")
    ]  # fmt: skip
    report = args.out / "report"
    run(
        ROOT / "tools" / "score_consistency.py", *predictions.values(), "--by", "likelihood", "--out", report, *compared
    )
    print(f"report: {report / 'report.html'}")


if __name__ == "__main__":
    main()
