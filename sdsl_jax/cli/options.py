"""How the options of a command are read, and how its help shows them."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from sdsl_jax.counts import read_number

# Defaults that say no more than that an option was left out.
_NOTHING = ("None", "", "''", "False")
_ENTRY = re.compile(r"(\w+): (.*)")


@dataclasses.dataclass(frozen=True)
class Topic:
    """Options that the help shows together.

    Attributes:
      title: What they are about.
      about: A sentence on all of them.
      names: Their names.
    """

    title: str
    about: str
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of a command.

    Attributes:
      annotation: How its value is read and shown.
      default: Its value if it is left out; `inspect.Parameter.empty` if it must be given.
      help: What it means.
      positional: Whether it is given without its name.
    """

    annotation: Any
    default: Any
    help: str
    positional: bool = False


def call(
    command: Callable[..., None],
    prog: str,
    arguments: Sequence[str],
    topics: Sequence[Topic] = (),
    **others: Any,
) -> None:
    """Calls a command with its parameters from the command line.

    A parameter whose type is a dataclass stands for an option for each field.

    Args:
      command: The command, with its parameters in its docstring.
      prog: Its name.
      arguments: The command line.
      topics: Options to show together; others come first.
      **others: Parameters that are no options.

    Raises:
      SystemExit: The arguments are not understood, or ask for help.
    """
    groups = _groups(command)
    options = {name: one for name, one in parameters(command).items() if name not in others}
    given: Any = tyro.cli(
        _parser(options, topics),
        prog=prog,
        args=arguments,
        description=_description(command),
        registry=_NUMBERS,
    )
    values = dict(vars(given))
    for i, _ in enumerate(topics):
        values |= vars(values.pop(f"topic_{i}"))
    for name, kind in groups.items():
        own = {f.name: values.pop(f.name) for f in dataclasses.fields(kind)}
        values[name] = kind(**own)
    positional = [
        values.pop(name)
        for name, parameter in inspect.signature(command).parameters.items()
        if parameter.kind is parameter.POSITIONAL_ONLY
    ]
    command(*positional, **values, **others)


def _parser(options: Mapping[str, Option], topics: Sequence[Topic]) -> type:
    """A dataclass of all options, in which a dataclass holds those of each topic."""
    below = {name for topic in topics for name in topic.names}
    fields = [_field(name, option) for name, option in options.items() if name not in below]
    for i, topic in enumerate(topics):
        members = [_field(name, options[name]) for name in topic.names]
        members_of = dataclasses.make_dataclass(f"Topic{i}", members, kw_only=True)
        shown = arg(name=topic.title, help=topic.about)
        fields.append(
            (f"topic_{i}", Annotated[members_of, OmitArgPrefixes, shown], dataclasses.field())
        )
    return dataclasses.make_dataclass("Options", fields, kw_only=True)


def _field(name: str, option: Option) -> tuple[str, Any, Any]:
    def hint(default: str) -> str:
        return "" if default in _NOTHING else f"(default: {default})"

    missing = option.default is inspect.Parameter.empty
    default = dataclasses.field() if missing else dataclasses.field(default=option.default)
    # What an annotation says of itself comes later and so prevails.
    inner, *metadata = _annotated(option.annotation)
    markers = [Positional] * option.positional
    shown = arg(help=option.help, help_behavior_hint=hint)
    return name, Annotated[(inner, *markers, shown, *metadata)], default


def _annotated(annotation: Any) -> tuple[Any, ...]:
    whole = typing.get_origin(annotation) is Annotated
    return typing.get_args(annotation) if whole else (annotation,)


def parameters(command: Callable[..., None]) -> dict[str, Option]:
    """The options of a command by name, with what its docstring says of them."""
    meanings, groups = _meanings(command, "Args:"), _groups(command)
    options: dict[str, Option] = {}
    for name, p in inspect.signature(command, eval_str=True).parameters.items():
        if name in groups:
            options |= _fields(groups[name])
        else:
            meaning, positional = meanings.get(name, ""), p.kind is p.POSITIONAL_ONLY
            options[name] = Option(p.annotation, p.default, meaning, positional)
    return options


def _groups(command: Callable[..., None]) -> dict[str, type]:
    """Parameters that are dataclasses of options."""
    found = inspect.signature(command, eval_str=True).parameters
    kinds: dict[str, Any] = {name: _annotated(p.annotation)[0] for name, p in found.items()}
    return {
        name: typing.cast(type, kind)
        for name, kind in kinds.items()
        if dataclasses.is_dataclass(kind)
    }


def _fields(kind: type) -> dict[str, Option]:
    meanings, hints = (
        _meanings(kind, "Attributes:"),
        typing.get_type_hints(kind, include_extras=True),
    )
    missing = inspect.Parameter.empty
    return {
        f.name: Option(
            hints[f.name],
            missing if f.default is dataclasses.MISSING else f.default,
            meanings.get(f.name, ""),
        )
        for f in dataclasses.fields(kind)
    }


def _description(command: Callable[..., None]) -> str:
    """The docstring up to its parameters, a line for each paragraph: a terminal wraps them."""
    text = inspect.cleandoc(command.__doc__ or "").partition("\nArgs:\n")[0].rstrip()
    return re.sub(r"(?<!\n)\n(?=[^\s*])", " ", text)


def _meanings(documented: Any, heading: str) -> dict[str, str]:
    """What a docstring says of each parameter or attribute, each in one line."""
    text = inspect.cleandoc(documented.__doc__ or "").partition(f"\n{heading}\n")[2]
    entries = inspect.cleandoc(text).splitlines()
    meanings: dict[str, str] = {}
    name = ""
    for line in entries:
        if not line.startswith(" ") and (entry := _ENTRY.fullmatch(line)):
            name, meanings[entry[1]] = entry[1], entry[2]
        else:
            meanings[name] += f" {line.strip()}"
    return meanings


def _number(words: Sequence[str]) -> float:
    """A number; of other text the error says what to write instead."""
    try:
        return float(words[0])
    except ValueError:
        share = read_number(words[0].removesuffix("%")) if words[0].endswith("%") else None
        hint = "" if share is None else f"; write {share / 100:g}"
        raise ValueError(f"{words[0]!r} is no number{_one(words[0])}{hint}") from None


def _whole_number(words: Sequence[str]) -> int:
    try:
        return int(words[0])
    except ValueError:
        raise ValueError(f"{words[0]!r} is no whole number{_one(words[0])}") from None


def _one(text: str) -> str:
    return "; give one value" if "," in text else ""


_NUMBERS = ConstructorRegistry()


@_NUMBERS.primitive_rule
def _plain_messages(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Numbers whose messages tell of no parser, with or without a default of None."""
    union = typing.get_origin(info.type) in (typing.Union, types.UnionType)
    kinds = {*(typing.get_args(info.type) if union else (info.type,))} - {types.NoneType}
    if kinds not in ({int}, {float}):
        return None
    whole = int in kinds
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT" if whole else "FLOAT",
        instance_from_str=_whole_number if whole else _number,
        is_instance=lambda value: value is None or isinstance(value, int | float),
        str_from_instance=lambda value: [str(value)],
    )
