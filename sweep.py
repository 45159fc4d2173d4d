"""A table, or a search: run what is missing, then show it. ``python sweep.py --help`` says what can be chosen."""

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# Hydra then hands errors on, and they are shown here, in one line.
os.environ.setdefault("HYDRA_FULL_ERROR", "1")
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    # Ctrl-C during the imports is no traceback; entry.in_one_line takes over.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import hydra
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from longwave import CONF, home, train
from longwave.files import open_to_others
from longwave.sweeps.command import Sweep, arguments
from longwave.sweeps.launch import Launch, run_all
from longwave.sweeps.plan import Estimate, expand
from longwave.sweeps.show import say, show_plan, show_table
from longwave.sweeps.trials import search
from longwave.sweeps.watch import Watch
from longwave.training import entry, progress
from longwave.training.command import refuse_other_checkout
from longwave.training.errors import UserError


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="sweep")
def main(cfg: DictConfig) -> None:
    try:
        sweep: Sweep = OmegaConf.to_object(cfg)
        chosen = HydraConfig.get().runtime.choices
        # Hydra composes the jobs of a launcher from these, and from each job's own.
        own = list(HydraConfig.get().overrides.hydra)
        code = sweep_table(chosen.table, sweep, own) if sweep.search is None else search(chosen.search, sweep, job, own)
    except UserError as error:
        sys.exit(f"error: {error}")
    if code:
        sys.exit(code)


def sweep_table(name: str, sweep: Sweep, hydra_overrides: list[str]) -> int:
    """Runs what is missing, and shows the table.

    Returns:
        The exit code: 1 where a run failed.
    """
    runs = expand(name, sweep.table, sweep.seeds, sweep.overrides)
    estimate = Estimate(home() / Path(runs[0].config.output).expanduser())
    if sweep.dry_run:
        show_plan(runs, estimate)
        return 0
    output = runs[0].folder.parent
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output={runs[0].config.output}: cannot make {output} ({error.strerror})") from error
    launch = Launch(job, hydra_overrides, sweep.overrides)
    failures: dict[str, str] = {}
    try:
        with Watch(runs, estimate, failures) as watch:
            run_all(runs, launch, watch)
    finally:
        show_table(runs)
    for reason in dict.fromkeys(failures.values()):
        names = [name for name, why in failures.items() if why == reason]
        say(f"failed: {', '.join(names)}: {reason}")
    return 1 if failures else 0


def job(cfg: DictConfig, on_score: Callable | None = None) -> float:
    """One run of a sweep, in whatever process the launcher has for it."""
    progress.plain = True
    with own_gpu(HydraConfig.get().job.num):
        return train.job(cfg, on_score)


@contextlib.contextmanager
def own_gpu(number: int):
    """One GPU a job, where the launcher leaves several to see: Ray and SLURM show each job its own.

    It is the first that no other job of this user has; where all are taken, job ``number`` takes its turn.
    """
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        yield
        return
    mine, lock, folder = number % count, None, lock_folder()
    for index in range(count):
        try:
            lock = FileLock(folder / f"{torch.cuda.get_device_properties(index).uuid}.lock", timeout=0)
            lock.acquire()
            mine = index
            break
        except Timeout:
            lock = None
    torch.cuda.set_device(mine)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def lock_folder() -> Path:
    """Folder of this user's locks on this machine. In the temporary folder anybody may have made it before.

    Raises:
        UserError: where another user could put links and files there.
    """
    folder = Path(tempfile.gettempdir()) / f"longwave-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        reason = "is a link" if folder.is_symlink() else open_to_others(folder)
    except OSError as error:
        reason = f"cannot be made ({error.strerror})"
    if reason:
        raise UserError(f"{folder}: {reason}; remove it, or set TMPDIR to a folder of your own")
    return folder


if __name__ == "__main__":
    with entry.in_one_line():
        refuse_other_checkout(__file__)
        sys.argv[1:], sweep, table = arguments(sys.argv[1:])
        if sweep is not None and sweep.dry_run and sweep.search is None:
            sweep_table(table, sweep, [])
        else:
            main()
