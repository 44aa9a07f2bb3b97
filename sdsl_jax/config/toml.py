"""From TOML to the dataclasses of a study and back. Every key and every type is checked on the way
in.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import tomllib
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomli_w

from sdsl_jax.config.protocol import ProtocolConfig
from sdsl_jax.config.sections import StudyConfig
from sdsl_jax.counts import COUNT, parse_counts, read_count
from sdsl_jax.errors import SdslError, require
from sdsl_jax.user_files import read_toml

# Whole numbers of TOML have no end; what no float holds is no setting.
_LARGEST = sys.float_info.max

T = TypeVar("T")


def _convert(value: Any, annotation: Any, name: str) -> Any:
    """Checks one TOML value against a field's annotation and returns it in the field's type."""
    if dataclasses.is_dataclass(annotation):
        return from_dict(typing.cast(type, annotation), value, name)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        count = read_count(value) if isinstance(value, str) and COUNT in arguments else None
        require(
            count is not None or not isinstance(value, str),
            f"{name} is {value!r}; it must be {_wanted(annotation)}.",
        )
        # Of a string an error should show what was written.
        return _convert(value if count is None else count, arguments[0], name)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return _convert(value, option, name)
            except SdslError:
                continue
    elif origin is tuple:
        if isinstance(value, str) and COUNT in typing.get_args(arguments[0]):
            # A list on the command line: 3k,14k or [3k,14k], neither of which is TOML.
            value = parse_counts(value.strip().removeprefix("[").removesuffix("]"), name)
        if isinstance(value, list | tuple):
            return tuple(
                _convert(item, arguments[0], f"{name}[{i}]") for i, item in enumerate(value)
            )
    elif origin is Literal:
        if value in arguments:
            return value
        raise SdslError(
            f"{name} is {value!r}; it must be one of {', '.join(map(repr, arguments))}."
        )
    elif annotation is bool or isinstance(value, bool):
        if annotation is bool and isinstance(value, bool):
            return value
    elif annotation in (int, float) and isinstance(value, int | float) and abs(value) <= _LARGEST:
        if annotation is float or float(value).is_integer():
            return annotation(value)
    elif annotation is str and isinstance(value, str):
        return value
    raise SdslError(f"{name} is {value!r}; it must be {_wanted(annotation)}.")


def _wanted(annotation: Any) -> str:
    """What a message calls a value of this annotation."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return f'{_wanted(arguments[0])} such as 125e6, or a string such as "125M"'
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_wanted, arguments))
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is tuple and typing.get_origin(arguments[0]) is Literal:
        return "an array of such"
    if origin is tuple:
        of = (
            typing.get_args(arguments[0])[0]
            if typing.get_origin(arguments[0]) is Annotated
            else arguments[0]
        )
        return "an array of " + {int: "whole numbers", float: "finite numbers", str: "strings"}.get(
            of, "tables"
        )
    return {int: "a whole number", float: "a finite number", str: "a string"}.get(
        annotation, "true or false"
    )


def from_dict(cls: type[T], values: Any, name: str = "") -> T:
    """Builds the dataclass `cls` from nested plain values.

    Raises:
      SdslError: A key is unknown or missing, or a value has the wrong type or is out of range.
    """
    prefix = f"{name}." if name else ""
    require(isinstance(values, dict), f"{name} is {values!r}; it must be a table.")
    annotations = typing.get_type_hints(cls, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls))}
    for key in values:
        require(
            key in fields,
            f"unknown key {prefix}{key}; the keys allowed here are {', '.join(fields)}.",
        )
    for key, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        require(key in values or not required, f"the key {prefix}{key} is missing.")
    return cls(
        **{
            key: _convert(value, annotations[key], f"{prefix}{key}")
            for key, value in values.items()
        }
    )


def parse_override(text: str) -> tuple[list[str], Any]:
    """Splits "training.batch_size=16" into its path and its value, read as a TOML value or else as
    a bare string.
    """
    key, separator, value = text.partition("=")
    path = key.strip().lstrip("-").replace("-", "_").split(".")
    require(
        separator and all(path),
        f"the override {text!r} is not of the form section.key=value.",
    )
    try:
        return path, tomllib.loads(f"value = {value}")["value"]
    except (
        ValueError,
        RecursionError,
    ):  # of syntax, of a whole number of thousands of digits, or of depth
        return path, value


def from_file(cls: type[T], values: Any, path: str | Path, changed: Iterable[str] = ()) -> T:
    """Builds the dataclass `cls` from the tables of a file.

    Args:
      cls: Class of the configuration.
      values: Tables of the file.
      path: Path to the file, which messages name.
      changed: Dotted names of values that are not the file's; messages about them do not name the
        file.

    Raises:
      SdslError: As `from_dict`.
    """
    try:
        return from_dict(cls, values)
    except SdslError as error:
        if any(re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", str(error)) for name in changed):
            raise
        raise SdslError(f"{path}: {error}") from None


def load_protocol(path: str | Path) -> ProtocolConfig:
    """Reads a protocol from a TOML file.

    Raises:
      SdslError: The file cannot be read or parsed, or a value in it is not allowed.
    """
    return from_file(ProtocolConfig, read_toml(path, "protocol file"), path)


def load_study(path: str | Path, overrides: typing.Sequence[str] = ()) -> StudyConfig:
    """Reads a study from a TOML file and applies overrides of the form "section.key=value".

    Raises:
      SdslError: The file cannot be read or parsed, or a value in it is not allowed.
    """
    values = read_toml(path, "study file")
    changed = []
    for text in overrides:
        (*sections, key), value = parse_override(text)
        table = values
        for section in sections:
            table = table.setdefault(section, {})
            require(
                isinstance(table, dict),
                f"the override {text!r} names {section}, which is not a section.",
            )
        table[key] = value
        changed.append(".".join([*sections, key]))
    return from_file(StudyConfig, values, path, changed)


def to_dict(config: Any) -> dict[str, Any]:
    """The nested plain values of a configuration, as TOML and JSON can hold them."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def to_toml(config: Any) -> str:
    """The configuration as TOML text that `load_study` reads back to an equal value."""
    return tomli_w.dumps(to_dict(config))
