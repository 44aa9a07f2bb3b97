import json
import re
from pathlib import Path

import numpy as np
import pytest

from sdsl_jax.errors import SdslError
from sdsl_jax.fitting.tables import Choice, read_loss_table, read_pair_table
from sdsl_jax.records import AcceptanceRecord, ModelRecord, write_table
from sdsl_jax.theory import ChinchillaLaw, LogitPlane, ModelPoint

LADDER = Path(__file__).parents[2] / "checkpoints" / "ladder" / "records" / "models.csv"
TRUTH = ChinchillaLaw(E=1.2, A=12.0, B=60.0, a=0.35, b=0.4)
PLANE = LogitPlane(1.9, 2.1, 1.4)
QUICK = ("--starts", "8", "--bootstrap", "20")
KEYS = {
    "law", "coefficients", "standard_error", "interval_90", "objective", "n", "huber_delta", "starts", "starts_agreeing",
    "condition_number", "warnings",
}  # fmt: skip
FOREIGN = ("--params-column", "n", "--tokens-column", "d", "--loss-column", "nll")


@pytest.fixture
def sdsl(sdsl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return sdsl


def models() -> list[ModelRecord]:
    random = np.random.default_rng(0)
    made = []
    for n in (1000, 3000, 10_000, 30_000, 100_000):
        for d in (100_000, 400_000, 1_600_000, 6_400_000):
            loss = float(TRUTH(n, d)) * np.exp(0.002 * random.normal())
            role = "target" if n == 100_000 else "draft"
            made.append(ModelRecord(f"{role}-{n}-{d}", role, n, n, d, 0, loss, float(np.exp(loss))))
    return made


def pairs(estimator: str = "teacher_forced_samples") -> list[AcceptanceRecord]:
    known, random = models(), np.random.default_rng(1)

    def alpha(draft, target):
        points = (
            ModelPoint(m.params_nonembedding, m.loss_nats, m.train_tokens) for m in (draft, target)
        )
        return float(PLANE(*points)) + 0.002 * random.normal()

    return [
        AcceptanceRecord(d.model_id, t.model_id, estimator, 0, 1.0, domain, alpha(d, t))
        for domain in ("prose", "code")
        for t in known
        if t.role == "target" and t.train_tokens > 1e6
        for d in known
        if d.role == "draft" and (domain == "prose" or d.train_tokens > 2e5)
    ]


@pytest.fixture
def records(tmp_path) -> Path:
    folder = tmp_path / "records"
    folder.mkdir()
    write_table(folder, "models", models())
    write_table(folder, "acceptance", pairs())
    return folder


def own_runs(path: Path, lines: dict[int, str] | None = None) -> Path:
    """A table with columns of its own; some lines replaced, by their number in the file."""
    text = ["n,d,nll,run"]
    text += [
        f"{m.params_nonembedding},{m.train_tokens},{m.loss_nats},{m.params_nonembedding}"
        for m in models()
    ]
    for number, line in (lines or {}).items():
        text[number - 1] = line
    path.write_text("\n".join(text) + "\n")
    return path


def own_pairs(path: Path, lines: dict[int, str] | None = None) -> Path:
    by_id = {m.model_id: m for m in models()}
    text = ["draft_params,draft_loss,target_params,target_loss,alpha,draft_id"]
    for row in pairs():
        if row.domain == "prose":
            d, t = by_id[row.draft_id], by_id[row.target_id]
            cells = (
                d.params_nonembedding,
                d.loss_nats,
                t.params_nonembedding,
                t.loss_nats,
                row.alpha,
                d.model_id,
            )
            text.append(",".join(map(str, cells)))
    for number, line in (lines or {}).items():
        text[number - 1] = line
    path.write_text("\n".join(text) + "\n")
    return path


@pytest.mark.slow
def test_our_records_as_they_are(sdsl):
    status, out, err = sdsl("fit", "loss", "--csv", LADDER, *QUICK)
    assert (status, err) == (0, "")
    for words in ("chinchilla, fitted to 65 rows", "starts agree; condition number", "rungs"):
        assert words in out
    status, out, _ = sdsl("fit", "loss", "--csv", LADDER, *QUICK, "--json")
    made = json.loads(out)
    assert status == 0
    assert set(made) >= KEYS
    assert made["params_count"] == "non-embedding"
    assert made["n"] == 65


def test_a_foreign_table(sdsl, tmp_path):
    path = own_runs(tmp_path / "runs.csv")
    status, out, _ = sdsl(
        "fit",
        "loss",
        "--csv",
        path,
        *FOREIGN,
        "--rung-column",
        "run",
        "--resample",
        "rungs",
        *QUICK,
        "--json",
    )
    made = json.loads(out)
    assert status == 0
    assert set(made) >= KEYS
    assert made["interval_basis"] == "bootstrap over whole rungs, 20 draws"
    assert made["coefficients"]["E"] == pytest.approx(TRUTH.E, rel=0.05)
    assert made["valid"] == {"params": [1000, 100_000], "tokens": [100_000, 6_400_000]}


@pytest.mark.slow
def test_kaplans_law_and_another_confidence(sdsl, tmp_path):
    path = own_runs(tmp_path / "runs.csv")
    status, out, _ = sdsl(
        "fit",
        "loss",
        "--csv",
        path,
        *FOREIGN,
        "--law",
        "kaplan",
        "--confidence",
        ".8",
        *QUICK,
        "--json",
    )
    made = json.loads(out)
    assert status == 0
    assert made["law"] == "kaplan"
    assert set(made["interval_80"]) == {"N_c", "D_c", "alpha_N", "alpha_D"}


def test_rows_of_too_many_epochs_are_left_out_and_said(sdsl, tmp_path):
    path = own_runs(tmp_path / "runs.csv")
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join(
            [
                lines[0] + ",epochs",
                *(f"{line},{9 if i < 3 else 1}" for i, line in enumerate(lines[1:])),
            ]
        )
    )
    status, out, _ = sdsl("fit", "loss", "--csv", path, *FOREIGN, *QUICK, "--json")
    assert status == 0
    assert json.loads(out)["warnings"][0].startswith(
        "3 of 20 rows are left out: they saw their text more than 4 times"
    )


