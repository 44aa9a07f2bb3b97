"""The pages of the reference that are made from the program itself, so that they are never stale.

Each function returns the Markdown of a page: the help of every command, every setting of every
kind of TOML file, every column of every table, and every key of every JSON document.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import os
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal
from unittest import mock

from sdsl_jax import ranges
from sdsl_jax.cli import commands
from sdsl_jax.config import ProtocolConfig, StudyConfig, from_dict
from sdsl_jax.config.codesign_problem import ProblemConfig
from sdsl_jax.counts import COUNT
from sdsl_jax.evidence import Evidence, Predictions
from sdsl_jax.fitting.law_files import Fits
from sdsl_jax.records.codesign import CodesignEntry, CodesignLandscape
from sdsl_jax.records.documents import descriptions, schema_of
from sdsl_jax.records.tables import TABLES

_WIDTH = 80
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def cli_page() -> str:
    """Every command with its help."""
    lines = [
        "# Command line",
        "",
        "Every command, with what `sdsl COMMAND --help` prints, in plain text.",
        "",
        *_table(("command", "what it is for"), _command_rows()),
    ]
    for title, group in commands.GROUPS.items():
        lines += ["", f"## {title}"]
        for name, purpose in group.items():
            lines += ["", f"### sdsl {name}", "", _sentence(purpose), ""]
            lines += ["```text", help_of(name), "```"]
    return "\n".join(lines) + "\n"


def _command_rows() -> Iterator[tuple[str, ...]]:
    for group in commands.GROUPS.values():
        for name, purpose in group.items():
            yield f"[`sdsl {name}`](#sdsl-{name})", purpose


def help_of(name: str) -> str:
    """What a command prints for `--help`, without colours, in lines of at most 80 columns."""
    printed = io.StringIO()
    plain = {"COLUMNS": str(_WIDTH), "NO_COLOR": "1"}
    with (
        mock.patch.dict(os.environ, plain),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        commands.run([name, "--help"])
    lines = _ANSI.sub("", printed.getvalue()).strip().splitlines()
    return "\n".join(_wrapped(line) for line in lines)


def _wrapped(line: str) -> str:
    """A paragraph in lines of the page's width; a terminal would wrap it."""
    if len(line) <= _WIDTH:
        return line
    return textwrap.fill(line, _WIDTH, break_long_words=False, break_on_hyphens=False)


# The least that a file of each kind must hold.
_STUDY = {
    "name": "example",
    "ladder": {
        "draft_params": [1000],
        "draft_tokens": [1000],
        "target_params": [2000],
        "target_tokens": [1000],
    },
}
_MODEL = {"folder": "example", "params": 1e9, "train_tokens": 1e12}
_PROTOCOL = {"name": "example", "targets": [_MODEL], "drafts": [_MODEL]}
_PROBLEM = {"target": {"params": 70e9}}


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of TOML file: title, what reads it, an address prefix, its class and an example."""

    title: str
    about: str
    prefix: str
    form: type
    example: Mapping[str, Any]


KINDS = (
    _Kind(
        "A study",
        "`sdsl study FILE.toml`, `sdsl train` and `sdsl tune` read it. "
        "Every key can be given on the command line too, as in `--training.batch_size=16`. "
        "[Run a study](../study.md) is the guide.",
        "study",
        StudyConfig,
        _STUDY,
    ),
    _Kind(
        "A co-design problem",
        "`sdsl codesign FILE.toml` reads it; its flags override the file. "
        "[The whole problem in a file](../codesign.md#the-whole-problem-in-a-file) is the guide.",
        "problem",
        ProblemConfig,
        _PROBLEM,
    ),
    _Kind(
        "A protocol",
        "`sdsl protocol FILE.toml` reads it. "
        "[The paper's protocol](../measuring.md#the-papers-protocol) is the guide.",
        "protocol",
        ProtocolConfig,
        _PROTOCOL,
    ),
)


def settings_page() -> str:
    """Every key of every kind of TOML file."""
    lines = [
        "# Settings",
        "",
        "Every key of the three kinds of TOML file, with its type, default and meaning.",
        "",
        '- A *count* is a number such as `125e6`, or a text such as `"125M"`.',
        "- *Optional* keys are empty, or follow from other settings, where they are left out.",
        "- A key that is unknown, of another type, or out of range is refused with one sentence.",
    ]
    for kind in KINDS:
        lines += ["", f"## {kind.title} {{ #{kind.prefix} }}", "", kind.about]
        limits = allowed(from_dict(kind.form, kind.example))
        lines += _section(kind.form, kind.prefix, "", limits)
    return "\n".join(lines) + "\n"


def _section(form: type, prefix: str, path: str, limits: Mapping[str, str]) -> list[str]:
    """A section's own keys, and then the sections within it."""
    annotations = typing.get_type_hints(form, include_extras=True)
    meanings, lines, nested = descriptions(form), [], []
    for f in dataclasses.fields(typing.cast(Any, form)):
        name, annotation = f"{path}{f.name}", annotations[f.name]
        repeated = typing.get_origin(annotation) is tuple
        inner = typing.get_args(annotation)[0] if repeated else annotation
        if dataclasses.is_dataclass(inner):
            shown = f"[[{name}]]" if repeated else f"[{name}]"
            address = f"{prefix}-{name.replace('.', '-')}"
            nested += ["", f"### {shown} {{ #{address} }}", "", _about(typing.cast(type, inner))]
            nested += _section(typing.cast(type, inner), prefix, f"{name}.", limits)
            continue
        about = "; ".join(filter(None, (_type(annotation), _default(f), limits.get(name, ""))))
        lines += _entry(f.name, about, meanings.get(f.name, ""))
    return lines + nested


