"""Claims: which process trains a rung, when any number of them share a folder.

A claim is a file `claim-<generation>` in the rung's folder. It is written under a private name and
linked to its own. Only one of several processes can do that, and no claim is ever without content.
The file's time of change is its heartbeat. A claim is stale if its process is gone, or if the
heartbeat is two minutes old by the clock of the file system itself, so the clocks of hosts do not
matter. A process that finds a stale claim makes the file of the next generation, which again only
one can. The highest generation holds.

Claims save work; they are not what keeps a folder whole. A process that was thought dead and wakes
up finds its claim gone before it writes a checkpoint or metrics, and stops. If it wakes up in
between, it publishes a whole checkpoint of the same trajectory under the name that the other
process would have given it too.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

from sdsl_jax.errors import SdslError

STALE_SECONDS = 120.0
_BEAT_SECONDS = 15.0
_PREFIX = "claim-"


class ClaimLost(Exception):
    """Another process has taken the rung over."""


class Owner(NamedTuple):
    """A process that holds a claim.

    Attributes:
      host: Name of the host.
      machine: Boot of the kernel and namespace in which process numbers are unique.
      pid: Process number.
      started: When the process started, in the kernel's ticks. Process numbers are used again; the
        pair is not.
      token: Random, one for each claim.
    """

    host: str
    machine: str
    pid: int
    started: str
    token: str

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"


class Claim:
    """A claim that this process holds: a context that renews it in the background and gives it up
    at the end.
    """

    def __init__(self, path: Path, owner: Owner):
        self.path, self.owner = path, owner
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def check(self) -> None:
        """Makes sure that the claim still holds; called before anything is written.

        Raises:
          ClaimLost: It does not.
        """
        claims = _claims(self.path.parent)
        if not claims or claims[-1] != self.path or _read(self.path).token != self.owner.token:
            raise ClaimLost(f"another process has taken over {self.path.parent}")

    def __enter__(self) -> Claim:
        self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._beating.join()
        if _read(self.path).token == self.owner.token:
            self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        # A thread, since compilation and evaluation may take longer than a claim lives.
        while not self._ended.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self.path)


def acquire(folder: Path) -> Claim | Owner:
    """Claims a rung's folder, or returns the process that holds it.

    Raises:
      SdslError: The folder cannot be written.
    """
    me = Owner(
        socket.gethostname(),
        _machine(),
        os.getpid(),
        _started(os.getpid()) or "",
        secrets.token_hex(8),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        older = _claims(folder)
        if older and not _is_stale(older[-1]):
            return _read(older[-1])
        path = folder / f"{_PREFIX}{1 + (_generation(older[-1]) if older else 0)}"
        private = folder / f".{path.name}.{me.token}.partial"
        try:
            private.write_text(json.dumps(me._asdict()))
            os.link(private, path)
        except FileExistsError:
            return _read(path)
        except FileNotFoundError:
            return acquire(folder)  # who holds the rung since has cleaned its folder
        finally:
            private.unlink(missing_ok=True)
        # A process that saw other files than this one may have made a later generation meanwhile.
        newest = _claims(folder)[-1]
        if newest != path:
            path.unlink(missing_ok=True)
            return _read(newest)
        for stale in older:
            stale.unlink(missing_ok=True)
        return Claim(path, me)
    except OSError as error:
        raise SdslError(f"cannot claim the rung's folder {folder} ({error.strerror}).") from None


def _claims(folder: Path) -> list[Path]:
    """The claims in a folder, the one that holds last."""
    return sorted(
        (p for p in folder.glob(f"{_PREFIX}*") if p.name[len(_PREFIX) :].isdigit()), key=_generation
    )


def _generation(path: Path) -> int:
    return int(path.name[len(_PREFIX) :])


def _read(path: Path) -> Owner:
    """The owner of a claim; a nameless one if the claim is gone or damaged."""
    try:
        return Owner(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return Owner("another host", "", 0, "", "")


def _is_stale(path: Path) -> bool:
    owner = _read(path)
    if owner.machine == _machine() and _started(owner.pid) != owner.started:
        return True
    try:
        return _now(path.parent) - path.stat().st_mtime > STALE_SECONDS
    except FileNotFoundError:
        return True


def _now(folder: Path) -> float:
    """The time by the clock that stamps the files of a folder."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b".")
        probe.flush()
        os.fsync(probe.fileno())
        return os.fstat(probe.fileno()).st_mtime


def _machine() -> str:
    """What two processes share exactly if they see each other's process numbers; otherwise the
    host's name.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str | None:
    """When a process of this machine started; None if there is none, or if it has ended and was not
    waited for.
    """
    try:
        # The name in parentheses may hold blanks; the state comes first after it, the start time
        # twentieth.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ""