@pytest.mark.release
def test_records_of_pairs_to_a_prediction(sdsl, records):
    """From two tables to a draft size, end to end; and any of the laws can be asked for."""
    status, out, _ = sdsl("fit", "loss", "--csv", records / "models.csv", *QUICK, "--json")
    assert status == 0
    Path("loss.json").write_text(out)
    status, out, _ = sdsl(
        "fit", "acceptance", "--csv", records / "acceptance.csv", *QUICK, "--json"
    )
    assert status == 0
    Path("acceptance.json").write_text(out)
    laws = json.loads(out)["acceptance_laws"]
    assert len(laws) == 6
    assert all(set(law) >= KEYS | {"left_out_rmse"} for law in laws)
    errors = [law["left_out_rmse"] for law in laws]
    assert errors == sorted(errors)
    assert any("of 2 values of domain only prose is fitted" in w for w in laws[0]["warnings"])
    question = (
        "--target-params",
        "100k",
        "--draft-tokens",
        "6M",
        "--target-tokens",
        "6M",
        "--json",
    )
    chosen = {}
    for name in ("", "#" + laws[0]["law"], "#" + laws[-1]["law"]):
        law = ("--loss-law", "loss.json", "--acceptance-law", f"acceptance.json{name}")
        status, out, err = sdsl("predict", *law, *question)
        assert (status, err) == (0, "")
        chosen[name] = json.loads(out)
    assert chosen[""]["acceptance"] == chosen["#" + laws[0]["law"]]["acceptance"]
    assert chosen[""]["acceptance"] != chosen["#" + laws[-1]["law"]]["acceptance"]
    assert "taken as independent" in chosen[""]["interval_basis"]


