"""The subcommands of `sdsl`, and the settings of jax that have to be there before one of them imports it."""

from __future__ import annotations

from collections.abc import Sequence

import tyro

from sdsl_jax.cli.calibrate import calibrate
from sdsl_jax.cli.codesign import codesign
from sdsl_jax.cli.compilation import compile_quickly, keep_compiled_programs
from sdsl_jax.cli.export import export
from sdsl_jax.cli.fit import fit
from sdsl_jax.cli.measure import measure
from sdsl_jax.cli.predict import lookahead, predict
from sdsl_jax.cli.protocol import protocol
from sdsl_jax.cli.study import overrides, split_overrides, study
from sdsl_jax.cli.train import train
from sdsl_jax.cli.tune import tune


def version() -> None:
    """Print the versions that a bug report should name."""
    from sdsl_jax.study import versions

    for name, value in versions().items():
        print(f"{name} {value}")


def run(arguments: Sequence[str]) -> None:
    """Runs the subcommand that the arguments name.

    Raises:
      SystemExit: the arguments are not understood, or ask for help.
    """
    keep_compiled_programs()
    rest, overrides[:] = split_overrides(list(arguments))
    if rest[:1] == ["codesign"]:
        compile_quickly()
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
        args=rest,
    )
