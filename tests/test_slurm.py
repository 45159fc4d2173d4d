"""Sweeps on SLURM: what is submitted, and what is done where there is none. sbatch and its like are stand-ins."""

import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from longwave import PACKAGE
from longwave.sweeps import command as sweep_command
from longwave.training import command as train_command
from longwave.training.errors import UserError
from longwave.training.overrides import check
from tests.test_multirun import SMALL, installed
from tests.test_sweep import TINY, records_in, starts

needs_submitit = pytest.mark.skipif(
    not installed("hydra_plugins.hydra_submitit_launcher"),
    reason="hydra_plugins.hydra_submitit_launcher is not installed: pip install -e .[submitit]",
)

# Keeps what it is given; then it refuses, or has every task of the array run on this machine.
SBATCH = """#!{python}
import os, pathlib, re, subprocess, sys
text = pathlib.Path(sys.argv[1]).read_text()
pathlib.Path("{folder}", "submitted.sh").write_text(text)
if "--partition=none" in text:
    sys.exit("sbatch: error: invalid partition specified: none\\nsbatch: error: Batch job submission failed")
for task in range(int(re.search(r"--array=0-(\\d+)", text)[1]) + 1):
    ids = {{"SLURM_JOB_ID": str(100 + task), "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(task)}}
    quiet = {{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}}
    subprocess.Popen(["bash", "-c", text], env=os.environ | ids, start_new_session=True, **quiet)
print("Submitted batch job 7")
"""
# Runs the command behind its own options, and keeps what it prints where they say.
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do
  case $1 in --output) out=$2 ;; --error) err=$2 ;; esac
  [[ $1 == --unbuffered ]] || shift
  shift
