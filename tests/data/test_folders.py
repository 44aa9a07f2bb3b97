import os

import pytest

from sdsl_jax.data.folders import kind_of, read_folder
from sdsl_jax.errors import SdslError

KINDS = (".txt", ".jsonl")


def names(folder, files):
    return [str(path.relative_to(folder)) for path in files]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", ".txt"),
        ("a.JSONL", ".jsonl"),
        ("a.jsonl.gz", ".jsonl"),
        ("a.b.TXT.Zst", ".txt"),
        ("a.gz", ""),
        ("a", ""),
    ],
)
def test_a_kind_is_the_end_of_the_name_below_compression(tmp_path, name, kind):
    assert kind_of(tmp_path / name) == kind


def test_what_is_left_out_is_counted_and_named(tmp_path):
    for name in (
        *("b.txt", "a.JSONL", "deep/a.txt"),
        *("c.jsonl.gz", "deep/d.txt.zst", ".hidden.txt", ".git/x.txt", ".git/y.txt"),
        *("1.md", "2.md", "3.md", "deep/4.md"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "round").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.txt")
    found = read_folder(tmp_path, KINDS, "corpus folder")
    assert names(tmp_path, found.files) == ["a.JSONL", "b.txt", "deep/a.txt"]
    assert found.note == (
        f"of the corpus folder {tmp_path}, 3 files are read; left out: 2 compressed (c.jsonl.gz, deep/d.txt.zst; name the file "
        "itself to read it), 2 hidden (.git/, .hidden.txt), 1 behind a symbolic link to a folder (round/), 1 neither file nor "
        "folder (pipe.txt), 4 of another kind (1.md, 2.md, 3.md, …)."
    )


def test_names_that_cannot_be_printed(tmp_path):
    for name in ("a.txt", "\udcff\n.md"):
        (tmp_path / name).write_text("x")
    assert read_folder(tmp_path, KINDS, "corpus folder").note.endswith(
        "left out: 1 of another kind (??.md)."
    )


def test_nothing_is_said_where_everything_is_read(tmp_path):
    hidden_above = tmp_path / ".data"
    hidden_above.mkdir()
    (hidden_above / "a.txt").write_text("x")
    (tmp_path / "link").symlink_to(hidden_above)  # the folder itself may be hidden, or a link
    for folder in (hidden_above, tmp_path / "link"):
        assert read_folder(folder, KINDS, "corpus folder") == ([folder / "a.txt"], "")


def test_a_folder_without_readable_files_says_what_is_in_it(tmp_path):
    (tmp_path / "a.jsonl.gz").write_text("x")
    with pytest.raises(
        SdslError,
        match=r"holds no file of the kinds \.txt, \.jsonl; left out: 1 compressed \(a\.jsonl\.gz",
    ):
        read_folder(tmp_path, KINDS, "corpus folder")


def test_a_file_that_is_gone_is_not_passed_over(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone")
    assert read_folder(tmp_path, KINDS, "corpus folder").files == [tmp_path / "a.txt"]


def test_a_folder_that_cannot_be_looked_into_stops_everything(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def locked(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(
        SdslError, match=r"the corpus folder .* cannot be read \(Permission denied\)"
    ):
        read_folder(tmp_path, KINDS, "corpus folder")
