"""The command `sdsl`: thin subcommands, and the only place that prints."""

from __future__ import annotations

import os
import sys

import tyro

from sdsl_jax.cli.calibrate import calibrate
from sdsl_jax.cli.codesign import codesign
from sdsl_jax.cli.compilation import compile_quickly, keep_compiled_programs
from sdsl_jax.cli.export import export
from sdsl_jax.cli.fit import fit
from sdsl_jax.cli.measure import measure
from sdsl_jax.cli.memory import use_huge_pages
from sdsl_jax.cli.predict import lookahead, predict
from sdsl_jax.cli.protocol import protocol
from sdsl_jax.cli.study import overrides, split_overrides, study
from sdsl_jax.cli.train import train
from sdsl_jax.cli.tune import tune
from sdsl_jax.errors import SdslError
from sdsl_jax.preemption import Preempted, end_on_sigterm


def version() -> None:
    """Print the versions that a bug report should name."""
    from sdsl_jax.study import versions

    for name, value in versions().items():
        print(f"{name} {value}")


def _end(status: int) -> None:
    """Ends the process, without waiting for others of the same distributed program, which cannot go on."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def main() -> None:
    """Entry point of the console script."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    keep_compiled_programs()
    arguments, overrides[:] = split_overrides(sys.argv[1:])
    resumable = arguments[:1] in (["study"], ["train"], ["tune"], ["protocol"])
    if resumable:
        use_huge_pages()
    if arguments[:1] == ["codesign"]:
        compile_quickly()
    continues = "; the same command continues where it stood" * resumable
    try:
        if resumable:
            end_on_sigterm()
        tyro.extras.subcommand_cli_from_dict(
            {
                "predict": predict,
                "lookahead": lookahead,
                "codesign": codesign,
                "fit": fit,
                "study": study,
                "train": train,
                "tune": tune,
                "measure": measure,
                "protocol": protocol,
                "export": export,
                "calibrate": calibrate,
                "version": version,
            },
            prog="sdsl",
            description="Speculative-decoding scaling laws: which draft to train for a target, and how far ahead to guess.",
            args=arguments,
        )
    except SdslError as error:
        print(f"sdsl: error: {error}", file=sys.stderr)
        _end(2)
    except OSError as error:
        # What no stage expects: a folder that may not be read, say. Without a file it is an error of the program.
        if error.filename is None:
            raise
        print(f"sdsl: error: cannot use {error.filename} ({error.strerror}){continues}.", file=sys.stderr)
        _end(2)
    except KeyboardInterrupt:
        print(f"sdsl: interrupted{continues}.", file=sys.stderr)
        _end(130)
    except Preempted:
        print(f"sdsl: ended by SIGTERM{continues}.", file=sys.stderr)
        _end(143)