done
name() { sed "s/%A/$SLURM_ARRAY_JOB_ID/g; s/%a/$SLURM_ARRAY_TASK_ID/g; s/%t/0/g" <<< "$1"; }
mkdir -p "$(dirname "$(name "$out")")"
exec "$@" > "$(name "$out")" 2> "$(name "$err")"
"""
SACCT = "#!/bin/sh\necho 'JobID|State|NodeList'\n"


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """A folder on the PATH with stand-ins for SLURM's commands; what is submitted is kept there."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    texts = {"sbatch": SBATCH.format(python=sys.executable, folder=folder), "srun": SRUN, "sacct": SACCT}
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def commands_of_the_page() -> list[str]:
    """The commands of docs/sweeps.md, each in one line and without its comment."""
    page = (PACKAGE / "docs" / "sweeps.md").read_text()
    page = re.sub(r"^```yaml\n.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)
    blocks = re.findall(r"^```\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    text = "".join(blocks).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip()]


def test_every_command_of_the_page_is_one(slurm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "wandb" / "offline-run-1").mkdir(parents=True)
    seen = set()
    for line in commands_of_the_page():
        words = shlex.split(line, comments=True)
        if words[0] == "sbatch":
            # Options with values, and one command in quotes.
            assert all(re.fullmatch(r"--[a-z-]+(=.+)?", word, re.DOTALL) for word in words[1:]), line
            (wrapped,) = [word.removeprefix("--wrap=") for word in words if word.startswith("--wrap=")]
            words = shlex.split(wrapped)
        seen.add(tuple(words[:2]))
        match words:
            case ["python", "sweep.py", *rest]:
                _, found, _ = sweep_command.arguments(rest)
                assert found is not None
            case ["python", "train.py", *rest]:
                train_command.parse(rest)
            case ["python", "-m", module, *_]:
                assert find_spec(f"longwave.{module}"), line
            case ["wandb", name, *rest]:
                cli = pytest.importorskip("wandb.cli.cli").cli
                cli.commands[name].make_context(name, [text.replace("*", "1") for text in rest])
            case ["pip", "install", "-e", extra]:
                assert f"\n{extra[2:-1]} = [" in (PACKAGE / "pyproject.toml").read_text(), line
            case _:
                pytest.fail(f"no test knows this command: {line}")
    assert {("python", "sweep.py"), ("wandb", "sync"), ("python", "-m")} <= seen


def submission_of_the_page() -> list[str]:
    """The overrides of the page's sweep on SLURM."""
    (line,) = [line for line in commands_of_the_page() if "submitit_slurm" in line]
    return shlex.split(line, comments=True)[2:]


def test_without_slurm_it_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    given = submission_of_the_page()
    message = r"^hydra/launcher=submitit_slurm: no SLURM here \(sbatch not found\)$"
    with pytest.raises(UserError, match=message):
        sweep_command.arguments(given)
    with pytest.raises(UserError, match=message):
        train_command.parse(["-m", "seed=0,1", "hydra/launcher=submitit_slurm"])
    # The others need none.
    check("hydra/launcher=submitit_local", [])


@needs_submitit
@pytest.mark.slow
def test_the_sbatch_file_has_what_the_page_says(slurm, sweep_process):
    given = [text for text in submission_of_the_page() if not text.startswith(("table=", "hydra.launcher.partition="))]
    setup = 'hydra.launcher.setup=["module load cuda"]'
    done = sweep_process.run("table=cornn_adding", "seeds=3", *TINY, *given, setup, "hydra.launcher.partition=none")
    assert done.returncode == 1
    assert "error: SLURM refuses the jobs: sbatch: error: invalid partition specified: none" in done.stdout
    assert "worker died" not in done.stdout
    assert "Traceback" not in done.stdout
    lines = (slurm / "submitted.sh").read_text().splitlines()
    page = (PACKAGE / "docs" / "sweeps.md").read_text()
    table = re.findall(r"^\| `.*?` \| (.*?) \|", page.partition("| line of the sbatch file |")[2], re.MULTILINE)
    told = [text for cell in table for text in re.findall(r"`(.*?)`", cell)][:13]
    expected = {
        text: f"#SBATCH {text}" if text.startswith("--") else text
        for text in (cell.replace("partition=gpu", "partition=none").replace("0-32%8", "0-11%8") for cell in told)
    }
    assert "--signal=USR2@120" in expected
    assert "--array=0-11%8" in expected
    missing = [text for text, line in expected.items() if line not in lines]
    assert not missing
    logs = re.escape(f"{sweep_process.output}/sweeps/") + r"[\d_-]+/\.submitit/%A_%a/%A_%a_0_log\.out"
    assert any(re.fullmatch(f"#SBATCH --output={logs}", line) for line in lines)


@needs_submitit
@pytest.mark.slow
def test_a_sweep_on_slurm(slurm, sweep_process):
    given = [text for text in submission_of_the_page() if not text.startswith(("table=", "threads=", "tracking."))]
    done = sweep_process.run("table=cornn_adding", "seeds=1", *TINY, *given)
    assert done.returncode == 0, done.stdout
    assert {record["status"] for record in records_in(sweep_process.output).values()} == {"finished"}
    assert "4/4 done, 0 failed" in done.stdout
    assert "adding, T = 8: mse" in done.stdout
    # Logs are where the page says.
    (logs,) = sweep_process.output.glob("sweeps/*/.submitit")
    assert [path.name for path in sorted(logs.glob("*/*_0_log.out"))] == [f"7_{task}_0_log.out" for task in range(4)]


def workers_of(process: int) -> list[int]:
    """Processes below it that run a job of submitit."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(path.name)] = parent, (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
    below = {process}
    for _ in range(5):
        below |= {pid for pid, (parent, _) in found.items() if parent in below}
    return [pid for pid in below if pid in found and b"submitit.core._submit" in found[pid][1]]


@needs_submitit
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
@pytest.mark.slow
def test_a_run_that_is_preempted_is_requeued_and_resumes(train_process):
    """As SLURM would: USR2 to the worker, which submitit then starts again; three times, as the third is no failure."""
    longer = "training.steps=6000", "training.evaluate_every=1000", "training.checkpoint_seconds=0.5"
    small = [text for text in SMALL if not text.startswith("training.steps=")]
    process = train_process.start("-m", "model=cornn", "seed=0", *small, *longer, "hydra/launcher=submitit_local")
    deadline = time.monotonic() + 200
    for session in (1, 2, 3):
        while process.poll() is None and time.monotonic() < deadline:
            if session in starts(train_process.output).values():
                break
            time.sleep(0.05)
        assert process.poll() is None, process.stdout.read()
        (worker,) = workers_of(process.pid)
        os.kill(worker, signal.SIGUSR2)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    (folder,) = train_process.runs()
    record = json.loads((folder / "record.json").read_text())
    assert (record["status"], record["sessions"], record["budget"]["steps_done"]) == ("finished", 4, 6000)
