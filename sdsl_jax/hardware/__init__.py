"""Hardware files: one TOML per accelerator that ships with the package, and those that `sdsl
calibrate` writes.

A file holds the coefficients of `theory.hardware.Hardware`, their source, and whether they were
measured. Overheads belong to the software as much as to the device, so a file may have sections of
serving engines, whose coefficients replace those of the device. Every key, type and range is
checked when it is read.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w

from sdsl_jax.config.toml import from_dict
from sdsl_jax.errors import SdslError, require
from sdsl_jax.ranges import require_fields
from sdsl_jax.records import write_marked
from sdsl_jax.theory.hardware import Hardware, Precision
from sdsl_jax.user_files import read_toml, reading

# The key of an unknown quantity is left out; its value then makes it vanish from the model.
_UNKNOWN = {
    "link_bytes_per_second": math.inf,
    "memory_bytes": math.inf,
    "price_per_hour": 0.0,
    "watts": 0.0,
}
# Coefficients that are 0 or above; every other one is above 0.
_MAY_BE_ZERO = (
    "pass_seconds",
    "layer_seconds",
    "matrix_seconds",
    "wide_seconds",
    "token_seconds",
    "logit_seconds",
    "round_seconds",
    "link_seconds",
    "price_per_hour",
    "watts",
)


@dataclass(frozen=True)
class Calibration:
    """How a device was measured, and how well its coefficients predict models that they were not
    fitted to.

    Attributes:
      date: Day of the measurement, such as 2026-11-25.
      jax: Version of jax.
      dtype: Type of weights and caches: float32 or bfloat16.
      threads: Threads of XLA on a CPU; 0 on an accelerator.
      timings: Number of timings that the coefficients were fitted to, each a median.
      shapes: Number of different models and pairs among them.
      unseen_timings: Number of timings of models held out from a first fit.
      unseen_median_error: Median of |predicted/measured − 1| over the held-out timings.
      unseen_worst_error: Largest of these errors.
      median_error: Median error over all timings, with the coefficients in the file, which are
        fitted to all of them.
      noise: Half the interval of a timing relative to it, the median over the timings.
    """

    date: str
    jax: str
    dtype: str
    threads: int
    timings: int
    shapes: int
    unseen_timings: int
    unseen_median_error: float
    unseen_worst_error: float
    median_error: float
    noise: float

    def __post_init__(self):
        numbers = {f.name: "[0, inf)" for f in dataclasses.fields(self) if f.type != "str"}
        require_fields("calibration", self, **numbers)


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What a table [engines.NAME] says besides its coefficients.

    Attributes:
      description: The engine, its version and settings, in words.
      source: Where the coefficients come from.
      measured: Whether they were fitted to step times of this engine on this device.
      weight_bytes: Bytes of a weight that the coefficients hold for.
      cache_bytes: Bytes of an element of the caches, likewise.
      timings: Number of step times that they were fitted to; 0 where there were none.
      models: Number of different models among them.
      unseen_median_error: Median of |predicted/measured − 1| over step times left out of a fit.
      unseen_worst_error: Largest of these errors.
      notes: Caveats, a sentence each.
    """

    description: str
    source: str
    measured: bool
    weight_bytes: float = 2.0
    cache_bytes: float = 2.0
    timings: int = 0
    models: int = 0
    unseen_median_error: float = 0.0
    unseen_worst_error: float = 0.0
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        require_fields("engine", self, weight_bytes="(0, 8]", cache_bytes="(0, 8]")
        numbers = ("timings", "models", "unseen_median_error", "unseen_worst_error")
        require_fields("engine", self, **dict.fromkeys(numbers, "[0, inf)"))
        require(
            self.measured == (self.timings > 0),
            f"measured is {str(self.measured).lower()} with {self.timings} timings; an engine is measured by timings, "
            "and only by them.",
        )


@dataclass(frozen=True, kw_only=True)
class Engine(EngineFacts):
    """A serving engine on a device: coefficients that replace those of the device.

    Attributes:
      name: Short name, such as vllm-graphs.
      coefficients: Values by the names of `theory.hardware.Hardware`.
    """

    name: str
    coefficients: dict[str, float]


