import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdsl_jax.checkpoints import storage
from sdsl_jax.errors import SdslError

TREE = {"w": jnp.arange(3000.0).reshape(30, 100), "step": jnp.asarray(7, jnp.int32)}
LIKE = jax.eval_shape(lambda: TREE)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("segment") / "7"
    storage.save(path, TREE, {"seconds": 0.1 + 0.2, "seen": 3})
    return path


@pytest.fixture
def copy(written, tmp_path):
    return shutil.copytree(written, tmp_path / "7")


def test_what_is_saved_is_restored(written):
    restored = storage.restore(written, LIKE)
    assert restored.metadata == {"seconds": 0.1 + 0.2, "seen": 3}
    for mine, theirs in zip(jax.tree.leaves(TREE), jax.tree.leaves(restored.tree), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert [p.name for p in written.parent.iterdir()] == ["7"]
    assert storage.steps(written.parent) == [7]


def test_every_file_is_in_the_manifest_and_every_change_is_seen(written, tmp_path):
    files = [
        p
        for p in written.rglob("*")
        if p.is_file() and p.name != storage.MANIFEST and p.stat().st_size
    ]
    assert len(files) >= 5
    for i, file in enumerate(files):
        name = str(file.relative_to(written))
        for j, (change, message) in enumerate(
            [
                (lambda b: b[:-1], "bytes instead of"),
                (lambda b: bytes([b[0] ^ 1]) + b[1:], "holds other bytes"),
                (None, f"lacks {name}"),
            ]
        ):
            copy = shutil.copytree(written, tmp_path / f"{i}-{j}")
            if change is None:
                (copy / name).unlink()
            else:
                (copy / name).write_bytes(change(file.read_bytes()))
            with pytest.raises(SdslError, match=f"the checkpoint {copy} is damaged: .*{message}"):
                storage.restore(copy, LIKE)


@pytest.mark.parametrize("content", [None, "", "[]", '{"files": {"_CHECKPOINT_METADATA": 3}}'])
def test_a_manifest_that_is_missing_or_damaged(copy, content):
    manifest = copy / storage.MANIFEST
    manifest.unlink() if content is None else manifest.write_text(content)
    with pytest.raises(SdslError, match=r"is damaged: .*manifest\.json"):
        storage.restore(copy, LIKE)


def test_arrays_of_another_shape(written):
    with pytest.raises(SdslError, match="damaged or belongs to a model of another shape"):
        storage.restore(written, {**LIKE, "w": jax.ShapeDtypeStruct((31, 100), jnp.float32)})


def test_shardings_are_honoured(written):
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("fsdp",)), PartitionSpec("fsdp"))
    like = {**LIKE, "w": jax.ShapeDtypeStruct((30, 100), jnp.float32, sharding=sharding)}
    tree = storage.restore(written, like).tree
    assert tree["w"].sharding == sharding
    assert isinstance(tree["step"].sharding, jax.sharding.SingleDeviceSharding)


def test_a_checkpoint_of_the_same_name_makes_way(copy):
    storage.save(copy, {**TREE, "step": jnp.asarray(8, jnp.int32)}, {})
    assert int(storage.restore(copy, LIKE).tree["step"]) == 8
    assert [p.name for p in copy.parent.iterdir()] == ["7"]


def test_leftovers_of_killed_processes_are_removed(copy):
    for name in (".8.ab.partial", ".8.ab.partial.orbax-checkpoint-tmp", ".deleted-6.ab"):
        shutil.copytree(copy, copy.parent / name)
    (copy.parent / ".metrics.jsonl.ab.partial").write_text("x")
    assert storage.steps(copy.parent) == [7]
    storage.clean(copy.parent)
    assert [p.name for p in copy.parent.iterdir()] == ["7"]


FULL = """
import sys, pathlib, jax, jax.numpy as jnp
from sdsl_jax.errors import SdslError
from sdsl_jax.checkpoints import storage
folder = pathlib.Path(sys.argv[1])
tree = {"w": jax.random.normal(jax.random.key(0), (500, 500))}
try:
    storage.save(folder / "9", tree, {})
except SdslError as error:
    print(error)
print(sorted(p.name for p in folder.iterdir()), storage.damage(folder / "7"))
"""


LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"


@pytest.mark.slow
def test_no_room_for_a_file_inside_tensorstore(copy):
    """Files over 100 kB cannot be written: the error comes out of TensorStore, as that of a full disk does."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED + FULL, str(copy.parent)],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        check=True,
    )
    error, state = done.stdout.splitlines()
    assert "File too large" in error
    assert "the same command continues" in error
    assert state == "['7'] None"


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "x", "/mnt"], capture_output=True
    ).returncode
    != 0,
    reason="file systems cannot be mounted here",
)
def test_a_full_disk(copy, tmp_path):
    """A real one, of 600 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size=600k x "$1" && cp -r "$2" "$1" && exec "$3" -c "$4" "$1"'
    command = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        script,
        "sh",
        str(disk),
        str(copy),
        sys.executable,
        FULL,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    error, state = done.stdout.splitlines()
    assert "No space left on device" in error
    assert state == "['7'] None"


@pytest.mark.parametrize(
    "kind", [OSError(28, "No space left on device"), ValueError("RESOURCE_EXHAUSTED: disk")]
)
def test_whatever_orbax_raises_nothing_is_lost(copy, monkeypatch, kind):
    def fails(path, *_, **__):
        Path(f"{path}.orbax-checkpoint-tmp").mkdir()
        raise kind

    monkeypatch.setattr(storage.ocp, "save_checkpointables", fails)
    with pytest.raises(
        SdslError, match=r"cannot write the checkpoint .*7 \(.*(No space|EXHAUSTED)"
    ):
        storage.save(copy, TREE, {})
    assert [p.name for p in copy.parent.iterdir()] == ["7"]
    assert storage.damage(copy) is None


def test_a_checkpoint_does_not_tell_where_it_was_written(tmp_path):
    storage.save(tmp_path / "there", TREE, {})
    for file in (tmp_path / "there").rglob("*"):
        assert not file.is_file() or str(tmp_path).encode() not in file.read_bytes(), file


_LIMITED = """
import resource, sys, pathlib, jax
from sdsl_jax.errors import SdslError
from sdsl_jax.checkpoints import storage
folder = pathlib.Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    storage.save(folder / "5", {"weights": jax.random.normal(jax.random.key(0), (300, 300))}, {})
except SdslError as error:
    print(error)
"""


@pytest.mark.slow
def test_what_the_system_refuses_to_write_is_one_sentence(tmp_path):
    """A limit on the size of files, where no file system can be mounted; and nothing of Orbax's log."""
    child = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert (
        f"cannot write the checkpoint {tmp_path / '5'} (File too large); the checkpoints before"
        in child.stdout
    )
    assert child.stdout.count("\n") == 1
    assert child.stderr == ""
    assert not list(tmp_path.iterdir())
