"""JSON documents as frozen dataclasses: every key has a meaning, and one rule writes and reads all of them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import re
import types
import typing
from typing import Any, TypeVar

import numpy as np

from sdsl_jax.errors import SdslError, require

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Plain values as JSON holds them: dataclasses become objects, numbers that are not finite
    null.

    What is no dataclass, or has other keys than its fields, writes itself, by a method `to_json`.
    """
    if hasattr(value, "to_json"):
        return value.to_json()
    if dataclasses.is_dataclass(value):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [to_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def document(cls: type[T], *sources: Any, **values: Any) -> T:
    """A document whose fields come from attributes of the same names, but for the given values."""

    def value(name: str) -> Any:
        if name in values:
            return values[name]
        return next(getattr(source, name) for source in sources if hasattr(source, name))

    names = [f.name for f in dataclasses.fields(typing.cast(Any, cls))]
    return cls(**{name: value(name) for name in names})


def from_json(cls: type[T], values: Any, where: str) -> T:
    """The dataclass that an object of JSON holds. Keys that are no fields are passed over.

    Args:
      cls: a dataclass; its annotations say how deep the values are read.
      values: the parsed object.
      where: what is read, for errors: "the record file fits.json".

    Raises:
      SdslError: a key without a default is missing, or a value has another type than its field.
    """
    damaged = f"{where} is damaged:"
    require(isinstance(values, dict), f"{damaged} it holds {_short(values)} for an object.")
    annotations = _annotations(typing.cast(Any, cls))
    found = {}
    for f in dataclasses.fields(typing.cast(Any, cls)):
        if f.name in values:
            try:
                found[f.name] = _convert(values[f.name], annotations[f.name], where)
            except TypeError:
                raise SdslError(
                    f"{damaged} it holds {_short(values[f.name])} as {f.name}."
                ) from None
            continue
        has_default = f.default is not f.default_factory  # both are MISSING where there is none
        require(has_default, f"{damaged} it lacks the key {f.name}.")
    return cls(**found)


@functools.cache
def _annotations(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"


def _convert(value: Any, annotation: Any, where: str) -> Any:
    """A value of JSON in the type of its field; raises `TypeError` where it is of another."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        failure: Exception = TypeError()
        for option in arguments:
            try:
                return _convert(value, option, where)
            except SdslError as error:
                failure = error  # of several kinds of object, another may be meant
            except TypeError:
                continue
        raise failure
    elif dataclasses.is_dataclass(annotation) and isinstance(value, dict):
        return from_json(typing.cast(type, annotation), value, where)
    elif origin in (list, tuple) and isinstance(value, list):
        of = (
            arguments
            if origin is tuple and Ellipsis not in arguments
            else arguments[:1] * len(value)
        )
        if len(of) == len(value):
            return origin(_convert(item, kind, where) for item, kind in zip(value, of))
    elif origin is typing.Literal and value in arguments:
        return value
    elif origin is dict and isinstance(value, dict):
        return {key: _convert(item, arguments[1], where) for key, item in value.items()}
    elif annotation is float and not isinstance(value, bool | str):
        return math.nan if value is None else float(value)
    elif isinstance(annotation, type) and isinstance(value, annotation):
        return value
    raise TypeError


def schema_of(cls: type) -> dict[str, Any]:
    """Every key of a document with its type and meaning; of nested documents their keys too."""
    annotations, meanings = _annotations(typing.cast(Any, cls)), descriptions(cls)
    schema = {}
    for f in dataclasses.fields(typing.cast(Any, cls)):
        entry: dict[str, Any] = {"type": str(f.type), "description": meanings.get(f.name, "")}
        nested = _document_in(annotations[f.name])
        if nested is not None:
            entry["keys"] = schema_of(nested)
        schema[f.name] = entry
    return schema


def descriptions(cls: type) -> dict[str, str]:
    """What the section "Attributes" of a docstring says of each field."""
    inherited = [descriptions(base) for base in cls.__bases__ if dataclasses.is_dataclass(base)]
    section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^ {2}(\w+): (.*(?:\n {4}.*)*)", section, re.MULTILINE)
    own = {name: re.sub(r"\s+", " ", text) for name, text in entries}
    return {key: text for part in (*inherited, own) for key, text in part.items()}


def _document_in(annotation: Any) -> type | None:
    """The dataclass that an annotation holds, as it is or within a list, a dictionary or an option."""
    if dataclasses.is_dataclass(annotation):
        return typing.cast(type, annotation)
    return next(filter(None, map(_document_in, typing.get_args(annotation))), None)
