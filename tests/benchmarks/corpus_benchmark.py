"""Preprocessing and reading measured against Megatron-LM's way, datatrove and plain arrays, in one run on one machine.

    python tests/benchmarks/corpus_benchmark.py --input FOLDER [--languages en,de] [--datatrove-python PYTHON]

FOLDER has the CulturaX layout. Each arm runs in a process of its own; its CPU time is counted after imports, all threads
included. Megatron-LM's preprocess_data.py is stood in for by what it does: Hugging Face encoding, document by document, into
megatron-core's IndexedDatasetBuilder. datatrove needs an environment of its own, named by --datatrove-python.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY_TOKENS = 32_000
WINDOW_TOKENS, WINDOWS, PAIRS = 2049, 50_000, 7


def parquet_texts(folder: Path, languages: list[str], copies: int) -> Iterator[str]:
    import pyarrow.parquet as parquet

    for _ in range(copies):
        for language in languages:
            for path in sorted((folder / language).glob("*.parquet")):
                for batch in parquet.ParquetFile(path).iter_batches(columns=["text"], batch_size=1000):
                    yield from batch.column(0).to_pylist()


def arm_megalign(args: argparse.Namespace) -> Callable[[], None]:
    from megalign.corpus.preprocess import PreprocessSettings, open_workers, parse_languages, run

    def work() -> None:
        settings = PreprocessSettings(str(args.input), str(args.tokenizer), parse_languages(args.languages))
        with open_workers(1) as workers:
            assert workers is not None
            run(settings, args.out / "store", workers)

    return work


def arm_megatron(args: argparse.Namespace) -> Callable[[], None]:
    import numpy as np
    import tokenizers
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    torch.set_num_threads(1)

    def work() -> None:
        tokenizer = tokenizers.Tokenizer.from_file(str(args.tokenizer))
        builder = IndexedDatasetBuilder(str(args.out / "x.bin"), dtype=np.uint16)
        for text in parquet_texts(args.input, args.languages.split(","), 1):
            ids = [*tokenizer.encode(text, add_special_tokens=False).ids, 0]
            builder.add_document(torch.IntTensor(ids), [len(ids)])
        builder.finalize(str(args.out / "x.idx"))

    return work


def arm_datatrove(args: argparse.Namespace) -> Callable[[], None]:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    def work() -> None:
        for language in args.languages.split(","):
            steps = [
                ParquetReader(str(args.input / language), text_key="text", id_key="url"),
                DocumentTokenizer(
                    str(args.out / language), tokenizer_name_or_path=str(args.tokenizer), eos_token="<|endoftext|>",
                    shuffle_documents=False,
                ),
            ]  # fmt: skip
            LocalPipelineExecutor(steps, tasks=1, logging_dir=str(args.out / "logs" / language)).run()

    return work


ARMS = {"megalign": arm_megalign, "megatron": arm_megatron, "datatrove": arm_datatrove}


def run_arm(args: argparse.Namespace) -> None:
    """In a child: prepare, then measure the work alone."""
    work = ARMS[args.arm](args)
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    # Not ru_maxrss: that starts from what the parent held when it forked.
    status = Path("/proc/self/status").read_text()
    peak = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024
    print(json.dumps({"cpu_seconds": cpu, "wall_seconds": wall, "peak_bytes": peak}))


def measure(arm: str, args: argparse.Namespace, folder: Path, languages: str, tokenizer: Path) -> dict[str, float]:
    """Run an arm in a child and return what it printed."""
    out = Path(tempfile.mkdtemp(dir=folder))
    python = args.datatrove_python if arm == "datatrove" else sys.executable
    command = [python, __file__, "--arm", arm, "--input", args.input, "--languages", languages]
    command += ["--tokenizer", tokenizer, "--out", out]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(c) for c in command], env=environment, capture_output=True, text=True, check=False)
    shutil.rmtree(out)
    if done.returncode:
        raise SystemExit(f"{arm} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def speed(args: argparse.Namespace, folder: Path, tokenizer: Path) -> None:
    arms = [arm for arm in ARMS if arm != "datatrove" or args.datatrove_python]
    for languages in dict.fromkeys(["en", args.languages]):
        texts = parquet_texts(args.input, languages.split(","), 1)
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        print(f"\n{languages}: {megabytes:.1f} MB of text; median of {args.repeats} interleaved runs\n")
        print("| tool | MB per CPU second | MB/s | peak memory, MB | ratio of CPU speed |\n|---|---|---|---|---|")
        runs: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
        for _ in range(args.repeats):
            for arm in arms:
                runs[arm].append(measure(arm, args, folder, languages, tokenizer))
        for arm in arms:
            middle = {key: statistics.median(run[key] for run in runs[arm]) for key in runs[arm][0]}
            ratios = [
                other["cpu_seconds"] / own["cpu_seconds"]
                for own, other in zip(runs["megalign"], runs[arm], strict=True)
            ]
            print(
                f"| {arm} | {megabytes / middle['cpu_seconds']:.2f} | {megabytes / middle['wall_seconds']:.2f} |"
                f" {middle['peak_bytes'] / 1e6:.0f} | megalign is {statistics.median(ratios):.2f} x |"
            )


def memory(args: argparse.Namespace, folder: Path, tokenizer: Path) -> None:
    """Peak memory of one worker over 1, 4 and 16 times the English input, in one file of that size."""
    import pyarrow
    import pyarrow.parquet as parquet

    print("\n| input | peak memory of a worker, MB |\n|---|---|")
    for copies in (1, 4, 16):
        grown = folder / f"grown{copies}" / "en"
        grown.mkdir(parents=True)
        schema = pyarrow.schema([("text", pyarrow.string()), ("url", pyarrow.string())])
        with parquet.ParquetWriter(grown / "en_part_00000.parquet", schema) as writer:
            texts = parquet_texts(args.input, ["en"], copies)
            number = 0
            while batch := [text for _, text in zip(range(1000), texts, strict=False)]:
                urls = [f"http://x/{number + i}" for i in range(len(batch))]
                number += len(batch)
                writer.write_table(pyarrow.table({"text": batch, "url": urls}, schema=schema))
        own = argparse.Namespace(**vars(args) | {"input": grown.parent})
        result = measure("megalign", own, folder, "en", tokenizer)
        print(f"| {copies} x | {result['peak_bytes'] / 1e6:.0f} |")
        shutil.rmtree(grown.parent)


def windows(args: argparse.Namespace, folder: Path, tokenizer: Path) -> None:
    """Random windows of the store against np.memmap and megatron-core's IndexedDataset, and opening a large store."""
    import numpy as np
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

    from megalign.corpus.preprocess import PreprocessSettings, open_workers, parse_languages, run
    from megalign.corpus.store import TokenStore

    settings = PreprocessSettings(str(args.input), str(tokenizer), parse_languages("en"))
    with open_workers(1) as workers:
        assert workers is not None
        run(settings, folder / "store", workers)
    store = TokenStore.open(folder / "store")
    total = store.num_tokens("en")
    tokens = np.array(store.window("en", 0, total))
    tokens.tofile(folder / "flat.bin")
    flat = np.memmap(folder / "flat.bin", dtype=tokens.dtype, mode="r")
    builder = IndexedDatasetBuilder(str(folder / "i.bin"), dtype=np.uint16)
    builder.add_document(torch.from_numpy(tokens.astype(np.int32)), [total])
    builder.finalize(str(folder / "i.idx"))
    indexed = IndexedDataset(str(folder / "i"))
    starts = np.random.default_rng(0).integers(0, total - WINDOW_TOKENS, WINDOWS).tolist()
    readers: dict[str, Callable[[int], Any]] = {
        "megalign": lambda start: store.window("en", start, WINDOW_TOKENS),
        "np.memmap": lambda start: flat[start : start + WINDOW_TOKENS],
        "IndexedDataset": lambda start: indexed.get(0, start, WINDOW_TOKENS),
    }
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(PAIRS):
        for name, read in readers.items():
            begin = time.process_time()
            checksum = 0
            for start in starts:
                checksum += int(read(start)[7])
            rates[name].append(WINDOWS / (time.process_time() - begin))
    print(
        f"\n| random windows of {WINDOW_TOKENS} tokens | per CPU second | ratio, median of {PAIRS} pairs |\n|---|---|---|"
    )
    for name in readers:
        ratios = [a / b for a, b in zip(rates["megalign"], rates[name], strict=True)]
        print(f"| {name} | {statistics.median(rates[name]):,.0f} | megalign is {statistics.median(ratios):.2f} x |")
    manifest = json.loads((folder / "store" / "manifest.json").read_text())
    unit = manifest["units"][0]
    manifest["units"] = [unit | {"path": f"en/train-{i:06d}-00000"} for i in range(10_000)]
    (folder / "large").mkdir()
    (folder / "large" / "manifest.json").write_text(json.dumps(manifest, indent=2))
    times = []
    for _ in range(PAIRS):
        begin = time.perf_counter()
        TokenStore.open(folder / "large")
        times.append((time.perf_counter() - begin) * 1000)
    print(f"\nOpening a store of 10,000 units: {statistics.median(times):.1f} ms (median of {PAIRS})")


def same_ids(args: argparse.Namespace, tokenizer: Path) -> None:
    """Ids of every document against Hugging Face's."""
    import tokenizers

    from megalign.corpus.tokenizer import Tokenizer

    own, reference = Tokenizer.load(tokenizer), tokenizers.Tokenizer.from_file(str(tokenizer))
    documents = different = 0
    for text in parquet_texts(args.input, args.languages.split(","), 1):
        documents += 1
        different += own.encode(text).tolist() != reference.encode(text, add_special_tokens=False).ids
    print(f"\nDocuments whose ids differ from Hugging Face's: {different} of {documents} ({args.languages})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--languages", default="en,de,ru,zh,fr,ar")
    parser.add_argument("--datatrove-python", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tokenizer", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        run_arm(args)
        return
    from megalign.corpus.tokenizer import train_tokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = folder / "tokenizer.json"
        train_tokenizer(parquet_texts(args.input, args.languages.split(","), 1), VOCABULARY_TOKENS, tokenizer)
        same_ids(args, tokenizer)
        speed(args, folder, tokenizer)
        windows(args, folder, tokenizer)
        memory(args, folder, tokenizer)


if __name__ == "__main__":
    main()