@pytest.mark.slow
def test_models_may_lie_elsewhere_under_another_name(sdsl, records, tmp_path):
    (records / "models.csv").rename(tmp_path / "trained.csv")
    arguments = ("fit", "acceptance", "--csv", records / "acceptance.csv", *QUICK)
    status, _, err = sdsl(*arguments)
    assert status == 2
    assert "give the records of the models with --models" in err
    assert err.count("\n") == 1
    status, out, _ = sdsl(*arguments, "--models", tmp_path / "trained.csv")
    assert status == 0
    assert "Acceptance laws fitted to 32 pairs" in out
    # A file that holds half of the models: what is missing is said.
    lines = (tmp_path / "trained.csv").read_text().splitlines()
    (tmp_path / "trained.csv").write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    status, out, _ = sdsl(*arguments, "--models", tmp_path / "trained.csv")
    assert status == 0
    assert "2 of 32 pairs are left out" in out


@pytest.mark.slow
def test_a_flat_table_of_pairs(sdsl, tmp_path):
    status, out, _ = sdsl("fit", "acceptance", "--csv", own_pairs(tmp_path / "pairs.csv"), *QUICK)
    assert status == 0
    for words in (
        "error on left-out drafts",
        "this table says nothing about tokens_slope",
        "logit_gap",
    ):
        assert words in out


COLUMNS = "it has n, d, nll, run"


