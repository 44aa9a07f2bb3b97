import contextlib
import csv
import json

import numpy as np
import pytest

from sdsl_jax.errors import SdslError
from sdsl_jax.records import (
    AcceptanceRecord,
    read_json,
    read_table,
    schema,
    whole_file,
    write_json,
    write_table,
)
from sdsl_jax.statistics import (
    mean_interval,
    median_interval,
    quantile_interval,
    ratio_interval,
    student_quantile,
)

ROWS = [
    AcceptanceRecord(
        "d1",
        "t,1",
        "teacher_forced_text",
        0,
        1.0,
        'a "domain"',
        0.1 + 0.2,
        0.29,
        0.31,
        0.9,
        3,
        40,
        1.0,
    ),
    AcceptanceRecord("d2", "t,1", "decoded_tar", 4, 0.7, "x", 1 / 3),
]


def test_tables_survive_the_round_trip_exactly(tmp_path):
    write_table(tmp_path, "acceptance", ROWS)
    read = read_table(tmp_path, "acceptance")
    assert read[0] == ROWS[0]
    assert read[1].alpha == 1 / 3
    assert np.isnan(read[1].alpha_low)


def test_every_column_is_described_and_others_are_passed_over(tmp_path):
    write_table(tmp_path, "acceptance", ROWS)
    with open(tmp_path / "acceptance.csv") as file:
        header = next(csv.reader(file))
    assert set(header) == set(schema()["tables"]["acceptance"])
    assert all(c["description"] for table in schema()["tables"].values() for c in table.values())
    # Records from elsewhere: required columns only, in another order, with a column of their own.
    (tmp_path / "models.csv").write_text(
        "mine,model_id,role,params_nonembedding,params_total,train_tokens,seed,loss_nats,perplexity\nx,a,draft,10,12,100,0,1.5,4.48\n"
    )
    row = read_table(tmp_path, "models")[0]
    assert (row.model_id, row.params_total, row.loss_nats, row.params_digest) == ("a", 12, 1.5, "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("draft_id,target_id\na,b\n", "lacks the columns estimator, lookahead"),
        ("", "is empty"),
        (
            "draft_id,target_id,estimator,lookahead,temperature,domain,alpha\na,b,c,0,1.0,d,high\n",
            "line 2 holds 'high' as alpha",
        ),
        (
            "draft_id,target_id,estimator,lookahead,temperature,domain,alpha\na,b,c,0,1.0\n",
            "line 2 holds 5 cells, fewer than its 7 columns",
        ),
        ('draft_id,target_id,estimator,lookahead,temperature,domain,alpha\n"a,b', "is damaged"),
    ],
)
def test_damaged_tables_are_named(tmp_path, content, message):
    (tmp_path / "acceptance.csv").write_text(content)
    with pytest.raises(SdslError, match=message) as caught:
        read_table(tmp_path, "acceptance")
    assert "acceptance.csv" in str(caught.value)


def test_records_written_by_hand(tmp_path):
    """Counts as people write them, another separator, and true lines of the file."""
    header = (
        "model_id;role;params_nonembedding;params_total;train_tokens;seed;loss_nats;perplexity\n"
    )
    (tmp_path / "models.csv").write_text(
        "\ufeff" + header + "\na;target;13B;13,000,000,000;1.4e12;0;1.5;4.48\n"
    )
    row = read_table(tmp_path, "models")[0]
    assert (row.params_nonembedding, row.params_total, row.train_tokens) == (
        13 * 10**9,
        13 * 10**9,
        14 * 10**11,
    )
    for line, message in (
        (
            "a;target;1.5;13B;1T;0;1.5;4",
            "line 4 holds '1.5' as params_nonembedding, which must be of type int",
        ),
        ("a;target;inf;13B;1T;0;1.5;4", "line 4 holds 'inf' as params_nonembedding"),
        ("a;target;1B;13B;1T;0;1.5;4;9", "line 4 holds 9 cells, more cells than columns"),
        ("# a;target;1B;13B;1T;0;1.5;4", "holds no rows|is left out as a comment"),
    ):
        (tmp_path / "models.csv").write_text(header + "\n\n" + line + "\n")
        if line.startswith("#"):
            (tmp_path / "models.csv").write_text(header + line + "\n" + line[2:] + "\n")
        with pytest.raises(SdslError, match=message):
            read_table(tmp_path, "models")


def test_another_schema_version_is_refused(tmp_path):
    write_table(tmp_path, "acceptance", ROWS)
    write_json(tmp_path / "schema.json", {"schema_version": 99})
    with pytest.raises(SdslError, match="schema version 99"):
        read_table(tmp_path, "acceptance")


def test_json_holds_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"x": float("nan"), "y": [1.0, float("inf")]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None, "y": [1.0, None]}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(SdslError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SdslError, match="cannot write"):
        write_table(tmp_path / "file" / "records", "acceptance", ROWS)


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "events.parquet"
    with whole_file(path) as temporary:
        temporary.write_text("first")
        assert temporary.suffix == ".parquet"
        assert not path.exists()
    with contextlib.suppress(RuntimeError), whole_file(path) as temporary:
        temporary.write_text("half of the sec")
        raise RuntimeError
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_an_interval_of_draws_leaves_as_many_out_at_either_end():
    assert quantile_interval(np.arange(101), 0.9) == pytest.approx((5, 95))
    assert quantile_interval([1, 2, 3], 0.5, method="inverted_cdf") == (1, 3)


def test_student_quantiles():
    """Tables: t(0.95) with 3, 10 and 63 degrees of freedom."""
    for degrees, expected in ((3, 2.3534), (10, 1.8125), (63, 1.6694)):
        assert student_quantile(0.95, degrees) == pytest.approx(expected, rel=0.01)
    # Two and three seeds: exact.
    for degrees, probability, expected in (
        (1, 0.95, 6.313752),
        (2, 0.95, 2.919986),
        (2, 0.975, 4.302653),
    ):
        assert student_quantile(probability, degrees) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("estimate", ["mean", "ratio", "median"])
def test_intervals_cover(estimate):
    """2,000 simulations of 90% intervals with 20 clusters. The binomial error is 0.7%; a t interval
    undercovers an exponential's mean by some 4%, and order statistics can only overcover."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        if estimate == "ratio":
            # Prompts with probabilities of their own and unequal numbers of tests: E(ratio) = E(p)
            # as lengths are independent.
            tests = random.integers(20, 60, 20)
            interval, truth = (
                ratio_interval(random.binomial(tests, random.beta(6, 3, 20)), tests, 0.9),
                2 / 3,
            )
        else:
            values = random.exponential(size=20)
            interval = (
                mean_interval(values, 0.9) if estimate == "mean" else median_interval(values, 0.9)
            )
            truth = 1.0 if estimate == "mean" else np.log(2)
        covered += interval.low <= truth <= interval.high
    low, high = {"mean": (0.83, 0.90), "ratio": (0.87, 0.93), "median": (0.88, 0.98)}[estimate]
    assert low <= covered / 2000 <= high
