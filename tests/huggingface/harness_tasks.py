"""Small tasks of lm-evaluation-harness over local files, and what the ranks of a layout compute of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from megalign.config.layout import Layout
from megalign.errors import MegalignError

TEXTS = ["the house is red", "a dog runs in the park", "she sees the man", "we read a book about the river ", "it"]
CHOICES = [" and", " of the", " house", " a b"]
NAMES = ["tiny_choice", "tiny_text", "tiny_say"]


def write_tasks(folder: Path) -> Path:
    """A multiple-choice task, one of perplexity with texts longer than a window, and a generating one."""
    folder.mkdir(parents=True)
    rows = [{"q": text, "choices": CHOICES, "label": n % 4} for n, text in enumerate(TEXTS * 3)]
    (folder / "choice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pages = [{"page": f"{text}. " * (3 * n + 1)} for n, text in enumerate(TEXTS)]
    (folder / "text.jsonl").write_text("".join(json.dumps(page) + "\n" for page in pages))
    common = {"dataset_path": "json", "test_split": "test", "num_fewshot": 0}
    tasks: dict[str, dict[str, Any]] = {
        "tiny_choice": {
            "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{label}}", "target_delimiter": "", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        "tiny_text": {
            "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{page}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
        "tiny_say": {
            "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": " x",
            "generation_kwargs": {"until": ["e"], "max_gen_toks": 6}, "metric_list": [{"metric": "exact_match"}],
        },
        "tiny_remote": {
            "dataset_path": "nobody/nothing", "output_type": "multiple_choice", "doc_to_text": "{{q}}",
            "doc_to_choice": "{{choices}}", "doc_to_target": "{{label}}",
        },
        "tiny_sampled": {
            "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": " x",
            "generation_kwargs": {"until": ["e"], "max_gen_toks": 6, "do_sample": True},
        },
        "tiny_long": {
            "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": " x",
            "generation_kwargs": {"until": ["e"]},
        },
    }  # fmt: skip
    for name, task in tasks.items():
        data = folder / ("text.jsonl" if name == "tiny_text" else "choice.jsonl")
        kwargs = {} if name == "tiny_remote" else {"dataset_kwargs": {"data_files": {"test": str(data)}}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **kwargs, **task}))
    return folder


def settings_of(tasks: Path, out: Path, names: list[str], **more: Any) -> dict[str, Any]:
    return {"out": str(out), "tasks": names, "include_path": str(tasks), "batch_size": 3, "bootstrap_iters": 0, **more}


def evaluate(layout: Layout, run: Path, settings: dict[str, Any]) -> None:
    """On every rank."""
    from megalign.evaluation.harness_run import HarnessSettings, evaluate_tasks, reading

    parallel = {"tensor": layout.parallel.tensor, "pipeline": layout.parallel.pipeline}
    config = reading(run, [f"parallel.{name}={degree}" for name, degree in parallel.items()])
    evaluate_tasks(config, HarnessSettings.model_validate(settings))


def stopped_and_continued(
    layout: Layout, run: Path, settings: dict[str, Any]
) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
    """On every rank: evaluate, cut what was kept as a kill does, change a number in it, evaluate again.

    Returns:
        the samples and what was kept of both.
    """
    from megalign.engine import groups

    kept, samples = Path(settings["out"]) / "progress.jsonl", Path(settings["out"]) / "samples_tiny_choice.jsonl"

    def results() -> dict[str, Any]:
        return {k: v for line in kept.read_text().splitlines()[1:] for k, v in json.loads(line).items()}

    evaluate(layout, run, settings)
    groups.barrier()
    first, kept_first = samples.read_text(), results()
    groups.barrier()
    if groups.rank() == 0:
        head, second, third, fourth, *_ = kept.read_text().splitlines(keepends=True)
        content = json.loads(second)
        content[next(iter(content))] = [-1.25, True]
        kept.write_text(head + json.dumps(content) + "\n" + third + fourth[:20])
    groups.barrier()
    evaluate(layout, run, settings)
    groups.barrier()
    return first, samples.read_text(), kept_first, results()


def refusals(layout: Layout, run: Path, all_settings: list[dict[str, Any]]) -> list[str]:
    """What each evaluation is refused with."""
    told = []
    for settings in all_settings:
        try:
            evaluate(layout, run, settings)
            told.append("nothing")
        except MegalignError as error:
            told.append(str(error))
    return told


def responses(out: Path, task: str) -> list[Any]:
    """The model's responses to a task, in order, as files hold them."""
    lines = (out / f"samples_{task}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["resps"] for line in lines]