@dataclass(frozen=True)
class HardwareFile:
    """A device, and where its coefficients come from.

    Attributes:
      name: Short name.
      hardware: The coefficients.
      precision: Bytes of weights and caches that the coefficients hold for.
      devices: The device, in words.
      source: Where the coefficients come from.
      measured: Whether they were fitted to timings of this device.
      calibration: How they were measured; None where they were not.
      notes: Caveats, a sentence each.
      engines: Engines whose coefficients the file has.
      engine: The one among them whose coefficients stand in `hardware`; None for none.
    """

    name: str
    hardware: Hardware
    precision: Precision
    devices: str
    source: str
    measured: bool
    calibration: Calibration | None = None
    notes: tuple[str, ...] = ()
    engines: tuple[Engine, ...] = ()
    engine: Engine | None = None

    def with_engine(self, name: str) -> HardwareFile:
        """The device as one of its engines drives it.

        Raises:
          SdslError: The file has no engine of this name.
        """
        known = {engine.name: engine for engine in self.engines}
        require(
            name in known,
            f"the hardware {self.name} has no engine named {name!r}; "
            + (f"it has {', '.join(known)}." if known else "it has none."),
        )
        engine = known[name]
        return dataclasses.replace(
            self,
            hardware=self.hardware._replace(**engine.coefficients),
            precision=Precision(engine.weight_bytes, engine.cache_bytes),
            source=f"{self.source}; {engine.description}: {engine.source}",
            measured=engine.measured,
            notes=engine.notes,
            engine=engine,
        )

    @property
    def display_name(self) -> str:
        """How pages and figures name one device: NVIDIA H100 SXM5, for h100."""
        one = re.match(r"one (?:chip of an? )?([^,]+)", self.devices)
        one_device = one[1] if one else self.name
        return f"{one_device} ({self.engine.name})" if self.engine else one_device


@dataclass(frozen=True)
class _Coefficients:
    """The table [hardware]; `theory.hardware.Hardware` says what each of them is."""

    pass_seconds: float
    layer_seconds: float
    token_seconds: float
    bytes_per_second: float
    flops_per_second: float
    sharpness: float
    round_seconds: float
    link_bytes_per_second: float = math.inf
    link_seconds: float = 0.0
    memory_bytes: float = math.inf
    price_per_hour: float = 0.0
    matrix_seconds: float = 0.0
    logit_seconds: float = 0.0
    cache_slowdown: float = 1.0
    wide_seconds: float = 0.0
    watts: float = 0.0

    def __post_init__(self):
        names = [f.name for f in dataclasses.fields(self)]
        intervals = {name: "[0, inf]" if name in _MAY_BE_ZERO else "(0, inf]" for name in names}
        require_fields("hardware", self, **intervals | {"sharpness": "[1, 64]"})


@dataclass(frozen=True)
class _Precision:
    """The table [precision]."""

    weight_bytes: float
    cache_bytes: float

    def __post_init__(self):
        require_fields("precision", self, weight_bytes="(0, 8]", cache_bytes="(0, 8]")


@dataclass(frozen=True)
class _Document:
    """A whole file."""

    name: str
    devices: str
    source: str
    measured: bool
    precision: _Precision
    hardware: _Coefficients
    notes: tuple[str, ...] = ()
    calibration: Calibration | None = None

    def __post_init__(self):
        require(self.name.strip(), "name is empty; it must be a short name of the device.")
        require(
            self.measured == (self.calibration is not None),
            f"measured is {str(self.measured).lower()}; it must be true with a table [calibration] and false without one.",
        )


def known_hardware() -> tuple[str, ...]:
    """Names of the devices that ship with the package."""
    files = resources.files("sdsl_jax.hardware").iterdir()
    return tuple(
        sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))
    )


def load_hardware(name_or_path: str | Path, engine: str = "") -> HardwareFile:
    """Reads a device that ships with the package by its name, and any other by the path of its
    file.

    Args:
      name_or_path: A name such as h100, or a path, which ends in .toml or has a separator in it.
      engine: A serving engine of the file, such as vllm-graphs, whose overheads count; those of
        the device where it is empty.

    Raises:
      SdslError: The name is unknown, the file cannot be read, has no such engine, or a value in it
        is not allowed.
    """
    file = _load(name_or_path)
    return file.with_engine(engine) if engine else file


