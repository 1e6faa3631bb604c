"""Profiles, plans and job scripts, without Slurm."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from megalign.cluster.plan import SlurmStep, jobs_of, shape
from megalign.cluster.profile import SiteProfile, load_profile, seconds_of
from megalign.cluster.records import records_of
from megalign.cluster.render import Submission, launch_words, render, sbatch_options, supervisor, task_lines
from megalign.cluster.submit import SubmittedJob, dependency_options, plan
from megalign.config import validate
from megalign.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SITE: dict[str, Any] = {
    "name": "site",
    "tasks_per_node": 4,
    "training": {"time_limit": "1-02:00:00", "gres": "gpu:h100", "cpus_per_task": 7, "partition": "gpu"},
    "single": {"time_limit": "01:00:00"},
    "python": "/opt/my python",
}


def site(**changes: Any) -> SiteProfile:
    return validate(SiteProfile, {**SITE, **changes}, "site.yaml")


def step(name: str = "train", **more: Any) -> SlurmStep:
    return SlurmStep(
        name,
        ["megalign.study.worker", "train", "a b.yaml"],
        Path("/runs/x"),
        **{"trains": True, "chained": True, **more},
    )


def test_time_limits_are_read_as_slurm_reads_them() -> None:
    assert seconds_of("1-02:03:04") == 93784
    assert seconds_of("00:00:30") == 30
    with pytest.raises(ValueError, match=r"'90' is not of the form HH:MM:SS or D-HH:MM:SS \(in YAML"):
        seconds_of("90")


@pytest.mark.parametrize("path", sorted((REPOSITORY / "slurm" / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_renders(path: Path, tmp_path: Path) -> None:
    profile = load_profile(path)
    submission = Submission(tmp_path, tmp_path, profile)
    for job in jobs_of([step(), step("data", trains=False)], profile):
        script = render(job, submission)
        done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    assert profile.signal_margin_seconds < seconds_of(profile.training.time_limit)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"account": "a b"}, "account: 'a b' must be one word without quotes"),
        ({"account": "a\n#SBATCH --uid=0"}, "must be one word without quotes"),
        ({"modules": ["cuda; rm -rf /"]}, "must be one word without quotes"),
        ({"environment": {"A B": "x"}}, "'A B' is no name of an environment variable"),
        ({"environment": {"A": "x\ny"}}, "holds a control character"),
        ({"sbatch_options": ["-J x"]}, "is not of the form --option or --option=value"),
        (
            {"signal_margin_seconds": 93600},
            "signal_margin_seconds 93600 is not less than training.time_limit 1-02:00:00",
        ),
        ({"partiton": "x"}, "unknown key partiton"),
        ({"tasks_per_node": 0}, "tasks_per_node"),
    ],
)
def test_what_could_leave_its_line_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        site(**changes)
    assert message in str(caught.value)


def test_options_of_a_job() -> None:
    (job,) = jobs_of([step(processes=8)], site())
    submission = Submission(Path("/runs/x"), Path("/home"), site(account="acc", max_array_running=2), 3, "requeue")
    options = sbatch_options(job, submission)
    assert options == [
        "--job-name=train",
        "--nodes=2",
        "--ntasks-per-node=4",
        "--cpus-per-task=7",
        "--gres=gpu:h100:4",
        "--time=1-02:00:00",
        "--account=acc",
        "--partition=gpu",
        "--signal=B:USR1@300",
        "--requeue",
        "--open-mode=append",
        '--output="/runs/x/slurm/output/train-%j.out"',
        '--chdir="/home"',
    ]
    script = render(job, submission)
    assert "STEP=(train /runs/x - megalign.study.worker train 'a b.yaml')" in script
    assert "COMMAND=('/opt/my python' -m megalign.cluster.task --preflight 120)" in script
    assert "ON_STOP=requeue" in script
    assert "SUBMISSION=3 " in script


def test_values_of_the_environment_stay_values() -> None:
    value = 'it\'s $(touch /tmp/x) `id` "q" \\'
    (job,) = jobs_of([step()], site())
    lines = render(job, Submission(Path("/r"), Path("/"), site(environment={"A": value}))).splitlines()
    line = next(line for line in lines if line.startswith("export A="))
    done = subprocess.run(["bash", "-c", f'{line}\nprintf %s "$A"'], capture_output=True, text=True, check=True)
    assert done.stdout == value


@pytest.mark.parametrize(
    ("container", "words"),
    [
        (
            {"kind": "pyxis", "image": "a.sqsh", "mounts": ["/d:/d"], "options": ["--no-container-mount-home"]},
            ["--container-image=a.sqsh", "--container-mounts=/d:/d,/runs/x:/runs/x", "--no-container-mount-home"],
        ),
        ({"kind": "enroot", "image": "img"}, ["enroot", "start", "--mount=/runs/x:/runs/x", "img"]),
        ({"kind": "apptainer", "image": "a.sif"}, ["apptainer", "exec", "--nv", "--bind=/runs/x:/runs/x", "a.sif"]),
    ],
)
def test_containers(container: dict[str, Any], words: list[str]) -> None:
    profile = site(container=container)
    (job,) = jobs_of([step()], profile)
    assert launch_words(job, profile, Path("/runs/x"))[-len(words) :] == words


def test_processes_fill_whole_nodes() -> None:
    assert [shape(n, 4) for n in (1, 3, 4, 8)] == [(1, 1), (1, 3), (1, 4), (2, 4)]
    with pytest.raises(ConfigError, match="6 processes do not fill nodes of tasks_per_node 4"):
        shape(6, 4)


def test_steps_of_a_kind_become_arrays_within_the_limit() -> None:
    data = [step(f"data-{s}", kind="data", trains=False) for s in range(2)]
    runs = [step(f"run-{s}-{m}", kind=f"runs-{s}", needs=[f"data-{s}"]) for s in range(2) for m in range(3)]
    wide = step("run-0-wide", kind="runs-0", needs=["data-0"], processes=4)
    jobs = jobs_of([*data, *runs, wide], site(max_array_size=2))
    assert [(job.name, [s.name for s in job.steps]) for job in jobs] == [
        ("data", ["data-0", "data-1"]),
        ("runs-0.1", ["run-0-0", "run-0-1"]),
        ("runs-0.2", ["run-0-2"]),
        ("runs-1.1", ["run-1-0", "run-1-1"]),
        ("runs-1.2", ["run-1-2"]),
        ("run-0-wide", ["run-0-wide"]),
    ]
    assert "--array=0-1" in sbatch_options(jobs[0], Submission(Path("/r"), Path("/"), site()))
    assert task_lines(jobs[0]).splitlines()[1].split("\t")[:3] == ["data-1", "/runs/x", "-"]


def test_dependencies_name_tasks_of_arrays_and_the_last_of_a_chain() -> None:
    submitted = [
        SubmittedJob("data", "10", 1, True, ["data-0", "data-1"]),
        SubmittedJob("train", "11", 1, False, ["train"]),
        SubmittedJob("train", "12", 2, False, ["train"]),
    ]
    (job,) = jobs_of([step("after", needs=["data-1", "train"], follows=["gone"])], site())
    assert dependency_options(job, 1, submitted) == ["--dependency=afterok:10_1:12", "--kill-on-invalid-dep=yes"]
    (chained,) = jobs_of([step("train")], site())
    assert dependency_options(chained, 3, submitted) == ["--dependency=afterany:12", "--kill-on-invalid-dep=yes"]
    (free,) = jobs_of([step("free", needs=["done before"])], site())
    assert dependency_options(free, 1, submitted) == []


def test_what_is_done_is_not_planned_and_only_training_is_chained(tmp_path: Path) -> None:
    marker = tmp_path / "done.json"
    marker.touch()
    steps = [step("a", marker=marker), step("b"), step("c", chained=False), step("d", implied_by=marker)]
    planned = plan(steps, Submission(tmp_path, tmp_path, site(), chain=2))
    assert [(job.name, link) for job, link in planned] == [("b", 1), ("b", 2), ("c", 1)]


def test_scores_wait_for_the_training_of_their_own_run(tmp_path: Path) -> None:
    """Task k of one array for task k of the other, within the limit of arrays and where some training is done."""
    marker = tmp_path / "done.json"
    marker.touch()
    train = [step(f"train-{n}", kind="train", marker=marker if n == 1 else None) for n in range(6)]
    score = [step(f"run-{n}", kind="evaluate", chained=False, continues=f"train-{n}") for n in range(6)]
    jobs = [job for job, _ in plan([*train, *score], Submission(tmp_path, tmp_path, site(max_array_size=3)))]
    assert [(job.name, [s.name for s in job.steps]) for job in jobs] == [
        ("train.1", ["train-0", "train-2", "train-3"]),
        ("train.2", ["train-4", "train-5"]),
        ("evaluate.1", ["run-0", "run-2", "run-3"]),
        ("evaluate.2", ["run-4", "run-5"]),
        ("run-1", ["run-1"]),
    ]
    submitted = [
        SubmittedJob(job.name, str(10 + n), 1, job.is_array, [s.name for s in job.steps]) for n, job in enumerate(jobs)
    ]
    assert [dependency_options(job, 1, submitted[:2])[:1] for job in jobs[2:]] == [
        ["--dependency=aftercorr:10"],
        ["--dependency=aftercorr:11"],
        [],
    ]
    (one,) = jobs_of([score[5]], site())
    assert dependency_options(one, 1, submitted[:2])[:1] == ["--dependency=afterok:11_1"]
    (report,) = jobs_of([step("report", follows=[f"run-{n}" for n in (0, 2, 3, 4)])], site())
    assert dependency_options(report, 1, submitted)[:1] == ["--dependency=afterany:12:13_0"]


@pytest.mark.parametrize("name", ["a%b", 'a"b', "a$b", "a:b"])
def test_a_folder_that_slurm_would_take_apart_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="in its name"):
        plan([step()], Submission(tmp_path / name, tmp_path, site()))


def test_names_and_arguments_that_scripts_cannot_carry_are_refused() -> None:
    with pytest.raises(ConfigError, match="'a b' cannot name a job"):
        step("a b")
    with pytest.raises(ConfigError, match="holds a control character"):
        SlurmStep("a", ["x\ty"], Path("/r"))


def test_the_supervisor_is_a_script() -> None:
    done = subprocess.run(["bash", "-n"], input=supervisor(), text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((REPOSITORY / "slurm").glob("*.sbatch")), ids=lambda path: path.stem)
def test_the_scripts_to_copy_are_scripts(path: Path) -> None:
    done = subprocess.run(["bash", "-n", path], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --time=" in path.read_text(encoding="utf-8")


def test_a_half_written_record_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "slurm" / "records" / "train.tsv"
    path.parent.mkdir(parents=True)
    path.write_text("100\t1\t1\t7\t0\tn1\tbegin\tnone\t\nnonsense\n101\t1\t1\t7\t0\tn1\tstop")
    (record,) = records_of(tmp_path, "train")
    assert (record.job, record.event, record.checkpoints) == ("7", "begin", "none")
    assert records_of(tmp_path, "other") == []
