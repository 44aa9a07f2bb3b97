"""What a job runs: a function of `work`, with the signals of schedulers turned into ours.

submitit pickles a task. The task names its function instead of holding it, so that a job sets its
processors before anything imports jax.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from sdsl_jax.cache_folders import locked
from sdsl_jax.compilation import keep_compiled_programs
from sdsl_jax.errors import SdslError
from sdsl_jax.launch.records import STOP, Reporter
from sdsl_jax.preemption import Preempted, end_on_sigterm
from sdsl_jax.progress import Progress, Silent

# What submitit sends before a time limit.
TIME_LIMIT = signal.SIGUSR2


@dataclass(frozen=True)
class Task:
    """A task of a launch, which submitit calls.

    Attributes:
      function: Name of a function of `sdsl_jax.launch.work`.
      arguments: Its arguments: plain values.
      launch: Folder of the launch.
      number: Number of the task.
      processors: Processors to run on; all if empty.
      gpus: Names of the NVIDIA GPUs to use; those of the job if empty.
    """

    function: str
    arguments: dict[str, Any]
    launch: str = ""
    number: int = 0
    processors: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()

    def __call__(self) -> None:
        """Runs the function and reports how it ends, in the job."""
        if self.processors:
            os.sched_setaffinity(0, self.processors)
        if self.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        keep_compiled_programs()
        # The first of the processes of a distributed program speaks for all of them.
        if int(os.environ.get("SLURM_PROCID", "0")):
            self._run(Silent())
            return
        folder = Path(self.launch)
        with locked(folder / f"task-{self.number}.lock"):
            reporter = Reporter(folder, self.number)
            if (folder / STOP).exists():
                reporter.say("stopped")
                return
            try:
                reporter.say("finished", self._run(reporter))
            except (Preempted, SystemExit) as end:
                reporter.say("stopped")
                sys.exit(end.code if isinstance(end, SystemExit) else 128 + signal.SIGTERM)
            except SdslError as error:
                reporter.say("failed", str(error))
                print(f"sdsl: error: {error}", file=sys.stderr, flush=True)
                sys.exit(2)
            except Exception as error:
                reporter.say("failed", "".join(traceback.format_exception_only(error)).strip())
                raise

    def checkpoint(self) -> Any:
        """What submitit runs after a time limit: the same task, which continues from its files."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _run(self, progress: Progress) -> str:
        """Runs the function; SIGTERM, which schedulers send to preempt and requeue, and the signal of
        a time limit end it in good order.

        Raises:
          Preempted: SIGTERM came.
          SystemExit: The time limit came, and submitit has requeued the job.
        """
        requeue, came = signal.getsignal(TIME_LIMIT), list[int]()
        end_on_sigterm()

        def time_limit(number: int, frame: FrameType | None) -> None:
            came.append(number)
            os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(TIME_LIMIT, time_limit)
        try:
            work = importlib.import_module("sdsl_jax.launch.work")
            return str(getattr(work, self.function)(progress, **self.arguments))
        finally:
            # Whatever comes while the first signal is answered changes nothing.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(TIME_LIMIT, signal.SIG_IGN)
            if came and callable(requeue):
                requeue(TIME_LIMIT, None)