@pytest.mark.parametrize(
    ("lines", "arguments", "message"),
    [
        ({}, [], f"lacks the columns params_nonembedding, loss_nats, train_tokens; {COLUMNS}"),
        ({}, ["--params-column", "n"], f"lacks the columns loss_nats, train_tokens; {COLUMNS}"),
        ({}, [*FOREIGN, "--rung-column", "trunk"], f"lacks the column trunk; {COLUMNS}"),
        (
            {5: "1000,6400000,,1000"},
            FOREIGN,
            "line 5 holds nothing as nll; it must be a positive number",
        ),
        (
            {5: "1000,-64,2.5,1000"},
            FOREIGN,
            "line 5 holds '-64' as d; it must be a positive number",
        ),
        (
            {6: "many,64,2.5,1000"},
            FOREIGN,
            "line 6 holds 'many' as n; it must be a positive number",
        ),
        ({6: "inf,64,2.5,1000"}, FOREIGN, "line 6 holds 'inf' as n"),
        (
            {},
            [*FOREIGN, "--bootstrap", "5"],
            "--bootstrap is 5; an interval needs at least 20 draws",
        ),
        ({}, [*FOREIGN, "--confidence", "2"], "--confidence is 2.0; it must lie in (0, 1)"),
        ({}, [*FOREIGN, "--huber-delta", "-1"], "--huber-delta is -1.0; it must be positive"),
        ({}, [*FOREIGN, "--starts", "0"], "--starts is 0; it must be at least 1"),
        ({}, [*FOREIGN, "--seed", "-1"], "--seed is -1; it must not be negative"),
        (
            {},
            [*FOREIGN, "--domain", "x"],
            "--domain can only be given to sdsl fit acceptance, not to sdsl fit loss",
        ),
    ],
)
def test_wrong_losses_are_one_sentence_and_status_two(sdsl, tmp_path, lines, arguments, message):
    status, out, err = sdsl(
        "fit", "loss", "--csv", own_runs(tmp_path / "runs.csv", lines), *arguments
    )
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("lines", "arguments", "message"),
    [
        (
            {1: "draft_params,draft_loss,target_params,target_loss,acc,draft_id"},
            [],
            "lacks the column alpha; it has draft_params",
        ),
        (
            {3: "1000,2.6,100000,1.9,1.5,x"},
            [],
            "line 3 holds '1.5' as alpha; it must be a number in [0, 1]",
        ),
        ({3: "1000,2.6,100000,,.5,x"}, [], "line 3 holds nothing as target_loss"),
        ({}, ["--domain", "prose"], "has no column domain, so that no domain can be chosen"),
        (
            {},
            ["--models", "models.csv"],
            "does not name its models by draft_id and target_id; leave out --models",
        ),
        (
            {},
            ["--law", "kaplan", "--resample", "rows"],
            "--law, --resample can only be given to sdsl fit loss",
        ),
        ({}, ["--huber-delta", "0"], "--huber-delta is 0.0; it must be positive"),
    ],
)
def test_wrong_pairs_are_one_sentence_and_status_two(sdsl, tmp_path, lines, arguments, message):
    status, out, err = sdsl(
        "fit", "acceptance", "--csv", own_pairs(tmp_path / "pairs.csv", lines), *arguments
    )
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--estimator", "live"],
            "holds no rows of the estimator live; it has teacher_forced_samples",
        ),
        (["--domain", "law"], "holds no rows with the domain law; it has prose, code"),
        (["--temperature", ".3"], "holds no rows with the temperature 0.3; it has 1.0"),
        (["--models", "nowhere.csv"], "nowhere.csv does not exist"),
    ],
)
def test_records_that_do_not_hold_what_is_asked(sdsl, records, arguments, message):
    status, out, err = sdsl("fit", "acceptance", "--csv", records / "acceptance.csv", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("what", ["loss", "acceptance"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read (No such file"),
        ("", "is empty"),
        ("n,d,nll\n", "holds no rows"),
        (
            "a,b\n1,2,3\n4\n5,6,7,8\n",
            "line 2 holds 3 cells, more cells than columns (line 1 names 2)",
        ),
    ],
)
def test_files_that_hold_no_table(sdsl, tmp_path, what, text, message):
    path = tmp_path / "table.csv"
    if text is not None:
        path.write_text(text)
    status, out, err = sdsl("fit", what, "--csv", path)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("keep", "words"), [(5, "has 5 models"), ("one size", "different sizes: 1")]
)
def test_too_little_for_a_loss_law(sdsl, tmp_path, keep, words):
    path = own_runs(tmp_path / "runs.csv")
    lines = path.read_text().splitlines()
    rows = lines[1:6] if keep == 5 else 2 * [line for line in lines if line.startswith("1000,")]
    path.write_text("\n".join([lines[0], *rows]))
    status, _, err = sdsl("fit", "loss", "--csv", path, *FOREIGN)
    assert status == 2
    assert "needs at least 6 models, 2 sizes and 2 budgets" in err
    assert words in err


def fitted(sdsl, *arguments):
    """Warnings and coefficients of a loss law."""
    status, out, err = sdsl("fit", "loss", *arguments, *QUICK, "--json")
    assert (status, err) == (0, "")
    answer = json.loads(out)
    return answer["warnings"], answer["coefficients"]


def rewritten(path: Path, change) -> Path:
    """A table whose rows are changed, each a list of its cells."""
    header, *rows = path.read_text().splitlines()
    path.write_text(
        "\n".join([header, *(",".join(change(i, row.split(","))) for i, row in enumerate(rows))])
        + "\n"
    )
    return path


def test_tables_of_other_units_are_read_as_the_same(tmp_path):
    """Suffixes, FLOPs instead of tokens, bits, perplexities, semicolons and a separator at the end of each row."""
    path = own_runs(tmp_path / "runs.csv")
    plain = path.read_text()

    def read(unit="nats", flops=""):
        table = read_loss_table(path, "n", "d", "nll", "", 4.0, flops, Choice(loss_unit=unit)).table
        path.write_text(plain)
        return [pytest.approx(column) for column in table]

    expected = [column.expected for column in read()]
    for unit, convert in (("bits", lambda x: x / np.log(2)), ("perplexity", np.exp)):
        rewritten(
            path,
            lambda i, c, f=convert: [
                f"{float(c[0]) / 1e3!r}k",
                c[1],
                repr(float(f(float(c[2])))),
                c[3],
            ],
        )
        assert expected == read(unit)
    path.write_text(plain.replace("\n", ";\n").replace("run;", "run").replace(",", ";"))
    assert expected == read()
    rewritten(path, lambda i, c: [c[0], repr(6.0 * float(c[0]) * float(c[1])), c[2], c[3]])
    assert expected == read(flops="d")
    rewritten(path, lambda i, c: [*c[:2], "0.9", c[3]])
    with pytest.raises(SdslError, match=r"line 2 holds 0\.9 as nll; a perplexity is above 1"):
        read("perplexity")


def test_rows_by_where_and_rows_that_lack_a_value(sdsl, tmp_path):
    path = own_runs(tmp_path / "runs.csv", {5: "1000,6400000,,1000", 9: "3000,6400000,NA,3000"})
    arguments = ("--csv", path, *FOREIGN, "--skip-incomplete", "--where", "run==3000 or n > 1k")
    warnings, _ = fitted(sdsl, *arguments)
    assert warnings[:2] == [
        "16 of 20 rows are fitted, those with run==3000 or n > 1k",
        "1 of 16 rows are left out: values are missing in line 9",
    ]


def test_a_filter_is_no_override(sdsl, tmp_path):
    """What looks like a setting of a study belongs to the option before it."""
    path = own_runs(tmp_path / "runs.csv")
    path.write_text(path.read_text().replace("run", "seed", 1))
    for text in ("seed==7", "d.d==7"):
        status, _, err = sdsl("fit", "loss", "--csv", path, *FOREIGN, "--where", text)
        assert status == 2
        assert "--where" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--params-column", "n", "--tokens-column", "n"],
            "--params-column and --tokens-column are both n",
        ),
        (
            ["--params-column", "n", "--loss-column", "n"],
            "--params-column and --loss-column are both n",
        ),
        ([*FOREIGN, "--flops-column", "run"], "give either --flops-column or --tokens-column"),
        ([*FOREIGN, "--loss-unit", "perplexity", "--where", "d < 10"], "keeps none of the 20 rows"),
    ],
)
def test_columns_that_contradict_each_other(sdsl, tmp_path, arguments, message):
    status, _, err = sdsl("fit", "loss", "--csv", own_runs(tmp_path / "runs.csv"), *arguments)
    assert status == 2
    assert message in err


