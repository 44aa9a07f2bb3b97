"""The subcommands of `sdsl`: which there are, what they are for, and how one of them is run."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from sdsl_jax import __version__
from sdsl_jax.errors import SdslError

# By the question that a user comes with. Each command is a function of its name in the module of its
# name, unless `_MODULES` names another one.
GROUPS = {
    "Answers from scaling laws, in seconds and without training": {
        "predict": "which draft to train for a target, when only sizes are known",
        "lookahead": "how many tokens to speculate at a measured acceptance, and whether it pays",
        "codesign": "draft and lookahead for a target on given hardware, under constraints",
        "explore": "the same with sliders: a page in your browser, or a file to send to others",
    },
    "Measurements of models": {
        "measure": "how much of what a draft proposes a target accepts, and the speed-up",
        "check": "whether a running server's draft does what it should, from its metrics or log",
        "convert": "a measured acceptance in the conventions of other tools",
        "protocol": "every pair of many published checkpoints, measured alike",
        "calibrate": "what a forward pass costs on this machine",
    },
    "Training, and whole studies": {
        "study": "train a ladder of models, measure, fit, optimise, and write a report",
        "train": "train a study's ladder, or some of its models",
        "tune": "find the learning rate and batch size of a ladder",
        "launch": "how the jobs of --launch stand, and how to stop them",
    },
    "Laws from tables": {
        "fit": "a loss law or acceptance laws from a CSV table",
    },
    "Files and this installation": {
        "export": "write a model as a Hugging Face folder",
        "cache": "list or empty the folders of tokenised corpora and compiled programs",
        "version": "print the versions that a bug report should name",
    },
}
_MODULES = {"lookahead": "predict", "version": "commands"}
# Commands whose programs run in milliseconds.
_COMPILED_QUICKLY = ("predict", "lookahead", "codesign", "explore", "check")
# Commands on a study, whose settings can be overridden by their dotted names.
_OF_STUDIES = ("study", "train", "tune")
# Commands that can be launched as jobs.
_LAUNCHED = ("train", "study", "protocol")


def overview() -> str:
    """All commands by what they are for."""
    lines = [
        "usage: sdsl COMMAND [options]",
        "",
        "Speculative-decoding scaling laws: which draft model to train for a target, and how many",
        "tokens to speculate.",
    ]
    for title, commands in GROUPS.items():
        lines += ["", title]
        lines += [f"  {name:<10} {purpose}" for name, purpose in commands.items()]
    return "\n".join(
        [
            *lines,
            "",
            "sdsl COMMAND --help explains a command, and sdsl --version prints the version.",
            "To begin with: sdsl codesign --target-params 70B --hardware h100 --devices 4",
        ]
    )


def version() -> None:
    """Print the versions that a bug report should name."""
    from sdsl_jax.models.small_matmul import unavailable
    from sdsl_jax.study import versions

    for name, value in versions().items():
        print(f"{name} {value}")
    print(f"products of few rows: {unavailable() or 'compiled for this processor'}")


def load(name: str) -> Callable[..., None]:
    """The function of a command."""
    module = importlib.import_module(f"sdsl_jax.cli.{_MODULES.get(name, name)}")
    return getattr(module, name)


def run(arguments: Sequence[str]) -> None:
    """Runs the subcommand that the arguments name; without one, prints what there is.

    Raises:
      SdslError: there is no such command.
      SystemExit: its options are not understood, or ask for help.
    """
    first, *rest = arguments or ["--help"]
    if first in ("-h", "--help"):
        print(overview())
        return
    if first == "--version":
        print(f"sdsl_jax {__version__}")
        return
    names = [name for commands in GROUPS.values() for name in commands]
    if first not in names:
        close = difflib.get_close_matches(first, names, 1)
        hint = f"did you mean {close[0]}?" if close else f"the commands are {', '.join(names)}."
        raise SdslError(f"unknown command {first!r}; {hint}")

    from sdsl_jax.cli.options import call
    from sdsl_jax.compilation import compile_quickly, keep_compiled_programs

    keep_compiled_programs()
    if first in _COMPILED_QUICKLY:
        compile_quickly()
    command = load(first)
    others: dict[str, Any] = {}
    if first in _LAUNCHED:
        from sdsl_jax.cli.arguments import split_job_options

        rest, others["slurm"] = split_job_options(rest)
    if first in _OF_STUDIES:
        from sdsl_jax.cli.arguments import split_overrides

        rest, others["overrides"] = split_overrides(rest)
    # Commands with many options say in their modules which of them belong together.
    topics = getattr(sys.modules[command.__module__], "TOPICS", ())
    call(command, f"sdsl {first}", rest, topics, **others)