def _load(name_or_path: str | Path) -> HardwareFile:
    text = os.fspath(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or os.sep in text:
        with reading(text, "hardware file"):
            return _parse(read_toml(text, "hardware file"), f"the hardware file {text}")
    known = known_hardware()
    require(
        text.lower() in known,
        f"there is no hardware named {text!r}; known are {', '.join(known)}, and any file that ends in .toml.",
    )
    return _preset(text.lower())


@functools.cache
def _preset(name: str) -> HardwareFile:
    """A device that ships with the package: read once, for pages and sweeps ask again and again."""
    content = (resources.files("sdsl_jax.hardware") / f"{name}.toml").read_text(encoding="utf-8")
    return _parse(tomllib.loads(content), f"the hardware {name}")


def _engine(name: str, table: Any, device: dict[str, float]) -> Engine:
    """An engine of a file, checked with the coefficients of the device that it does not replace."""
    where = f"engines.{name}"
    require(isinstance(table, dict), f"{where} is {table!r}; it must be a table.")
    coefficients = table.get("hardware", {})
    require(
        isinstance(coefficients, dict) and coefficients,
        f"{where}.hardware is missing; it must be a table of coefficients.",
    )
    section = from_dict(EngineFacts, {k: v for k, v in table.items() if k != "hardware"}, where)
    known = {key: value for key, value in device.items() if math.isfinite(value)}
    from_dict(_Coefficients, known | coefficients, f"{where}.hardware")
    values = {key: float(value) for key, value in coefficients.items()}
    return Engine(name=name, coefficients=values, **vars(section))


def _parse(values: dict[str, Any], what: str) -> HardwareFile:
    try:
        engines = values.pop("engines", {})
        require(
            isinstance(engines, dict), f"engines is {engines!r}; it must be a table of engines."
        )
        # An optional table is checked by itself, since the error would not name a key in it otherwise.
        table = values.pop("calibration", None)
        calibration = None if table is None else from_dict(Calibration, table, "calibration")
        document = from_dict(
            _Document,
            values
            | ({} if calibration is None else {"calibration": dataclasses.asdict(calibration)}),
        )
        device = dataclasses.asdict(document.hardware)
        of_engines = tuple(_engine(name, table, device) for name, table in engines.items())
    except SdslError as error:
        raise SdslError(f"{what} is not usable: {error}") from None
    return HardwareFile(
        name=document.name,
        hardware=Hardware(**dataclasses.asdict(document.hardware)),
        precision=Precision(**dataclasses.asdict(document.precision)),
        devices=document.devices,
        source=document.source,
        measured=document.measured,
        calibration=calibration,
        notes=document.notes,
        engines=of_engines,
    )


def save_hardware(file: HardwareFile, path: str | Path) -> None:
    """Writes a device and its engines as TOML, which `load_hardware` reads back to an equal value.
    Unknown quantities are left out.

    Args:
      file: The device.
      path: The file to write, ending in .toml.

    Raises:
      SdslError: A value is not allowed, one of its engines was chosen, or the file cannot be
        written.
    """
    path = Path(path)
    require(
        file.engine is None,
        f"{file.name} has the coefficients of an engine in place of its own; write the file without one.",
    )
    require(
        path.suffix == ".toml", f"the hardware file is to be {path}; its name must end in .toml."
    )
    coefficients = {name: float(value) for name, value in file.hardware._asdict().items()}
    values: dict[str, Any] = {
        "name": file.name,
        "devices": file.devices,
        "source": file.source,
        "measured": file.measured,
        "notes": list(file.notes),
        "precision": {name: float(value) for name, value in file.precision._asdict().items()},
        "hardware": {
            name: value for name, value in coefficients.items() if value != _UNKNOWN.get(name)
        },
    }
    if file.calibration is not None:
        values["calibration"] = dataclasses.asdict(file.calibration)
    if file.engines:
        values["engines"] = {
            engine.name: {
                key: list(value) if key == "notes" else value
                for key, value in vars(engine).items()
                if key not in ("name", "coefficients")
            }
            | {"hardware": engine.coefficients}
            for engine in file.engines
        }
    text = _HEAD + tomli_w.dumps(values)
    # What could not be read back must not be written.
    _parse(tomllib.loads(text), f"the hardware file {path}")
    write_marked(path, text)


_HEAD = """\
# A device for sdsl_jax: the time of a pass is
#   pass_seconds + layer_seconds·layers + (token_seconds + logit_seconds·vocabulary)·tokens
#   + smoothmax(bytes/bytes_per_second, FLOPs/flops_per_second) of matrices + the same of attention,
# and layer overheads of matrix_seconds more for several tokens, and wide_seconds more for several tokens of a row; a byte of a
# cache counts cache_slowdown times. All times in seconds, rates in bytes and FLOPs per second (a multiply-add is two), memory in
# bytes, power in watts, price in a currency of your own per hour and device. Keys that are left out (link_bytes_per_second,
# link_seconds, memory_bytes, price_per_hour, watts) are unknown. Tables [engines.NAME] replace coefficients by those of a
# serving engine. docs/hardware.md describes every key.

"""

__all__ = [
    "Calibration",
    "Engine",
    "HardwareFile",
    "known_hardware",
    "load_hardware",
    "save_hardware",
]
