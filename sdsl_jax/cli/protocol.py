"""`sdsl protocol`: published checkpoints measured by a fixed protocol, with a table beside the published one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from rich.markdown import Markdown
from tyro.conf import Positional, arg

from sdsl_jax.cli.arguments import Flag, JobOptions, checked_jobs, require_no_jobs
from sdsl_jax.cli.terminal import say, shown_progress, standard_console
from sdsl_jax.errors import require


def protocol(
    file: Annotated[Path, Positional, arg(metavar="FILE.toml")],
    checkpoints: Annotated[Path, arg(metavar="DIR")],
    prompts: Annotated[Path | None, arg(metavar="FILE")] = None,
    out: Annotated[Path | None, arg(metavar="DIR")] = None,
    json: Flag = False,
    launch: Annotated[Literal["slurm", "local"] | None, arg(metavar="slurm|local")] = None,
    jobs: int | None = None,
    slurm: JobOptions = (),
) -> None:
    """Measure every pair of a protocol whose checkpoints are available.

    The command names absent checkpoints and skips them. It does not measure pairs again that are in
    the records already. Run it again to continue where it stopped, or when checkpoints have arrived.

    Args:
        file: The protocol, such as experiments/paper-protocol.toml.
        checkpoints: Folder with the checkpoints, each in a folder of the name that the protocol
            gives it.
        prompts: File of prompts; by default the protocol's own, beside its file.
        out: Folder of the records; by default runs/<name of the protocol>.
        json: Print protocol.json instead of its tables.
        launch: Measure in jobs of a Slurm cluster, or in processes of this machine, which share its
            processors and GPUs. Options of Slurm jobs are given as --slurm.partition=gpu
            --slurm.time=4:00:00, under the names of sbatch.
        jobs: Number of jobs to launch, 1 by default. For small models, one for every core is best.
    """
    from sdsl_jax.config import load_protocol
    from sdsl_jax.evidence.protocol import ANSWER
    from sdsl_jax.measurement.protocol import SETTINGS, run_protocol
    from sdsl_jax.records import require_records_folder
    from sdsl_jax.report.protocol import FIGURE, TABLE, write_answer

    config = load_protocol(file)
    folder = out or Path("runs") / config.name
    require_records_folder(folder, (TABLE, ANSWER, f"{FIGURE}.png"), mark=SETTINGS)
    chosen = str(prompts or file.parent / config.prompts)
    console = standard_console()
    if launch is not None:
        from sdsl_jax.cli.launch import run_launched
        from sdsl_jax.launch.jobs import launch_protocol

        require(
            not json,
            "--json does not go with --launch; protocol.json is in the folder of the records.",
        )
        jobs = checked_jobs(jobs)
        at = (config, file, checkpoints, chosen, folder, launch, jobs, slurm)
        run_launched(console, folder, launch_protocol(*at))
        text = (folder / TABLE).read_text(encoding="utf-8")
    else:
        require_no_jobs(jobs, slurm)
        with shown_progress(json) as progress:
            done = run_protocol(config, checkpoints, chosen, folder, progress)
        text = write_answer(config, done, folder)
    if json:
        # As the file has it: numbers that do not exist are null.
        print((folder / ANSWER).read_text(encoding="utf-8"), end="")
        return
    console.print(Markdown(text))
    written = [name for name in (TABLE, ANSWER, f"{FIGURE}.png") if (folder / name).exists()]
    say(console, f"\nwritten to {folder}: {', '.join(written)} and the records")
