import pytest

from sdsl_jax.csv_table import read_csv
from sdsl_jax.errors import SdslError
from sdsl_jax.row_filter import filtered


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "model,params,my loss,seed,temperature,a.b\nm0,125M,3.2,0,1.0,1\nm1,1.3B,2.8,1,greedy,1\nm2,1e9,,0,1,2\n"
        "m3,13B,diverged,0,0.7,\n"
    )
    return read_csv(path)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("params >= 1e9", "m1 m2 m3"),
        ("params==125M", "m0"),
        ("params > 1,000,000,000", "m1 m3"),
        ("1e8 < params <= 1e9", "m0 m2"),
        ("model == 'm1' or model == \"m2\"", "m1 m2"),
        ("not seed==0", "m1"),
        ("(seed == 0 and params < 1B) or model=='m3'", "m0 m3"),
        ("seed == 0 and (params < 1B or not model == 'm3')", "m0 m2"),
        ("NOT seed == 0 AND params > 1", "m1"),
        ("`my loss` != 'diverged' and `my loss` < 3", "m1"),
        ("`my loss` == ''", "m2"),
        ("temperature == 1", "m0 m2"),
        ("temperature != 'greedy'", "m0 m2 m3"),
        ("a.b==1", "m0 m1"),
        ("-1 < seed", "m0 m1 m2 m3"),
    ],
)
def test_rows(table, text, kept):
    rows, note = filtered(table, text)
    assert rows.column("model") == kept.split()
    assert note == f"{len(kept.split())} of 4 rows are fitted, those with {text}"
    assert rows.lines == [2 + int(name[1]) for name in kept.split()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = 0", "cannot be read at '= 0'"),
        ("seed == 0 && params > 1", "cannot be read at '&& params > 1'"),
        ("seed == 0; params > 1", "cannot be read at"),
        ("'unclosed == 1", "cannot be read at"),
        ("`` == 1", "cannot be read at"),
        ("seed == zero", "names zero, which is no column of"),
        ("__import__('os').system('true')", "names __import__, which is no column"),
        ("model.__class__ == 1", "names model.__class__, which is no column"),
        ("params", "has no comparison after 'params'"),
        ("params >", "lacks a column or a value at its end"),
        ("seed == and", "lacks a column or a value before 'and'"),
        ("(seed == 0", "lacks a closing parenthesis"),
        ("seed == 0)", "has no and or or before ')'"),
        ("seed == 0 seed == 1", "has no and or or before 'seed'"),
        ("(" * 500 + "seed == 0" + ")" * 500, "nested more than 50 deep"),
        ("not " * 5000 + "seed == 0", "nested more than 50 deep"),
        ("seed == 5", "keeps none of the 4 rows"),
        ("`my loss` < 3", "compares 'diverged' < '3' in line 5"),
    ],
)
def test_what_is_no_filter_is_one_sentence(table, text, message):
    with pytest.raises(SdslError, match=r"^--where ") as caught:
        filtered(table, text)
    assert message in str(caught.value)
