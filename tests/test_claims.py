"""Claims on rungs: what `filelock.SoftFileLease` gives, and the two things that it leaves to us."""

import errno
import os
import subprocess
import sys
import threading
import time

import pytest
from filelock import SoftFileLease, Timeout

from sdsl_jax import claims
from sdsl_jax.checkpoints import storage
from sdsl_jax.claims import Claim, ClaimLost
from sdsl_jax.errors import SdslError

HERE = """
import pathlib, sys
from sdsl_jax.claims import Claim
claim = Claim(pathlib.Path(sys.argv[1]))
assert claim.acquire()
print("held", flush=True)
sys.stdin.read(1)
"""
# Long beside the pauses of a busy machine, short beside a test.
LEASE = 0.6


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(claims, "LEASE_SECONDS", LEASE)


def elsewhere(folder, host="elsewhere", pid=2**22 + 5, duration=LEASE):
    """A claim that a process of another host left behind."""
    folder.mkdir(exist_ok=True)
    fields = [f"pid={pid}", f"host={host}", "mode=lease", "token=1f", f"duration={duration!r}"]
    (folder / "claim").write_text("\n".join(["filelock/2", *fields, ""]))


def seconds_until_acquired(claim, most=20 * LEASE):
    began = time.monotonic()
    while not claim.acquire():
        assert time.monotonic() - began < most
        time.sleep(0.02)
    return time.monotonic() - began


def without_exchange(monkeypatch):
    """A file system such as NFS, which cannot exchange two names in one step."""
    for name, module in list(sys.modules.items()):
        if name.startswith("filelock") and "exchange_names" in vars(module):
            monkeypatch.setattr(module, "exchange_names", lambda *_: False)


def test_one_holds_and_the_others_learn_who(tmp_path):
    mine, other = Claim(tmp_path / "rung"), Claim(tmp_path / "rung")
    assert mine.acquire()
    with mine:
        assert not other.acquire()
        assert str(other) == str(mine)
        assert str(other).endswith(f":{os.getpid()}")
        mine.check()
        with pytest.raises(ClaimLost):
            other.check()
    assert list((tmp_path / "rung").iterdir()) == []
    assert other.acquire()
    with pytest.raises(ClaimLost):
        mine.check()
    other.__exit__()


@pytest.mark.parametrize("left", ["nothing", "a dead process's"])
def test_of_many_exactly_one_wins(tmp_path, left):
    if left != "nothing":
        elsewhere(tmp_path, os.uname().nodename)
    barrier, won, contenders = threading.Barrier(8), [], [Claim(tmp_path) for _ in range(8)]

    def race(claim):
        barrier.wait()
        won.append(claim.acquire())

    threads = [threading.Thread(target=race, args=(each,)) for each in contenders]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert sum(won) <= 1
    if not any(won):  # whoever breaks a claim may find the rest in the way
        assert sum(each.acquire() for each in contenders) == 1
    [each.__exit__() for each in contenders]


def test_heartbeats_keep_it_and_show_that_its_holder_is_alive(tmp_path):
    other = Claim(tmp_path)
    with Claim(tmp_path) as mine:
        assert mine.acquire()
        assert not other.acquire()
        assert not other.alive
        until = time.monotonic() + 2 * LEASE
        while time.monotonic() < until:
            assert not other.acquire()
            time.sleep(0.02)
        assert other.alive
        mine.check()


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("left", ["lease", "empty", "damaged"])
def test_what_a_dead_process_elsewhere_left_is_taken_over(tmp_path, monkeypatch, left, exchanges):
    elsewhere(tmp_path)
    if left != "lease":  # killed between making the file and writing it, or by a full disk
        (tmp_path / "claim").write_text("" if left == "empty" else "filelo")
    if not exchanges:
        without_exchange(monkeypatch)
    claim = Claim(tmp_path)
    assert not claim.acquire()
    assert str(claim) == (f"elsewhere:{2**22 + 5}" if left == "lease" else "another process")
    waited = seconds_until_acquired(claim)
    assert not claim.alive
    if left == "lease":
        assert waited >= 0.9 * LEASE
    claim.check()
    claim.__exit__()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", ["lease", "empty"])
def test_the_lease_alone_would_wait_forever(tmp_path, monkeypatch, left):
    """Why `Claim` watches too: a lease that filelock does not take over, however long it waits."""
    elsewhere(tmp_path)
    if left == "empty":
        (tmp_path / "claim").write_text("")
    else:
        without_exchange(monkeypatch)
    lease = SoftFileLease(tmp_path / "claim", lease_duration=LEASE)
    with pytest.raises(Timeout):
        lease.acquire(timeout=3 * LEASE)


def test_who_was_taken_over_notices_before_it_writes(tmp_path):
    first, second, third = (Claim(tmp_path) for _ in range(3))
    assert first.acquire()
    first._lease._stop_heartbeat()  # as in a process that was stopped
    seconds_until_acquired(second)
    second.check()
    with pytest.raises(ClaimLost, match="another process has taken over"):
        first.check()
    with second:
        pass
    with pytest.raises(ClaimLost):
        first.check()  # nor does it come back when the second is done
    assert third.acquire()
    with first:
        pass
    third.check()  # what ends does not take another's claim away
    third.__exit__()


def test_a_wrong_clock_elsewhere_changes_nothing(tmp_path):
    """A live holder whose clock is an hour behind or ahead keeps its claim; a dead one loses it."""
    for skew in (-3600, 3600):
        elsewhere(tmp_path)
        other, began = Claim(tmp_path), time.time()
        while time.time() < began + 2 * LEASE:
            then = time.time() + skew
            os.utime(tmp_path / "claim", (then, then))
            assert not other.acquire()
            time.sleep(0.05)
        assert other.alive
        seconds_until_acquired(other)
        other.__exit__()


def test_a_renewal_between_two_distant_looks_shows_nobody_alive(tmp_path):
    """Whoever comes back from hours of training watches again before it believes in a holder."""
    elsewhere(tmp_path)
    claim = Claim(tmp_path)
    assert not claim.acquire()
    os.utime(tmp_path / "claim")  # renewed once, and then its holder died
    time.sleep(1.5 * LEASE)
    assert not claim.acquire()
    assert not claim.alive
    seconds_until_acquired(claim)
    claim.__exit__()


def test_a_full_disk_leaves_no_claim_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as writes:
        writes.setattr(os, "write", full)
        with pytest.raises(SdslError, match=r"cannot claim .* \(No space left on device\)"):
            Claim(tmp_path).acquire()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SdslError, match=r"cannot claim .*file/rung \(Not a directory\)"):
        Claim(tmp_path / "file" / "rung").acquire()


def test_cleaning_a_folder_takes_no_claim_from_its_holder(tmp_path):
    with Claim(tmp_path) as mine:
        assert mine.acquire()
        storage.clean(tmp_path)
        mine.check()


@pytest.mark.slow
def test_a_killed_process_is_replaced_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "LEASE_SECONDS", 120.0)
    command = [sys.executable, "-c", HERE, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "held\n"
        claim = Claim(tmp_path)
        assert not claim.acquire()
        assert str(claim).endswith(f":{child.pid}")
        child.kill()
    assert seconds_until_acquired(claim, most=5) < 5
    claim.__exit__()
