import errno
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from sdsl_jax.checkpoints import storage
from sdsl_jax.errors import SdslError
from sdsl_jax.training import claims
from sdsl_jax.training.claims import Claim, ClaimLost, Owner, acquire

HERE = """
import os, sys
from sdsl_jax.training.claims import acquire
import pathlib
claim = acquire(pathlib.Path(sys.argv[1]))
print(claim.path, flush=True)
sys.stdin.read(1)
"""


def age(claim, seconds):
    then = time.time() - seconds
    os.utime(claim.path, (then, then))


def test_one_holds_and_the_others_learn_who(tmp_path):
    with acquire(tmp_path / "rung") as mine:
        other = acquire(tmp_path / "rung")
        assert isinstance(other, Owner)
        assert other == mine.owner
        assert str(other).endswith(f":{os.getpid()}")
        mine.check()
    assert list((tmp_path / "rung").iterdir()) == []
    assert isinstance(acquire(tmp_path / "rung"), Claim)


def test_of_many_exactly_one_wins(tmp_path):
    barrier, won = threading.Barrier(8), []

    def race():
        barrier.wait()
        won.append(isinstance(acquire(tmp_path), Claim))

    for stale in (False, True):
        if stale:
            (path,) = tmp_path.iterdir()
            os.utime(path, (1, 1))
        won.clear()
        threads = [threading.Thread(target=race) for _ in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert sum(won) == 1


def test_without_heartbeat_it_is_taken_over_and_the_first_notices(tmp_path):
    first = acquire(tmp_path)
    age(first, claims.STALE_SECONDS - 20)
    assert isinstance(acquire(tmp_path), Owner)
    age(first, claims.STALE_SECONDS + 20)
    second = acquire(tmp_path)
    assert isinstance(second, Claim)
    second.check()
    with pytest.raises(ClaimLost, match="another process has taken over"):
        first.check()
    with second:
        pass
    with pytest.raises(ClaimLost):
        first.check()  # nor does it come back when the second is done
    third = acquire(tmp_path)
    with pytest.raises(ClaimLost):
        first.check()  # nor when a third has the very name of its own
    assert third.path == first.path
    with first:
        pass
    third.check()  # what ends does not take another's claim away


def test_heartbeats_keep_it(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "_BEAT_SECONDS", 0.02)
    with acquire(tmp_path) as mine:
        age(mine, claims.STALE_SECONDS + 20)
        time.sleep(0.2)
        assert isinstance(acquire(tmp_path), Owner)


def rewrite(claim, **changes):
    claim.path.write_text(json.dumps(claim.owner._asdict() | changes))


def test_a_dead_process_of_this_machine_holds_nothing(tmp_path):
    claim = acquire(tmp_path)
    rewrite(claim, started="1")  # the number was given to another process meanwhile
    assert isinstance(acquire(tmp_path), Claim)


def test_processes_of_other_machines_are_judged_by_their_heartbeat(tmp_path):
    claim = acquire(tmp_path)
    rewrite(claim, machine="elsewhere", host="elsewhere", pid=2**22 + 5)
    assert str(acquire(tmp_path)) == f"elsewhere:{2**22 + 5}"
    age(claim, claims.STALE_SECONDS + 20)
    assert isinstance(acquire(tmp_path), Claim)


def test_a_claim_that_cannot_be_read_is_judged_by_its_heartbeat(tmp_path):
    claim = tmp_path / "claim-1"
    claim.touch()
    assert acquire(tmp_path).host == "another host"
    os.utime(claim, (1, 1))
    assert isinstance(acquire(tmp_path), Claim)


@pytest.mark.parametrize("fails", ["link", "fsync"])
def test_a_full_disk_leaves_no_claim_behind(tmp_path, monkeypatch, fails):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    held = acquire(tmp_path) if fails == "fsync" else None
    before = list(tmp_path.iterdir())
    monkeypatch.setattr(claims.os, fails, full)
    if held is not None:
        rewrite(held, machine="elsewhere")
    with pytest.raises(
        SdslError, match=r"cannot claim the rung's folder .* \(No space left on device\)"
    ):
        acquire(tmp_path)
    assert list(tmp_path.iterdir()) == before


def test_cleaning_a_folder_takes_no_claim_from_its_holder(tmp_path, monkeypatch):
    """A holder that has just begun cleans the folder while another process looks at its claim, or tries for one itself."""
    with acquire(tmp_path) as mine:
        rewrite(mine, machine="elsewhere")
        sync, link = os.fsync, os.link
        monkeypatch.setattr(claims.os, "fsync", lambda file: (storage.clean(tmp_path), sync(file)))
        assert acquire(tmp_path) == mine.owner._replace(machine="elsewhere")
        mine.path.unlink()

        def cleaned_before(private, path):
            monkeypatch.setattr(claims.os, "link", link)
            storage.clean(tmp_path)
            link(private, path)

        monkeypatch.setattr(claims.os, "link", cleaned_before)
        assert isinstance(acquire(tmp_path), Claim)
        assert [path.name for path in tmp_path.iterdir()] == ["claim-1"]


@pytest.mark.slow
def test_a_killed_process_is_replaced_at_once(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", HERE, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline().strip() == str(tmp_path / "claim-1")
    assert acquire(tmp_path).pid == child.pid
    child.kill()
    deadline = time.time() + 10
    # Not yet waited for: a zombie counts as dead.
    while isinstance(acquire(tmp_path), Owner) and time.time() < deadline:
        time.sleep(0.05)
    assert [p.name for p in tmp_path.iterdir()] == ["claim-2"]
    child.communicate()
