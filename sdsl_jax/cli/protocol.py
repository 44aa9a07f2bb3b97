"""`sdsl protocol`: published checkpoints measured by a fixed protocol, and its table beside the published one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro
from rich.markdown import Markdown

from sdsl_jax.cli.terminal import Terminal, error_console, standard_console


def protocol(
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.toml")],
    checkpoints: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    prompts: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Measure every pair of a protocol whose checkpoints are there.

    Folders that are absent are passed over and named; pairs that are in the records already are not
    measured again, so the same command goes on where it stood, and with whatever has arrived since.

    Args:
        file: the protocol, such as experiments/paper-protocol.toml.
        checkpoints: folder with the checkpoints, each in a folder of the name that the protocol
            gives it.
        prompts: file of prompts; the protocol's own, beside its file, if left out.
        out: folder of the records; runs/<name of the protocol> if left out.
        json: print protocol.json instead of its tables.
    """
    from sdsl_jax.config import load_protocol
    from sdsl_jax.measurement.protocol import SETTINGS, run_protocol
    from sdsl_jax.records import require_records_folder
    from sdsl_jax.report.protocol import ANSWER, FIGURE, TABLE, markdown, summarise

    config = load_protocol(file)
    folder = out or Path("runs") / config.name
    require_records_folder(folder, (TABLE, ANSWER, f"{FIGURE}.png"), mark=SETTINGS)
    progress = None if json and not sys.stderr.isatty() else Terminal(error_console())
    try:
        done = run_protocol(
            config, checkpoints, str(prompts or file.parent / config.prompts), folder, progress
        )
    finally:
        if progress is not None:
            progress.close()
    found = summarise(config, done, folder)
    if json:
        # As it was written: what is not a number is null there.
        print((folder / ANSWER).read_text(encoding="utf-8"), end="")
        return
    console = standard_console()
    console.print(Markdown(markdown(found)))
    written = [name for name in (TABLE, ANSWER, f"{FIGURE}.png") if (folder / name).exists()]
    console.print(
        f"\nwritten to {folder}: {', '.join(written)} and the records",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