def test_rows_far_from_the_law_are_named(sdsl, tmp_path):
    path = own_runs(
        tmp_path / "runs.csv", {4: "1000,1600000,9.5,1000", 17: "30000,6400000,8.1,30000"}
    )
    warnings, found = fitted(sdsl, "--csv", path, *FOREIGN)
    assert any(
        "2 of 20 rows lie far from the law" in w and w.endswith("lines 4 and 17") for w in warnings
    )
    assert found["E"] == pytest.approx(TRUTH.E, rel=0.05)


def test_temperatures_are_compared_as_numbers(sdsl, tmp_path):
    path = own_pairs(tmp_path / "pairs.csv")
    header, *rows = path.read_text().splitlines()
    cells = ["1.0" if i % 2 else "1" for i in range(16)]
    lines = [f"{row},{t}" for row, t in zip(rows, cells)] + [
        f"{row},{t}" for row, t in zip(rows[:12], ["0.7"] * 12)
    ]
    path.write_text("\n".join([header + ",temperature", *lines, f"{rows[0]},greedy"]) + "\n")
    for temperature, count in ((1.0, 16), (0.7, 12)):
        read = read_pair_table(path, None, "teacher_forced_samples", None, temperature)
        assert len(read.table.alpha) == count
    status, _, err = sdsl("fit", "acceptance", "--csv", path, "--temperature", "0.3")
    assert status == 2
    assert "holds no rows with the temperature 0.3; it has 1, 0.7, greedy" in err


def test_acceptance_in_per_cent_is_recognised(sdsl, tmp_path):
    path = own_pairs(tmp_path / "pairs.csv", {3: "1000,2.6,100000,1.9,61.5,x"})
    status, _, err = sdsl("fit", "acceptance", "--csv", path)
    assert status == 2
    assert (
        "line 3 holds '61.5' as alpha; it must be a number in [0, 1]; write it as a share: 0.615"
        in err
    )


@pytest.mark.parametrize(
    ("column", "unit", "words"),
    [
        ("val_ppl", "nats", "says perplexity, and it is read as nats; --loss-unit perplexity"),
        ("eval/bpb", "nats", "says bits per byte, and it is read as nats; multiply"),
        ("loss (nats)", "bits", "says nats, and it is read as bits"),
        ("loss_8bit", "nats", None),
        ("bpb", "bits", None),
    ],
)
def test_the_name_of_the_column_of_losses_states_a_unit(tmp_path, column, unit, words):
    path = own_runs(tmp_path / "runs.csv", {1: f"n,d,{column},run"})
    notes = read_loss_table(path, "n", "d", column, "", 4.0, "", Choice(loss_unit=unit)).notes
    assert [words in note for note in notes] == [True] * (words is not None)


