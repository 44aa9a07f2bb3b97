import json

import pytest
from conftest import tiny

from sdsl_jax.config import load_study, to_toml


@pytest.fixture
def sdsl(sdsl, tmp_path, monkeypatch):
    """Runs `sdsl tune` on a small study."""
    text = tmp_path / "text.txt"
    text.write_text(
        "We the people of the United States, in order to form a more perfect union. " * 600
    )
    config = tiny(
        data={"source": [str(text)]},
        training={"evaluation_windows": 4, "warmup_tokens": 256, "learning_rate_exponent": 0.0},
    )
    (tmp_path / "tiny.toml").write_text(to_toml(config))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: sdsl("tune", "tiny.toml", *arguments)


@pytest.mark.slow
def test_a_sweep_ends_in_a_law_and_a_study(sdsl, tmp_path):
    arguments = (
        "--sizes",
        "600,1.2k",
        "--tokens",
        "2k",
        "--factors",
        ".1,1,10,1000",
        "--write",
        "tuned.toml",
    )
    status, out, _ = sdsl(*arguments)
    assert status == 0
    for words in (
        "× 0.1",
        "× 10",
        "within 1%",
        "law: learning_rate = ",
        "written: tuned.toml",
    ):
        assert words in out
    tuned = load_study(tmp_path / "tuned.toml").training
    status, out, _ = sdsl(*arguments, "--json")
    assert status == 0
    found = json.loads(out)
    assert found["setting"] == "learning_rate"
    assert [len(size["losses"]) for size in found["sizes"]] == [4, 4]
    assert tuned.learning_rate == pytest.approx(found["law"]["at_reference"])
    assert tuned.learning_rate_exponent == pytest.approx(-found["law"]["slope"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "3k,many"], "--sizes is 'many'; it must be a number such as 30e9, 30B"),
        (["--sizes", "600"], "a law of size needs at least 2 of them"),
        (["--factors", "1,2"], "a sweep needs at least 3"),
        (["--factors", "1,,2"], "a sweep needs at least 3"),
        (["--sizes", "nan,3k"], "--sizes is 'nan'"),
        (["--tokens", "inf"], "--tokens is 'inf'"),
        (["--factors", "inf,1,2"], "--factors is 'inf'"),
        (["--tokens", "0"], "--tokens is 0; it must be positive"),
    ],
)
def test_wrong_input_is_one_sentence_and_status_two(sdsl, tmp_path, arguments, message):
    status, out, err = sdsl(*arguments)
    assert status == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()
