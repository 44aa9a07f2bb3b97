"""Claims on pieces of work, as leases of filelock: a dead holder on this host loses one at once, any
other to who has watched it for `LEASE_SECONDS`. Two that do a piece anyway write the same files."""

import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from filelock import SoftFileLease, Timeout

from sdsl_jax.errors import SdslError

LEASE_SECONDS = 120.0


class ClaimLost(Exception):
    """Another process has taken the work over."""


class Claim(AbstractContextManager["Claim"]):
    """A claim on a folder. `str` names its holder, `alive` if it renewed the claim while watched."""

    def __init__(self, folder: Path):
        self.path, self.alive, self._seen = folder / "claim", False, (0, 0, 0)
        self._since = self._looked = -LEASE_SECONDS
        self._lease = SoftFileLease(self.path, lease_duration=LEASE_SECONDS, thread_local=False)

    def __str__(self) -> str:
        by = self._lease.owner
        return f"{by.hostname.split('?')[0]}:{by.pid}" if by else "another process"

    def acquire(self) -> bool:
        """Tries once; raises `SdslError` if the folder cannot be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(Timeout, FileNotFoundError):
                self._lease.acquire(blocking=False)
                return True
            with suppress(FileNotFoundError):
                self._watch()
        except OSError as error:
            raise SdslError(f"cannot claim {self.path.parent} ({error.strerror}).") from None
        return False

    def check(self) -> None:
        """Raises `ClaimLost` if another process holds it; call it before anything is written."""
        if not self._lease.token or getattr(self._lease.owner, "token", "") != self._lease.token:
            raise ClaimLost(f"another process has taken over {self.path.parent}")

    def __exit__(self, *_: object) -> None:
        self._lease.release()

    def _watch(self) -> None:
        now, file = time.monotonic(), self.path.stat()
        closely, self._looked = now - self._looked < LEASE_SECONDS, now
        if (seen := (file.st_ino, file.st_mtime_ns, file.st_ctime_ns)) != self._seen:
            self.alive, self._seen, self._since = True, seen, now
        self.alive &= closely  # a renewal long ago, between two looks, says nothing
        # filelock breaks no file where names cannot be exchanged (NFS), nor an empty one.
        if now - self._since >= LEASE_SECONDS:
            self._lease.force_break()
