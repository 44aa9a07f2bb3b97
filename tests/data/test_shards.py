import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdsl_jax.data.shards import TokenArray, check_shard, id_type, write_shards
from sdsl_jax.errors import SdslError


def written(folder, arrays, vocab_size, shard_tokens):
    dtype = id_type(vocab_size)
    shards = write_shards(folder, "train", iter(arrays), dtype, shard_tokens)
    return shards, TokenArray([folder / s.file for s in shards], [s.tokens for s in shards], dtype)


@given(
    lengths=st.lists(st.integers(0, 20), max_size=12),
    shard_tokens=st.integers(1, 40),
    vocab_size=st.sampled_from([2, 256, 257, 65536, 65537]),
    data=st.data(),
)
def test_shards_read_like_the_array_that_went_in(
    tmp_path_factory, lengths, shard_tokens, vocab_size, data
):
    rng = np.random.default_rng(sum(lengths))
    arrays = [rng.integers(0, vocab_size, n).astype(np.int32) for n in lengths]
    whole = np.concatenate([np.zeros(0, np.int32), *arrays])
    shards, read = written(tmp_path_factory.mktemp("shards"), arrays, vocab_size, shard_tokens)
    assert [s.tokens for s in shards[:-1]] == [shard_tokens] * (len(shards) - 1)
    assert len(read) == len(whole)
    assert np.asarray(read).dtype == np.int32
    np.testing.assert_array_equal(read, whole)
    number = st.one_of(st.none(), st.integers(-70, 250))
    for _ in range(5):
        part = slice(
            data.draw(number), data.draw(number), data.draw(st.sampled_from([None, 1, 3, -1, -2]))
        )
        np.testing.assert_array_equal(read[part], whole[part])
        assert read[part].dtype == np.int32
    if len(whole):
        index = rng.integers(-len(whole), len(whole), (3, 4))
        np.testing.assert_array_equal(read[index], whole[index])
        assert read[-1] == whole[-1]
    with pytest.raises(IndexError, match="outside"):
        read[len(whole)]


def test_ids_take_as_few_bytes_as_the_vocabulary_allows():
    assert [id_type(n).itemsize for n in (256, 257, 65536, 65537)] == [1, 2, 2, 4]


def test_another_process_maps_the_files_itself(tmp_path):
    _, read = written(tmp_path, [np.arange(10_000)], 10_000, 3000)
    sent = pickle.dumps(read)
    assert len(sent) < 2000
    np.testing.assert_array_equal(pickle.loads(sent), np.arange(10_000))


def test_a_damaged_shard_is_named(tmp_path):
    (first, second), _ = written(tmp_path, [np.arange(200)], 256, 150)
    dtype, path = id_type(256), tmp_path / first.file
    check_shard(path, first, dtype, thorough=True)

    content = path.read_bytes()
    path.write_bytes(content[:70] + bytes([content[70] ^ 4]) + content[71:])
    os.utime(
        path, ns=(0, first.mtime_ns)
    )  # rot under an unchanged time: found by the thorough check alone
    check_shard(path, first, dtype)
    with pytest.raises(
        SdslError, match=r"train-00000\.bin is damaged: its SHA-256 is another; delete the folder"
    ):
        check_shard(path, first, dtype, thorough=True)
    os.utime(path)
    with pytest.raises(SdslError, match="SHA-256 is another"):
        check_shard(path, first, dtype)

    path.write_bytes(content)
    check_shard(path, first, dtype)  # a whole copy is found to be whole, and trusted from then on
    assert path.stat().st_mtime_ns == first.mtime_ns

    with open(tmp_path / second.file, "ab") as file:
        file.truncate(49)
    with pytest.raises(SdslError, match=r"train-00001\.bin is damaged: it has 49 bytes, not 50"):
        check_shard(tmp_path / second.file, second, dtype)
    (tmp_path / second.file).unlink()
    with pytest.raises(SdslError, match=r"train-00001\.bin cannot be read \(No such file"):
        check_shard(tmp_path / second.file, second, dtype)
