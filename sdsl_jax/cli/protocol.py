"""`sdsl protocol`: published checkpoints measured by a fixed protocol, with a table beside the published one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.markdown import Markdown
from tyro.conf import Positional, arg

from sdsl_jax.cli.arguments import Flag
from sdsl_jax.cli.terminal import say, shown_progress, standard_console


def protocol(
    file: Annotated[Path, Positional, arg(metavar="FILE.toml")],
    checkpoints: Annotated[Path, arg(metavar="DIR")],
    prompts: Annotated[Path | None, arg(metavar="FILE")] = None,
    out: Annotated[Path | None, arg(metavar="DIR")] = None,
    json: Flag = False,
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
    """
    from sdsl_jax.config import load_protocol
    from sdsl_jax.evidence.protocol import ANSWER, summarise
    from sdsl_jax.measurement.protocol import SETTINGS, run_protocol
    from sdsl_jax.records import require_records_folder, write_json
    from sdsl_jax.report.protocol import FIGURE, TABLE, write_protocol

    config = load_protocol(file)
    folder = out or Path("runs") / config.name
    require_records_folder(folder, (TABLE, ANSWER, f"{FIGURE}.png"), mark=SETTINGS)
    with shown_progress(json) as progress:
        done = run_protocol(
            config, checkpoints, str(prompts or file.parent / config.prompts), folder, progress
        )
    summary, points = summarise(config, done, folder)
    write_json(folder / ANSWER, summary)
    text = write_protocol(summary, points, folder)
    if json:
        # As the file has it: numbers that do not exist are null.
        print((folder / ANSWER).read_text(encoding="utf-8"), end="")
        return
    console = standard_console()
    console.print(Markdown(text))
    written = [name for name in (TABLE, ANSWER, f"{FIGURE}.png") if (folder / name).exists()]
    say(console, f"\nwritten to {folder}: {', '.join(written)} and the records")
