"""A private Slurm cluster of several virtual nodes on this machine: real slurmctld, slurmd and munged, no systemd.

Needs Debian's packages slurmctld, slurmd, slurm-client and munge, whose slurmd is built for several daemons a host.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

DAEMONS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scontrol", "scancel")
PACKAGES = "apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge"
_NODE_DOWN_SECONDS = 8
# Waits are given as for a quiet machine.
_BUSY_FACTOR = 3

_CONF = """\
ClusterName=mini
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={base}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/slurmd.%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=debug
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0,requeue_delay=0
MaxArraySize={max_array_size}
MaxJobCount=20000
ReturnToService=2
SlurmdTimeout={node_down_seconds}
SlurmctldTimeout=10
InactiveLimit=0
KillWait=20
MinJobAge=300
Waittime=0
JobRequeue=1
GresTypes=gpu
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first_port}-{last_port}] CPUs=16 Boards=1 \
SocketsPerBoard=1 CoresPerSocket=16 ThreadsPerCore=1 RealMemory=4000{gres} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why there can be no cluster here; None: there can."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    absent = [name for name in DAEMONS if shutil.which(name, path=path) is None]
    if absent:
        return f"{', '.join(absent)} not installed ({PACKAGES})"
    return None


def _free_ports(count: int) -> int:
    """The first of `count` adjacent ports of the loopback interface that were all free a moment ago."""
    for first in range(21000 + os.getpid() % 5000, 32000, count):
        with suppress(OSError):
            sockets = []
            try:
                for port in range(first, first + count):
                    probe = socket.socket()
                    sockets.append(probe)
                    probe.bind(("127.0.0.1", port))
                return first
            finally:
                for probe in sockets:
                    probe.close()
    raise AssertionError("no free ports")


