import inspect
import itertools
import re
import subprocess
import sys

import pytest

import sdsl_jax
from sdsl_jax.cli import commands
from sdsl_jax.cli.options import parameters

NAMES = [name for group in commands.GROUPS.values() for name in group]


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_the_overview_names_every_command_with_its_purpose(sdsl, arguments):
    status, out, err = sdsl(*arguments)
    assert (status, err) == (0, "")
    for group, purposes in commands.GROUPS.items():
        assert group in out
        for name, purpose in purposes.items():
            assert f"  {name:<10} {purpose}\n" in out
    assert max(map(len, out.splitlines())) <= 90


def test_every_command_is_there_and_explains_itself():
    assert len(set(NAMES)) == len(NAMES)
    for name in NAMES:
        assert inspect.getdoc(commands.load(name))


def test_help_is_wrapped_to_the_terminal(sdsl):
    status, out, _ = sdsl("lookahead", "--help")
    assert status == 0
    assert out.startswith("usage: sdsl lookahead")
    shown = [line.strip("│ ") for line in out.splitlines() if line.startswith("│")]
    paragraphs = [line for line in shown if line]
    # A line that ends early is followed by the next option, never by the rest of its sentence.
    cut = [a for a, b in itertools.pairwise(paragraphs) if len(a) < 30 and b[:1].islower()]
    assert not [line for line in cut if not line.startswith("-")]


def test_the_version(sdsl):
    assert sdsl("--version") == (0, f"sdsl_jax {sdsl_jax.__version__}\n", "")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mesure", "unknown command 'mesure'; did you mean measure?"),
        ("xyz", "unknown command 'xyz'; the commands are predict, lookahead,"),
        ("--seed", "unknown command '--seed'; the commands are"),
    ],
)
def test_an_unknown_command_is_one_sentence(sdsl, name, hint):
    status, out, err = sdsl(name)
    assert (status, out) == (2, "")
    assert err.startswith(f"sdsl: error: {hint}")
    assert err.count("\n") == 1


def test_the_overview_loads_neither_jax_nor_tyro():
    code = (
        "import sys; sys.argv = ['sdsl']; from sdsl_jax.cli import main; main(); "
        "assert not {'jax', 'tyro', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_no_default_of_nothing(sdsl, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    status, out, err = sdsl(name, "--help")
    assert (status, err) == (0, "")
    assert not re.findall(r"\(default: (?:None|False|''|)\)|\(required\) \(", out)


def test_every_option_is_explained():
    for name in NAMES:
        options = parameters(commands.load(name))
        unexplained = {key for key, option in options.items() if not option.help}
        assert unexplained <= {"overrides", "slurm"}


@pytest.mark.parametrize(
    ("name", "topics"),
    [
        ("codesign", ["target", "draft", "hardware", "workload", "objective", "law"]),
        ("measure", ["prompt", "decoding", "measurement", "checkpoint", "output"]),
        ("fit", ["table", "loss", "acceptance", "lengths", "estimation"]),
    ],
)
def test_help_shows_options_by_topic(sdsl, name, topics):
    _, out, _ = sdsl(name, "--help")
    assert re.findall(r"^\W+(\w+) options\W*$", out, re.MULTILINE) == topics


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lookahead", "--cost", "5%"), "--cost: '5%' is no number; write 0.05"),
        (("lookahead", "--cost", "cheap"), "--cost: 'cheap' is no number"),
        (("calibrate", "--threads", "abc"), "--threads: 'abc' is no whole number"),
        (("codesign", "--devices", "1.5"), "--devices: '1.5' is no whole number"),
        (("codesign", "--kv-share", "1,8"), "--kv-share: '1,8' is no number; give one value"),
        (
            ("measure", "--target", "t", "--draft", "d", "--top-k", "x"),
            "--top-k: 'x' is no whole number",
        ),
    ],
)
def test_what_is_no_number_is_said_in_plain_words(sdsl, arguments, message):
    status, out, err = sdsl(*arguments)
    assert (status, out) == (2, "")
    assert f"Error parsing {message} " in err
    assert not re.findall("instantiated|NoneType|literal|convert string", err)