def allowed(config: Any) -> dict[str, str]:
    """The range of every number of a configuration that has one, in words, by its dotted name.

    Every section checks its values when it is made. Here it is made again while those checks are
    noted.
    """
    found: dict[str, str] = {}

    def note(interval: str, name: str, value: Any) -> None:
        found[name] = f"must {ranges.in_words(interval)}"

    modules = [m for n, m in sys.modules.items() if n.startswith("sdsl_jax.config.")]
    with contextlib.ExitStack() as stack:
        for module in (ranges, *modules):
            if hasattr(module, "require_in"):
                stack.enter_context(mock.patch.object(module, "require_in", note))
        for f in dataclasses.fields(config):
            value = getattr(config, f.name)
            for one in value if isinstance(value, tuple) else (value,):
                if dataclasses.is_dataclass(one) and not isinstance(one, type):
                    # Weights and limits of metrics are checked only where they are given.
                    unset = {k: 1.0 for k, v in vars(one).items() if v is None and "_" in k}
                    is_metrics = f.name in ("objective", "constraints")
                    dataclasses.replace(one, **(unset if is_metrics else {}))
                    _of_entries(found, f.name)
        dataclasses.replace(config)
    return found


def _of_entries(found: dict[str, str], section: str) -> None:
    """Checks of a list's entries name the entry: "params of example"."""
    for name in [name for name in found if name.endswith(f" of {_MODEL['folder']}")]:
        found[f"{section}.{name.partition(' ')[0]}"] = found.pop(name)


def _type(annotation: Any, several: bool = False) -> str:
    """What a value is, in words; its plural within a list."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated and COUNT in arguments:
        return "counts" if several else "count"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(one) for one in arguments if one is not types.NoneType)
    if origin is Literal:
        return " or ".join(f"`{_toml(value)}`" for value in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0], several=True)}"
    one, many = {
        bool: ("true or false", ""),
        int: ("whole number", "whole numbers"),
        float: ("number", "numbers"),
        str: ("text", "texts"),
    }[annotation]
    return many if several else one


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default is None or field.default in ("", ()):
        return "optional"
    return f"default `{_toml(field.default)}`"


def _toml(value: Any) -> str:
    """A value as one would write it in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, int):
        return f"{value:_}" if abs(value) >= 10_000 else str(value)
    return re.sub(r"e([+-])0*", lambda sign: "e" + sign[1].strip("+"), f"{value:g}")


