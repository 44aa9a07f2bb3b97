"""What lies at a path where the folder of a published model is meant: named, where it is something else."""

from __future__ import annotations

import re
from pathlib import Path

from sdsl_jax.checkpoints.interop.fields import CONFIG
from sdsl_jax.checkpoints.interop.gguf import SUFFIX, is_gguf
from sdsl_jax.errors import SdslError, require
from sdsl_jax.user_files import read_json_object, reading

_ADAPTER, _SNAPSHOTS = "adapter_config.json", "snapshots"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", SUFFIX)
# What a training of ours leaves in the folder of a model.
_OWN = ("model.json", "params", "record.json")


def is_published(path: Path) -> bool:
    """Whether a path is a published checkpoint, rather than a model of our own."""
    return is_gguf(path) or (path / CONFIG).exists()


def require_model_path(path: Path) -> None:
    """Refuses a path that is no model but something that is often taken for one.

    Raises:
      SdslError: the path is a name on a hub, the cache of one, a LoRA adapter, a file of weights
        out of its folder, or a folder of weights without config.json.
    """
    with reading(path, "path"):
        if not path.exists():
            require(
                not _HUB_ID.fullmatch(str(path)) or path.parent.exists(),
                f"{path} does not exist here; if it is a model's name on a hub, download it first (hf download {path} "
                "--local-dir DIR) and give the folder.",
            )
            return
        if path.is_file():
            require(
                is_gguf(path) or path.suffix not in (*_WEIGHTS, ".json"),
                f"{path} is one file of a model; give the folder that holds it and {CONFIG}.",
            )
            return
        if not path.is_dir():
            return
        _require_no_cache(path)
        if (path / _ADAPTER).exists():
            base = read_json_object(path / _ADAPTER).get("base_model_name_or_path")
            raise SdslError(
                f"the folder {path} holds an adapter ({_ADAPTER}) of {base or 'another model'}, which is not read; merge it into "
                "that model first (merge_and_unload of peft) and give the merged folder."
            )
        if (path / CONFIG).exists() or any((path / name).exists() for name in _OWN):
            return
        files = sorted(p.name for p in path.iterdir() if p.suffix.lower() in _WEIGHTS)
        require(
            not files,
            f"the folder {path} holds {files[0] if files else ''} but no {CONFIG}"
            + (
                "; give the file itself."
                if files and files[0].lower().endswith(SUFFIX)
                else ", which says what model it is."
            ),
        )


def _require_no_cache(path: Path) -> None:
    """Refuses a hub's cache, or a repository's folder in it."""
    if (path / _SNAPSHOTS).is_dir() and not (path / CONFIG).exists():
        within = sorted(p for p in (path / _SNAPSHOTS).iterdir() if p.is_dir())
        which = f": {', '.join(map(str, within[:4]))}" if within else ", of which it holds none"
        raise SdslError(
            f"{path} is a repository in the cache of a hub; give the folder of one revision in it{which}."
        )
    models = sorted(path.glob(f"models--*/{_SNAPSHOTS}/*"))
    require(
        not models,
        f"{path} is the cache of a hub; give the folder of one model in it, such as {models[0] if models else ''}.",
    )
