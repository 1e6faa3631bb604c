"""The repository keeps its own rules: examples run, the README names what exists, files stay small, arrows hold."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megalign.config import load_run, load_study
from megalign.study.expand import StudyFolder, methods_of
from megalign.study.graph import steps_of

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for folder in ("megalign", "tools") for path in (REPOSITORY / folder).rglob("*.py"))
RUN = REPOSITORY / "examples" / "pretraining" / "run.yaml"
EXAMPLES = sorted(set((REPOSITORY / "examples").rglob("*.yaml")) - {RUN})
README = REPOSITORY / "README.md"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_example_expands_to_runs(path: Path, tmp_path: Path) -> None:
    study = load_study(path)
    steps = steps_of(study, StudyFolder(tmp_path))
    assert sum(step.run is not None for step in steps) == len(study.seeds) * len(methods_of(study)) > 0
    assert not Path(study.corpus.path or "relative").is_absolute()


def test_the_example_of_a_run_is_one() -> None:
    run = load_run(RUN)
    assert not any(Path(path).is_absolute() for path in (run.folder, run.data.store, run.data.table or ""))


def test_there_are_examples() -> None:
    assert {"demo.yaml", "real_text.yaml", "quick.yaml"} <= {path.name for path in EXAMPLES}


def shell_lines(text: str) -> Iterator[str]:
    """Commands of the fenced sh blocks, continued lines joined, comments left out."""
    for block in re.findall(r"```(?:sh|bash|console|shell)\n(.*?)```", text, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                yield shlex.join(words)


def missing_from(words: list[str]) -> list[str]:
    """What a command line names and the repository does not have."""
    from megalign.cli.app import app

    words = [word.removeprefix(".venv/bin/") for word in words]
    absent = [
        w for w in words if w.startswith(("examples/", "tools/", "slurm/", "tests/")) and not (REPOSITORY / w).exists()
    ]
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        absent += [f"make {w}" for w in words[1:] if "=" not in w and w not in targets]
    if words[0] == "megalign" and len(words) > 1 and not words[1].startswith("-"):
        groups = {group.name: group.typer_instance for group in app.registered_groups}
        at, name = (groups[words[1]], words[2]) if words[1] in groups and len(words) > 2 else (app, words[1])
        known = {c.name or c.callback.__name__ for c in at.registered_commands if c.callback} | set(groups)
        absent += [] if name in known else [f"megalign {name}"]
    return absent


def test_a_missing_name_is_seen() -> None:
    text = "```sh\nmake demo nothing  # x\nmegalign study walk\npython tools/no.py\nmegalign train examples/no.yaml a=1\n```"
    missing = [missing_from(line.split()) for line in shell_lines(text)]
    assert missing == [["make nothing"], ["megalign walk"], ["tools/no.py"], ["examples/no.yaml"]]


@pytest.mark.skipif(not README.exists(), reason="no README.md yet")
def test_the_readme_names_what_exists() -> None:
    text = README.read_text(encoding="utf-8")
    lines = list(shell_lines(text))
    assert lines
    assert not [name for line in lines for name in missing_from(shlex.split(line))]
    linked = [target for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text) if not (REPOSITORY / target).exists()]
    assert not linked


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") < 600
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 80, node.name


def tracked() -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if names.returncode:
        pytest.skip("not a git checkout")
    return [path for name in names.stdout.splitlines() if (path := REPOSITORY / name).is_file()]


def test_no_file_names_a_machine() -> None:
    machine = re.compile(r"/work/|/home/\w|/Users/|/root/")
    found = []
    for path in tracked():
        if path == Path(__file__):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path}:{n}: {line}" for n, line in enumerate(text.splitlines(), 1) if machine.search(line)]
    assert not found


def test_the_forbidden_arrows_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    if not lint.exists():
        pytest.skip("import-linter is not installed")
    done = subprocess.run([lint, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_text_is_handled_without_torch() -> None:
    """Everything in corpus/ and config/, and every tool, loads neither torch nor Megatron."""
    modules = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        for path in SOURCES
        if path.relative_to(REPOSITORY).parts[:2] in (("megalign", "corpus"), ("megalign", "config"))
    ]
    tools = [path.stem for path in SOURCES if path.parent.name == "tools"]
    assert len(modules) > 20
    assert len(tools) > 5
    code = (
        "import importlib, sys\n"
        f"sys.path[:0] = [{str(REPOSITORY)!r}, {str(REPOSITORY / 'tools')!r}]\n"
        f"for name in {modules + tools!r}: importlib.import_module(name)\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'megatron', 'megatron_core'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
