import subprocess
import sys

import pytest
from conftest import TINY, tiny
from hypothesis import given
from hypothesis import strategies as st

from sdsl_jax.config import (
    StudyConfig,
    from_dict,
    load_protocol,
    load_study,
    parse_override,
    to_toml,
)
from sdsl_jax.config.problem_flags import load_problem
from sdsl_jax.errors import SdslError


def test_toml_round_trip(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(to_toml(tiny()))
    assert load_study(path) == tiny()


@given(
    st.integers(1, 10**6),
    st.floats(1e-5, 1.0),
    st.sets(st.integers(0, 100), min_size=1, max_size=4),
)
def test_any_allowed_value_survives_the_round_trip(tmp_path_factory, batch, rate, seeds):
    config = tiny(
        training={"batch_size": batch, "learning_rate": rate}, ladder={"seeds": sorted(seeds)}
    )
    path = tmp_path_factory.mktemp("toml") / "study.toml"
    path.write_text(to_toml(config))
    assert load_study(path) == config


def test_overrides_win(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(to_toml(tiny()))
    config = load_study(
        path, ["training.batch_size=16", "--ladder.seeds=[1, 2]", "name=other", "data.source=a.txt"]
    )
    assert (config.training.batch_size, config.ladder.seeds, config.name, config.data.source) == (
        16,
        (1, 2),
        "other",
        "a.txt",
    )


def test_what_is_seen_follows_the_rule_for_pairs_and_holds_nothing_back():
    config = tiny(
        ladder={"draft_params": [3000, 5000]},
        holdout={"draft_params": [5000], "smaller_drafts": True, "alpha_mae": 0.2},
    )
    assert config.seen.ladder.draft_params == (3000,)
    assert config.seen.holdout.smaller_drafts
    assert not config.seen.holdout.any


def test_an_override_that_is_not_one():
    with pytest.raises(SdslError, match="not of the form"):
        parse_override("training.batch_size")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trianing": {}}, "unknown key trianing; the keys allowed here are name, ladder"),
        ({"training": {"batchsize": 3}}, "unknown key training.batchsize"),
        ({"training": {"batch_size": 0}}, "training.batch_size is 0; it must be at least 1"),
        (
            {"holdout": {"alpha_coverage": [0.95, 0.85]}},
            "holdout.alpha_coverage is [0.95, 0.85]; it must hold the lowest and the highest share",
        ),
        (
            {"holdout": {"alpha_mae": 2}},
            "holdout.alpha_mae is 2.0; it must lie in [0, 1]",
        ),
        (
            {"training": {"batch_size": 2.5}},
            "training.batch_size is 2.5; it must be a whole number",
        ),
        (
            {"training": {"learning_rate": "fast"}},
            "training.learning_rate is 'fast'; it must be a finite number",
        ),
        (
            {"measure": {"lookaheads": [0, 2]}},
            "measure.lookaheads holds 0; every value must be at least 1",
        ),
        ({"measure": {"lookaheads": 3}}, "measure.lookaheads is 3; it must be an array"),
        ({"measure": {"new_tokens": 500}}, "must not exceed data.sequence_length"),
        ({"family": {"qk_norm": 1}}, "family.qk_norm is 1; it must be true or false"),
        (
            {"data": {"tokenizer": "words"}},
            "data.tokenizer is 'words'; it must be 'bytes', 'bpe', or the path of a published model",
        ),
        ({"data": {"vocab_size": 100}}, "byte tokenizer has exactly 256"),
        ({"data": {"source": 3}}, "data.source is 3; it must be a string or an array of strings"),
        ({"ladder": {"draft_params": []}}, "ladder.draft_params is empty"),
        ({"ladder": {"seeds": [1, 1]}}, "repeats a value"),
        ({"ladder": 3}, "ladder is 3; it must be a table"),
        ({"name": "../evil"}, "name is '../evil'"),
    ],
)
def test_wrong_values_are_named(change, message):
    values = {
        k: {**v, **change.get(k, {})}
        if isinstance(v, dict) and isinstance(change.get(k, {}), dict)
        else change.get(k, v)
        for k, v in TINY.items()
    }
    values |= {k: v for k, v in change.items() if k not in values}
    with pytest.raises(SdslError) as caught:
        from_dict(StudyConfig, values)
    assert message in str(caught.value)


