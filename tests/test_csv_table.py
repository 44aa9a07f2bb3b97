"""Awkward tables: each is read as what it says, or refused in one sentence that names its true line."""

import gzip

import numpy as np
import pytest

from sdsl_jax.csv_table import frequent_values, read_csv
from sdsl_jax.errors import SdslError

HEADER = "params,tokens,loss\n"
ROWS = "40000000,1000000000,3.6\n100000000,5000000000,2.94\n"
PLAIN = HEADER + ROWS


def read(tmp_path, content, **options):
    path = tmp_path / "t.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_csv(path, **options)


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        gzip.compress(PLAIN.encode(), mtime=0),
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace(",", "|"),
        "sep=;\n" + PLAIN.replace(",", ";"),
        PLAIN.replace(",", " , ").replace("params", " params "),
        HEADER + ROWS.replace("\n", ",\n"),
        HEADER + ROWS.replace("\n", ",,\n"),
        "params,tokens,loss,,\n" + ROWS.replace("\n", ",,\n") + ",,,,\n",
        "\n\n# made by us\n" + HEADER + "\n , \n" + ROWS + "\n",
        ",params,tokens,loss\n"
        + "".join(f"{i},{row}\n" for i, row in enumerate(ROWS.splitlines())),
        HEADER + '"40,000,000","1,000,000,000",3.6\n100M,5B,2.94\n',
        HEADER + "4e7,1e9,3.6\n100_000_000,5.0 B,2.94",
        '"params","tokens","loss"\n' + ROWS,
        HEADER + ROWS + "# 1e9,1e9,9\n# end\n",
    ],
)
def test_the_same_table_however_it_is_written(tmp_path, content):
    table = read(tmp_path, content)
    assert table.counts("params").tolist() == [4e7, 1e8]
    assert table.counts("tokens").tolist() == [1e9, 5e9]
    assert table.numbers("loss").tolist() == [3.6, 2.94]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        (HEADER, "holds no rows below its header"),
        ("# nothing\n", "holds only comments"),
        (ROWS, "has no header: line 1, the first, holds 40000000, 1000000000, 3.6"),
        ("# params,tokens,loss\n" + ROWS, "has no header: line 2"),
        (HEADER + "0," + ROWS, "line 2 holds 4 cells, more cells than columns (line 1 names 3)"),
        (HEADER + ROWS + "40,000,000,1e9,3\n", "line 4 holds 5 cells, more cells than columns"),
        (
            "params,tokens,loss,\n0," + ROWS,
            "column 4 has no name in line 1, but line 2 holds '3.6' in it",
        ),
        ("Table 3,,\n" + PLAIN, "column 2 has no name in line 1, but line 2 holds 'tokens' in it"),
        ("Table 3\n" + PLAIN, "line 2 holds 3 cells, more cells than columns (line 1 names 1)"),
        (HEADER + 'x,"1,2\n3,4,5\n', "the row of line 2 cannot be parsed (a quote is not closed)"),
        (HEADER + '"a"b,1,2\n', "the row of line 2 cannot be parsed"),
        (
            '"params" "loss"\n"1" 2\n',
            "what follows a quoted cell is none of the separators commas, semicolons",
        ),
        (HEADER + "1" * 200_000 + ",1,2\n", "the row of line 2 cannot be parsed (field larger"),
        (PLAIN + "1,\0,2\n", "line 4 holds a NUL character"),
        (PLAIN.encode("utf-16-le"), "UTF-16 without a byte-order mark"),
        (PLAIN.replace("loss", "größe").encode("latin1"), "is not valid UTF-8 (byte 16 is 0xf6"),
        ('[{"params": 1}]', "is JSON"),
        ("<table>", "is HTML or XML"),
        ("| params | tokens |\n|---|---|\n| 1 | 2 |\n", "is a Markdown table"),
        (b"PK\x03\x04" + b"\0" * 90, "an Excel workbook"),
        (b"PAR1" + b"\0" * 90, "is a Parquet file"),
    ],
)
def test_what_is_no_table_is_one_sentence(tmp_path, content, message):
    with pytest.raises(SdslError) as caught:
        read(tmp_path, content)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER + "1e9,1e9,3\n\n\n1e9,x,3\n", "line 5 holds 'x' as tokens"),
        (
            'note,params,tokens,loss\n"a\nb",1e9,1e9,3\n"a\n\nb",1e9,x,3\n',
            "line 4 holds 'x' as tokens",
        ),
        (
            HEADER + "1e9,1e9\n",
            "line 2 holds nothing as loss; it must be a positive number; --skip-incomplete",
        ),
        (
            HEADER + "NaN,1e9,3\n",
            "line 2 holds 'NaN' as params; it must be a positive number; --skip-incomplete",
        ),
        (HEADER + "1e9,1e9,inf\n", "line 2 holds 'inf' as loss"),
        (HEADER + "1e400,1e9,3\n", "line 2 holds '1e400' as params"),
        (HEADER + "-1e9,1e9,3\n", "line 2 holds '-1e9' as params"),
        (HEADER + "1e9,0,3\n", "line 2 holds '0' as tokens"),
        (
            HEADER + "1e9,6e22,3\n",
            "line 2 holds '6e22' as tokens; it must be a positive number, and at most 1e+18",
        ),
        (
            "params;tokens;loss\n1.300.000;1e9;3\n",
            "it must be a positive number; write it without separators, 1300000",
        ),
        (HEADER + "1\u00a0300,1e9,3\n", "write it without separators, 1300"),
        (HEADER + "1'300,1e9,3\n", 'line 2 holds "1\'300" as params'),
        (
            HEADER + "1e9,1e9,3\n1e9,2e9,2.9\n2e9,1e9,inf\n",
            "line 4 holds 'inf' as loss; it must be a positive number; --where 'loss != \"inf\"' leaves such rows out",
        ),
        (HEADER + "1e9,1e9,3*\n", "line 2 holds '3*' as loss; it must be a positive number."),
        (HEADER + "1e9,1e9,True\n", "line 2 holds 'True' as loss"),
        (HEADER + "$40,1e9,3\n", "line 2 holds '$40' as params"),
        (HEADER + "1e9,1e9,3.2B\n", "line 2 holds '3.2B' as loss"),
        (
            HEADER + '1e9,1e9,"3,604"\n',
            "line 2 holds '3,604' as loss; it must be a positive number; write a decimal point",
        ),
        ("params;tokens;loss\n1e9;1e9;3,604\n", "write a decimal point, as in 3.604"),
        ("params;tokens;loss\n1,300;1e9;3\n", "line 2 holds '1,300' as params"),
        (
            "a;b\n1;2\n",
            "lacks the columns params, tokens, loss; it has a, b, its cells separated by semicolons",
        ),
        (
            "params tokens loss\n1 2 3\n",
            "it has 'params tokens loss'; separate its columns by commas",
        ),
        ("params,params ,tokens,loss\n1e9,1e8,1e9,3\n", "has 2 columns called params"),
    ],
)
def test_a_cell_or_column_that_cannot_be_used_is_named(tmp_path, content, message):
    table = read(tmp_path, content)

    def columns():
        table.require_columns("params", "tokens", "loss")
        return table.counts("params"), table.counts("tokens"), table.numbers("loss")

    with pytest.raises(SdslError) as caught:
        columns()
    assert message in str(caught.value)