# Tables whose rows are those of another table.
_SAME_ROWS = {
    "timed_models": ("models", "Models of other folders that took part in the timed runs."),
    "other_models": ("models", "Drafts of another ladder, measured under `[conditions]`."),
    "conditions": (
        "acceptance",
        "Exact acceptance at other temperatures, in other domains, and of other drafts.",
    ),
}


def records_page() -> str:
    """Every column of every table of records."""
    lines = [
        "# Record columns",
        "",
        "Every table that a study or `sdsl measure --out` writes to its folder of records, as CSV. "
        "`schema.json` beside the tables says the same.",
        "",
        "- A column with a default may be missing. Columns that are not listed are ignored.",
        "- `nan` stands for a number that was not measured or does not exist.",
        "- What happened in every row and round is in `events.parquet` "
        "([Events](../decoding.md#events)).",
    ]
    for name, form in TABLES.items():
        lines += ["", f"## {name}.csv {{ #{name} }}", ""]
        if name in _SAME_ROWS:
            same, about = _SAME_ROWS[name]
            lines += [f"{about} Its columns are those of [`{same}.csv`](#{same})."]
            continue
        lines += [_about(form), *_keys(schema_of(form))]
    return "\n".join(lines) + "\n"


# What each JSON document of a study holds, and whether it is a list of such.
DOCUMENTS: dict[str, tuple[type, str]] = {
    "fits": (Fits, "The fitted laws and the fitted device."),
    "codesign": (CodesignEntry, "The optima: a list with an entry for every target and cost."),
    "landscapes": (CodesignLandscape, "What the figures of the optima draw: a list."),
    "predictions": (Predictions, "What a study with `[holdout]` predicts before it measures."),
    "evidence": (Evidence, "The answers that the records give to a sceptical reader's questions."),
}


def documents_page() -> str:
    """Every key of every JSON document of a study."""
    lines = [
        "# JSON documents",
        "",
        "Every key of the JSON documents that a study writes beside its tables. "
        "A dot leads into an object, or into each object of a list. "
        "null stands for what does not exist.",
    ]
    for name, (form, about) in DOCUMENTS.items():
        schema = schema_of(form)
        lines += ["", f"## {name}.json {{ #{name} }}", "", about]
        if form is not Evidence:
            lines += _keys(schema)
            continue
        for key, entry in schema.items():
            title = f"### {key} {{ #evidence-{key} }}"
            lines += ["", title, "", _sentence(_markdown(entry["description"]))]
            lines += _keys(entry["keys"])
    return "\n".join(lines) + "\n"


def _keys(schema: Mapping[str, Any], path: str = "") -> list[str]:
    """Columns or keys, and after each the keys of the objects that it holds."""
    lines: list[str] = []
    for name, entry in schema.items():
        lines += _entry(f"{path}{name}", f"`{entry['type']}`", entry["description"])
        lines += _keys(entry.get("keys", {}), f"{path}{name}.")
    return lines


def _entry(name: str, about: str, meaning: str) -> list[str]:
    """A name, what kind of value it has, and below both what it means."""
    return ["", f"`{name}` <small>{about}</small>", f":   {_sentence(_markdown(meaning))}"]


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _about(documented: type | Callable[..., Any]) -> str:
    """A docstring up to its list of attributes."""
    text = inspect.cleandoc(documented.__doc__ or "").partition("Attributes:")[0]
    return _markdown(text.strip())


def _sentence(text: str) -> str:
    """A phrase with a capital, unless it begins with a name or a formula, and with a full stop."""
    if re.match(r"[a-z]+[ ,;:]", text):
        text = text[0].upper() + text[1:]
    return f"{text.rstrip('.')}." if text else ""


def _markdown(text: str) -> str:
    """Plain text with `code` in it, as Markdown that shows every other character as it is."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*|\[\]])", r"\\\1", p.replace("<", "&lt;")) for p in parts[::2]]
    return "`".join(parts)


PAGES: dict[str, Callable[[], str]] = {
    "reference/cli.md": cli_page,
    "reference/settings.md": settings_page,
    "reference/records.md": records_page,
    "reference/documents.md": documents_page,
}
