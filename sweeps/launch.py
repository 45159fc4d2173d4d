"""Runs through Hydra's launchers, until nothing is left to do."""

import time
from collections.abc import Callable, Sequence
from subprocess import CalledProcessError

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from longwave.schema import counted, one_line
from longwave.sweeps.plan import RUNNING, Planned, key_of
from longwave.sweeps.show import say
from longwave.sweeps.watch import SECONDS, Watch
from longwave.training.errors import Taken, UserError
from longwave.training.record import FINISHED


class Launch:
    """Hydra's launcher, for explicit lists of jobs.

    Args:
        task: what a job runs.
        hydra_overrides: ``hydra/launcher=...`` and the like.
        overrides: of all runs; ``output`` is where the launcher keeps its own files.
    """

    def __init__(self, task: Callable[[DictConfig], float], hydra_overrides: list[str], overrides: Sequence[str]):
        loader = GlobalHydra.instance().config_loader()
        shared = [text for text in overrides if key_of(text) == "output"]
        fixed = ["hydra/job_logging=quiet", "hydra/hydra_logging=quiet", "hydra.mode=MULTIRUN"]
        self.config = loader.load_configuration("train", [*hydra_overrides, *fixed, *shared], RunMode.MULTIRUN)
        self.context = HydraContext(config_loader=loader, callbacks=Callbacks(self.config))
        self.launcher = Plugins.instance().instantiate_launcher(self.context, task, self.config)
        self.at_once = self.config.hydra.sweeper.get("max_batch_size")
        self.launched = 0

    def __call__(self, jobs: list[list[str]]) -> Sequence[JobReturn]:
        """The result of each job.

        Raises:
            UserError: where SLURM refuses them.
            Exception: of any kind where a worker died.
        """
        first, self.launched = self.launched, self.launched + len(jobs)
        try:
            return self.launcher.launch(jobs, initial_job_idx=first)
        except Exception as error:
            cause = error.__cause__
            if isinstance(cause, CalledProcessError) and cause.cmd[0] == "sbatch":
                reason = cause.stderr.partition("\n")[0]
                raise UserError(f"SLURM refuses the jobs: {one_line(reason, 200)}") from error
            raise


def run_all(runs: list[Planned], launch: Launch, watch: Watch) -> None:
    """Launches what is not finished, until nothing is left that another process does not hold or that has not failed.

    What another process holds is left to it, and run only if that process ends without finishing it.
    """
    deaths: dict[str, int] = {}
    reported = False
    while True:
        open_runs = [(run, run.state()) for run in runs if run.name not in watch.failures]
        open_runs = [(run, state) for run, state in open_runs if state != FINISHED]
        free = [run for run, state in open_runs if state != RUNNING]
        held = len(open_runs) - len(free)
        if held and not reported:
            reported = True
            verb = "is" if held == 1 else "are"
            say(f"{counted(held, 'run')} {verb} being trained by another process, which this sweep waits for")
        if not open_runs:
            return
        if not free:
            time.sleep(SECONDS)
            continue
        batch = free[: launch.at_once]
        before = {run.name: _written(run) for run in batch}
        try:
            returns = launch([run.overrides for run in batch])
        except UserError:
            raise
        except Exception as error:
            # A worker died. Whoever was at work then may be the reason, and has one more try.
            reason = f"a worker died ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
            suspects = [run for run in batch if _written(run) != before[run.name]]
            suspects = [run for run in suspects if run.state() != FINISHED]
            say(reason)
            for run in suspects or batch:
                deaths[run.name] = deaths.get(run.name, 0) + 1
                if deaths[run.name] > 1 and run.state() != RUNNING:
                    watch.failed(run.name, reason)
            continue
        for run, returned in zip(batch, returns, strict=True):
            error = returned._return_value if returned.status != JobStatus.COMPLETED else None
            if isinstance(error, Taken):
                continue
            if error is not None:
                kind = "" if type(error) is UserError else f"{type(error).__name__}: "
                watch.failed(run.name, f"{kind}{error}")
            elif run.state() != FINISHED:
                watch.failed(run.name, "it left no finished record")


def _written(run: Planned) -> str | None:
    """Time of the run's record, if there is one."""
    record = run.record()
    return record and record.written