def test_a_missing_key_is_named():
    with pytest.raises(SdslError, match="the key ladder is missing"):
        from_dict(StudyConfig, {"name": "x"})
    with pytest.raises(SdslError, match=r"ladder\.draft_tokens is empty"):
        from_dict(StudyConfig, {"name": "x", "ladder": {"draft_params": [1]}})


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(SdslError, match="cannot be read"):
        load_study(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = [1")
    with pytest.raises(SdslError, match="not valid TOML"):
        load_study(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("sdsl_jax", ("jax", "flax", "orbax", "pandas", "matplotlib")),
        ("sdsl_jax.config", ("jax", "flax", "orbax")),
        ("sdsl_jax.records", ("jax", "flax", "orbax", "pandas")),
        ("sdsl_jax.codesign", ("flax", "orbax", "pandas", "matplotlib")),
        ("sdsl_jax.theory", ("flax", "orbax", "optax", "pandas", "matplotlib", "grain")),
    ],
)
def test_ground_floor_imports_nothing_above(module, forbidden):
    """In a fresh interpreter, since this one has loaded everything."""
    code = f"import sys, {module}; print([m for m in {forbidden} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_counts_as_people_write_them(tmp_path):
    """Strings where a count is meant, in files and on the command line; nowhere else."""
    path = tmp_path / "study.toml"
    path.write_text(to_toml(tiny()))
    overrides = [
        "--ladder.draft_params=3k,14k",
        "--ladder.target_tokens=[1M,0.57B]",
        '--ladder.target_params=["50k", 100000]',
        "--training.warmup_tokens=1.5k",
        "--training.reference_params=100,000",
    ]
    config = load_study(path, overrides)
    assert config.ladder.draft_params == (3000, 14_000)
    assert config.ladder.target_tokens == (1_000_000, 570_000_000)
    assert config.ladder.target_params == (50_000, 100_000)
    assert (config.training.warmup_tokens, config.training.reference_params) == (1500, 100_000)
    for override, message in (
        ("ladder.draft_params=13,000,000", "write 13M for one number"),
        (
            "training.warmup_tokens=many",
            "is 'many'; it must be a whole number such as 125e6, or a string",
        ),
        ("training.warmup_tokens=1.0005k", "it must be a whole number"),
        ("training.batch_size=1k", "training.batch_size is '1k'; it must be a whole number"),
    ):
        with pytest.raises(SdslError) as caught:
            load_study(path, [override])
        assert message in str(caught.value)
        assert "study.toml" not in str(caught.value)


def test_counts_in_problems_and_protocols(tmp_path):
    path = tmp_path / "problem.toml"
    path.write_text(
        '[target]\nparams = "70B"\ntokens = "15T"\n[draft]\ncandidates = ["1B", 3e9]\n[workload]\ncontext = "4k"\n'
        '[variables]\ndraft_params = ["100M", "7B"]\nlookahead = "free"\n'
    )
    problem = load_problem(path, {})
    assert (problem.target.params, problem.target.tokens, problem.workload.context) == (
        70e9,
        15e12,
        4000,
    )
    assert problem.draft.candidates == (1e9, 3e9)
    assert problem.variables.draft_params == (1e8, 7e9)
    assert problem.variables.lookahead == "free"
    path.write_text('name = "p"\ndraft_tokens = "180B"\ntargets = [{folder = "a", params = "13B", train_tokens = "180B"}]\n'
                    'drafts = [{folder = "b", params = "125M", train_tokens = 180e9}]\n')  # fmt: skip
    protocol = load_protocol(path)
    assert (protocol.draft_tokens, protocol.targets[0].params, protocol.drafts[0].params) == (
        180e9,
        13e9,
        125e6,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("target = 3", "problem.toml: target is 3; it must be a table"),
        (
            '[target]\nparams = "big"',
            "problem.toml: target.params is 'big'; it must be a finite number such as",
        ),
        (
            "[target]\nparams = 70",
            "problem.toml: target.params is 70, too few for any model; did you mean 70B?",
        ),
        ("[target]\nparams = 7e9\nname = 3", "problem.toml: target.name is 3; it must be a string"),
        (
            "[target]\nparams = 7e9\n[draft]\nacceptance = 80\ncandidates = [1e9]",
            "write it as a share: 0.8",
        ),
        ("[target\n", "problem.toml is not valid TOML"),
        ("x = " + "[" * 100_000, "problem.toml is not valid TOML"),
    ],
)
def test_errors_of_a_problem_name_its_file(tmp_path, text, message):
    path = tmp_path / "problem.toml"
    path.write_text(text)
    with pytest.raises(SdslError) as caught:
        load_problem(path, {})
    assert message in str(caught.value)


def test_errors_of_a_flag_do_not_name_the_file(tmp_path):
    path = tmp_path / "problem.toml"
    path.write_text("[target]\nparams = 7e9\n")
    with pytest.raises(SdslError, match=r"^workload\.batch is -1"):
        load_problem(path, {"workload": {"batch": -1}})