def _runs(process: int) -> bool:
    """Whether a process is there and no zombie, which nobody may ever reap in a container."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _processes(base: Path) -> list[int]:
    """Running processes that have the configuration of the cluster in their environment."""
    mark = f"SLURM_CONF={base}/slurm.conf".encode()
    found = []
    for path in Path("/proc").iterdir():
        with suppress(OSError):
            other = path.name.isdigit() and int(path.name) != os.getpid()
            if other and mark in (path / "environ").read_bytes().split(b"\0") and _runs(int(path.name)):
                found.append(int(path.name))
    return found


def _end(base: Path) -> None:
    """End all processes of a cluster and remove its files."""
    deadline = time.monotonic() + 10
    while (left := _processes(base)) and time.monotonic() < deadline:
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.1)
    shutil.rmtree(base, ignore_errors=True)


class MiniSlurm:
    """A running cluster; `stop` ends all daemons and whatever they started.

    Attributes:
        num_nodes: nodes n1, n2, ...
        environment: variables under which Slurm's commands speak to it.
    """

    def __init__(self, num_nodes: int = 4, max_array_size: int = 1001) -> None:
        self.num_nodes = num_nodes
        self._guard: subprocess.Popen[bytes] | None = None
        # Sockets' paths may have 107 characters: pytest's own folders are too deep.
        self.base = Path(tempfile.mkdtemp(prefix="mini-slurm-"))
        self.base.chmod(0o755)
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "PMI", "OMPI_"))}
        self.environment = {**kept, "PATH": path, "SLURM_CONF": str(self.base / "slurm.conf"), "LC_ALL": "C"}
        for name in ("state", "run", "log", "spool", "munge", "dev"):
            (self.base / name).mkdir()
        port = _free_ports(num_nodes + 1)
        gres = self._fake_gpus()
        values: dict[str, Any] = {
            "host": socket.gethostname().split(".")[0],
            "user": getpass.getuser(),
            "base": self.base,
            "port": port,
            "first_port": port + 1,
            "last_port": port + num_nodes,
            "nodes": num_nodes,
            "max_array_size": max_array_size,
            "node_down_seconds": _NODE_DOWN_SECONDS,
            "gres": gres,
        }
        (self.base / "slurm.conf").write_text(_CONF.format(**values))
        (self.base / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        key = self.base / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)

    def _fake_gpus(self) -> str:
        """Two devices a node that are /dev/null under another name, where this user may make them."""
        try:
            for number in range(2):
                os.mknod(self.base / "dev" / f"gpu{number}", 0o020666, os.makedev(1, 3))
        except PermissionError:
            return ""
        (self.base / "gres.conf").write_text(f"Name=gpu File={self.base}/dev/gpu[0-1]\n")
        return " Gres=gpu:2"

    # --- daemons

    def start(self) -> MiniSlurm:
        """Start all daemons and wait until every node is idle."""
        # Ends them when this process is killed: its end of the pipe closes.
        self._guard = subprocess.Popen(
            [sys.executable, __file__, str(self.base)], stdin=subprocess.PIPE, start_new_session=True
        )
        munge = self.base / "munge"
        self._daemon(
            "munged", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket", f"--pid-file={self.base}/run/munged.pid",
            f"--log-file={munge}/log", f"--seed-file={munge}/seed", "--num-threads=2",
        )  # fmt: skip
        self.start_controller()
        for number in range(1, self.num_nodes + 1):
            self.start_node(f"n{number}")
        self.until(self._all_idle, 30, "all nodes idle")
        return self

    def heal(self) -> None:
        """End all jobs, start the daemons that were killed, wait until every node is idle."""
        if not self._alive("slurmctld"):
            self.start_controller()
        self.until(lambda: self.call("scontrol", "ping", check=False).count("UP"), 30, "slurmctld answers")
        self.call("scancel", "--user", getpass.getuser(), check=False)
        for number in range(1, self.num_nodes + 1):
            if not self._alive(f"slurmd.n{number}"):
                self.start_node(f"n{number}")
        self.until(self._all_idle, 60, "all nodes idle")

    def _all_idle(self) -> bool:
        return len(self.call("sinfo", "-h", "-N", "-t", "idle", "-o", "%N", check=False).split()) == self.num_nodes

    def _alive(self, name: str) -> bool:
        try:
            process = int((self.base / "run" / f"{name}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return False
        return _runs(process)

    def start_controller(self) -> None:
        """Start slurmctld; it takes its state up again."""
        self._daemon("slurmctld", "-f", str(self.base / "slurm.conf"))

    def kill_controller(self) -> None:
        """End slurmctld at once."""
        self._kill("slurmctld")

    def until_saved(self, moment: float) -> None:
        """Wait until slurmctld has written down what happened before `moment`: it does so some seconds later."""
        path = self.base / "state" / "job_state"
        self.until(lambda: path.exists() and path.stat().st_mtime >= moment, 30, "slurmctld saves its state")

    def start_node(self, name: str) -> None:
        """Start the slurmd of a node."""
        self._daemon("slurmd", "-N", name, "-f", str(self.base / "slurm.conf"))

    def kill_node(self, name: str) -> None:
        """End the slurmd of a node at once; the node is down some seconds later, its processes go on."""
        self._kill(f"slurmd.{name}")

    def _daemon(self, *command: str) -> None:
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=30, check=False, cwd=self.base
        )
        assert done.returncode == 0, f"{command[0]} did not start: {done.stdout}{done.stderr}"

    def _kill(self, name: str, number: int = signal.SIGKILL) -> None:
        path = self.base / "run" / f"{name}.pid"
        with suppress(FileNotFoundError, ProcessLookupError, ValueError):
            process = int(path.read_text())
            os.kill(process, number)
            deadline = time.monotonic() + 10
            while _runs(process) and time.monotonic() < deadline:
                time.sleep(0.02)
            path.unlink(missing_ok=True)

    def processes(self) -> list[int]:
        """All processes of this cluster."""
        return _processes(self.base)

    def stop(self) -> None:
        """End all jobs, all daemons and what is left of them; remove the files."""
        with suppress(Exception):
            self.call("scancel", "--user", getpass.getuser(), check=False, timeout_seconds=10)
        for name in ("slurmctld", *(f"slurmd.n{number}" for number in range(1, self.num_nodes + 1)), "munged"):
            self._kill(name)
        _end(self.base)
        if self._guard is not None:
            self._guard.communicate(timeout=30)

    # --- commands

    def call(
        self,
        *command: str,
        check: bool = True,
        timeout_seconds: float = 60,
        more: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> str:
        """Standard output of one of Slurm's commands, with more variables, in a folder."""
        done = subprocess.run(
            command,
            env={**self.environment, **(more or {})},
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
            cwd=cwd,
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def exit_codes(self, node: str) -> list[str]:
        """What the daemon of a node noted of the ends of tasks: exit codes, oldest first."""
        text = (self.base / "log" / f"slurmd.{node}.log").read_text(errors="replace")
        return re.findall(r"task \d+ \(\d+\) exited with exit code (\d+)", text)

    def signal_batch_script(self, number: str, signal_number: int = signal.SIGUSR1) -> None:
        """Send a signal to a job's script without slurmctld."""
        for process in self.processes():
            with suppress(OSError):
                words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
                variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
                is_script = any(word.endswith(b"/slurm_script") for word in words)
                if is_script and f"SLURM_JOB_ID={number}".encode() in variables and self._is_first(process):
                    os.kill(process, signal_number)
                    return
        raise AssertionError(f"no script of job {number}")

    @staticmethod
    def _is_first(process: int) -> bool:
        """Not a subshell of the script: its parent is slurmstepd."""
        parent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1]
        return b"slurmstepd" in Path(f"/proc/{parent}/cmdline").read_bytes()

    def job(self, number: str) -> dict[str, str]:
        """What slurmctld knows of a job."""
        text = self.call("scontrol", "show", "job", "-o", number, check=False)
        first = text.splitlines()[0] if text.strip() else ""
        return dict(word.partition("=")[::2] for word in first.split() if "=" in word)

    def until(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        """Wait for a condition and give its value; fails with the controller's log long after so many seconds."""
        deadline = time.monotonic() + _BUSY_FACTOR * seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, f"not within {_BUSY_FACTOR * seconds} s: {what}\n{self.log()}"
            time.sleep(0.1)
        return value

    def ended(self, number: str, seconds: float) -> dict[str, str]:
        """Wait for a job's end and give what is known of it."""
        final = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
        return dict(self.until(
            lambda: (job := self.job(number)) and job.get("JobState") in final and job, seconds, f"job {number} ends"
        ))  # fmt: skip

    def until_gone(self, numbers: Iterable[str], seconds: float) -> None:
        """Wait until none of these jobs is in the queue."""
        listed = ",".join(numbers)
        self.until(
            lambda: not self.call("squeue", "--noheader", "--jobs", listed, check=False).strip(),
            seconds,
            f"jobs {listed} leave the queue",
        )

    def log(self) -> str:
        """The end of the controller's log and the queue."""
        text = (self.base / "log" / "slurmctld.log").read_text(errors="replace")
        with suppress(Exception):
            text += self.call("squeue", check=False, timeout_seconds=5)
        return "\n".join(text.splitlines()[-30:])


if __name__ == "__main__":
    sys.stdin.read()
    _end(Path(sys.argv[1]))