def test_a_unit_in_the_name_of_a_column(tmp_path):
    for name in ("params_in_millions", "size (billions)", "tokens_bn"):
        with pytest.raises(SdslError, match="states a unit"):
            read(tmp_path, f"{name},x\n40,1\n").counts(name)
    table = read(tmp_path, "params (M),tokens_B,size_b\n40,1B,4e9\n")
    with pytest.raises(
        SdslError, match=r"'params \(M\)' states a unit \(M\), .* such as 40, do not; write 40M"
    ):
        table.counts("params (M)")
    assert table.counts("tokens_B").tolist() == [1e9]
    assert table.counts("size_b").tolist() == [4e9]


def test_a_heading_over_two_lines_is_one_name(tmp_path):
    table = read(tmp_path, 'params,"loss\n(nats)"\n1e9,3\n')
    assert table.numbers("loss (nats)").tolist() == [3.0]
    assert table.lines == [3]


def test_rows_that_begin_with_a_hash_are_said_to_be_comments_unless_all_do(tmp_path):
    table = read(tmp_path, "model,loss\n#1,3\nb,2\n")
    assert table.column("model") == ["b"]
    assert table.notes == ("what begins with # is left out as a comment: line 2",)
    assert read(tmp_path, "model,loss\n#1,3\n#2,2\n").column("model") == ["#1", "#2"]


def test_shares_in_per_cent(tmp_path):
    for cell, share in (("80", "0.8"), ("70.7", "0.707"), ("80%", "0.8")):
        with pytest.raises(
            SdslError, match=rf"it must be a number in \[0, 1\]; write it as a share: {share}"
        ):
            read(tmp_path, f"alpha,x\n{cell},1\n").shares("alpha")


def test_values_are_counted_as_numbers_where_they_are():
    assert frequent_values(["greedy", "1", "1.0", "", "0.7", "NA"]) == ["1", "greedy", "0.7"]


def test_random_bytes_are_a_table_or_a_sentence(tmp_path):
    random = np.random.default_rng(0)
    plain = np.frombuffer(PLAIN.encode(), np.uint8)
    for _ in range(200):
        content = plain.copy()
        content[random.integers(0, len(content), 3)] = random.choice(list(b'",;\n\r\0#x\xff1.'), 3)
        try:
            table = read(tmp_path, content[: random.integers(1, len(content) + 1)].tobytes())
        except SdslError as error:
            sentences = str(error)
        else:
            sentences = "".join(table.notes)
            assert all(len(row) == len(table.names) for row in table.rows)
        assert "\n" not in sentences