def test_rows_that_name_no_run_are_not_one_run(tmp_path):
    path = own_runs(tmp_path / "runs.csv", {3: "1000,400000,3.5,", 5: "1000,6400000,3.1,NaN"})
    with pytest.raises(
        SdslError, match="line 3 names no run as run; --skip-incomplete leaves such rows out"
    ):
        read_loss_table(path, "n", "d", "nll", "run", 4.0)
    read = read_loss_table(path, "n", "d", "nll", "run", 4.0, "", Choice(skip_incomplete=True))
    assert read.notes == ["2 of 20 rows are left out: values are missing in lines 3 and 5"]


def test_pairs_that_lack_what_is_optional_are_left_out(tmp_path):
    path = own_pairs(tmp_path / "pairs.csv")
    cells = path.read_text().splitlines()[2].split(",")
    own_pairs(path, {3: ",".join([*cells[:5], ""])})
    with pytest.raises(SdslError, match="line 3 names no run as draft_id; --skip-incomplete"):
        read_pair_table(path, None, "", None, None)
    assert (
        "left out: values are missing in line 3"
        in read_pair_table(path, None, "", None, None, Choice(skip_incomplete=True)).notes[0]
    )


@pytest.mark.slow
def test_what_all_acceptance_laws_share_is_printed_once(sdsl, tmp_path):
    path = own_pairs(tmp_path / "pairs.csv")
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    status, out, _ = sdsl("fit", "acceptance", "--csv", path, *QUICK)
    assert status == 0
    assert out.count("rows are equal to another in both models and α") == 1


LENGTHS = """draft,domain,gamma,acceptance_length,topk
a,chat,1,1.70,1
a,chat,2,2.12,1
a,chat,4,2.52,1
b,chat,1,1.60,1
b,chat,2,1.92,1
b,chat,4,2.20,1
b,code,1,1.80,1
b,code,2,2.38,1
b,code,4,3.12,1
b,code,4,3.50,4
"""


@pytest.mark.slow
def test_lengths_of_a_published_table(sdsl, tmp_path):
    """It prints what it left out and how far each law misses."""
    path = tmp_path / "published.csv"
    path.write_text(LENGTHS, "utf-8")
    status, out, err = sdsl("fit", "lengths", "--csv", path)
    assert (status, err) == (0, "")
    assert "every draft left out in turn" in out
    assert "note: 1 rows draft a tree" in out
    assert "Worst by position: " in out


def test_domains_of_a_published_table(sdsl, tmp_path):
    """Levels as a table and as JSON; three rows are too few to leave a draft of two out."""
    path = tmp_path / "published.csv"
    path.write_text(LENGTHS, "utf-8")
    status, out, err = sdsl("fit", "domains", "--csv", path, "--where", "gamma == 4")
    assert (status, err) == (0, "")
    assert "note: 1 rows draft a tree" in out
    assert re.search(r"code .* 0\.\d+ *│\n", out)
    status, out, _ = sdsl("fit", "domains", "--csv", path, "--json")
    assert [row["domain"] for row in json.loads(out)["domains"]] == ["code", "chat"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lengths", "--given", "0"), "--given is 0; it must be at least 1"),
        (("domains", "--given", "2"), "--given can only be given to sdsl fit lengths"),
        (("loss", "--leave-out", "x"), "--leave-out can only be given to sdsl fit lengths"),
        (("lengths", "--domain", "x"), "can only be given to sdsl fit loss or acceptance"),
        (("domains", "--bootstrap", "50"), "can only be given to sdsl fit loss or acceptance"),
        (("lengths", "--where", "gamma == 9"), "keeps none of the 10 rows"),
    ],
)
def test_wrong_lengths_are_one_sentence_and_status_two(sdsl, tmp_path, arguments, message):
    path = tmp_path / "published.csv"
    path.write_text(LENGTHS, "utf-8")
    status, out, err = sdsl("fit", arguments[0], "--csv", path, *arguments[1:])
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
