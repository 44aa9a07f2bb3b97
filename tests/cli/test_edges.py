"""The command where it is interrupted, and where its output is full, closed, or cannot show α."""

import io
import os
import signal
import subprocess
import sys
import time

import pytest
from rich.table import Table

from sdsl_jax import cli
from sdsl_jax.cli import streams, terminal

# Stands for the subcommands, so that neither tyro nor jax is loaded; what follows it is run in
# their place.
CHILD = """
import atexit, signal, sys, threading, time, types
from sdsl_jax.cli import interruption, main
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
interruption_module = sys.modules["sdsl_jax.cli.interruption"]
interruption_module._GRACE_SECONDS = 0.3
sys.argv = ["sdsl", "train"]

def ready():
    print("ready", flush=True)

def wait():
    ready()
    time.sleep(30)

commands = types.ModuleType("sdsl_jax.cli.commands")
sys.modules["sdsl_jax.cli.commands"] = commands
"""

WAITS = "commands.run = lambda arguments: wait()"
SWALLOWS = """
def run(arguments):
    ready()
    while True:
        try:
            time.sleep(30)
        except BaseException:
            pass
commands.run = run
"""
CONVERTS = """
def run(arguments):
    try:
        wait()
    except KeyboardInterrupt:
        raise ImportError("a module in C failed to import")
commands.run = run
"""
THREADS = """
def run(arguments):
    def fail():
        ended.wait()
        raise RuntimeError("a thread of a library")
    ended = threading.Event()
    thread = threading.Thread(target=fail)
    thread.start()
    try:
        wait()
    finally:
        ended.set()
        thread.join()
commands.run = run
"""
BLOCKS_AT_EXIT = """
def run(arguments):
    atexit.register(wait)
commands.run = run
"""
THREAD_AT_EXIT = """
def run(arguments):
    threading.Thread(target=wait).start()
commands.run = run
"""
CONTINUES = "the same command continues where it stood.\n"


def child(code, *, signals):
    """Status and standard error of a command that gets some signals once it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{CHILD}\n{code}\nmain()"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"SDSL_NO_HUGE_PAGES": "1"},
    )
    assert process.stdout.readline() == "ready\n"
    for number in signals:
        process.send_signal(number)
        time.sleep(0.05)  # signals of one kind that wait become one
    _, err = process.communicate(timeout=20)
    return process.returncode, err


@pytest.mark.parametrize(
    "code",
    [WAITS, SWALLOWS, CONVERTS, THREADS, BLOCKS_AT_EXIT, THREAD_AT_EXIT],
    ids=["waits", "swallows", "converts", "threads", "at exit", "thread at exit"],
)
def test_ctrl_c_is_one_sentence_whatever_is_going_on(code):
    assert child(code, signals=[signal.SIGINT]) == (130, f"sdsl: interrupted; {CONTINUES}")


def test_a_second_ctrl_c_ends_at_once():
    long = "interruption_module._GRACE_SECONDS = 60\n"
    assert child(long + SWALLOWS, signals=[signal.SIGINT, signal.SIGINT]) == (
        130,
        f"sdsl: interrupted; {CONTINUES}",
    )


@pytest.mark.parametrize(
    "before", ["", "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"], ids=["alone", "in background"]
)
def test_sigterm_silences_threads_too(before):
    assert child(before + THREADS, signals=[signal.SIGTERM]) == (
        143,
        f"sdsl: ended by SIGTERM; {CONTINUES}",
    )


def test_ctrl_c_that_is_ignored_stays_ignored():
    """As a shell has it for what runs in its background."""
    code = (
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "def run(arguments):\n    ready()\n    time.sleep(0.3)\n    print('done')\ncommands.run = run"
    )
    assert child(code, signals=[signal.SIGINT]) == (0, "")


def test_ctrl_c_after_a_command_is_the_callers():
    code = "commands.run = lambda arguments: None\nmain()\ntry:\n    wait()\nexcept KeyboardInterrupt:\n    sys.exit(5)"
    assert child(code, signals=[signal.SIGINT]) == (5, "")


def shell(command):
    """Status, standard output and standard error of `sdsl`, with redirections."""
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -m sdsl_jax.cli {command}'],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


FULL = "sdsl: error: cannot write to standard output (No space left on device).\n"
CLOSED = "sdsl: error: standard output is closed; to do without it, redirect it to /dev/null.\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a full device is one of Linux")
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("--help > /dev/full", (2, "", FULL)),
        ("--help >&-", (2, "", CLOSED)),
        ("calibrate --batch x 2> /dev/full", (2, "", "")),
        ("calibrate --batch x 2>&-", (2, "", "")),
        ("--help | true; exit ${PIPESTATUS[0]}", (141, "", "")),
    ],
)
def test_output_that_cannot_be_written_is_a_sentence(command, expected):
    assert shell(command) == expected


@pytest.fixture
def run(monkeypatch):
    """Runs `sdsl` in this process on an output of some encoding."""

    def run_(encoding, *arguments, raw=None):
        raw = raw or io.BytesIO()
        monkeypatch.setattr(sys, "argv", ["sdsl", *arguments])
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        cli.main()
        sys.stdout.flush()
        return raw.getvalue().decode(encoding)

    return run_


def test_letters_that_a_terminal_cannot_show_are_written_out(run):
    arguments = ("lookahead", "--acceptance", ".8", "--cost", ".1")
    unicode = run("utf-8", *arguments)
    assert "acceptance α = 0.800" in unicode
    assert "2.470×" in unicode
    assert run("ascii", *arguments) == streams.plain(unicode)
    latin = run("latin-1", *arguments)
    assert "acceptance alpha = 0.800" in latin


def test_progress_goes_on_without_a_standard_error(monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    discarded = []
    monkeypatch.setattr(streams, "discard", discarded.append)
    terminal.Terminal(terminal.error_console()).note("a note")
    assert 2 in discarded


def test_tables_are_laid_out_in_the_letters_shown(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    table = Table()
    table.add_column("γ ± σ")
    table.add_column("N")
    table.add_row("α", "1")
    terminal.standard_console().print(table)
    sys.stdout.flush()
    lines = raw.getvalue().decode("ascii").splitlines()
    assert "| gamma +/- sigma | N |" in lines
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("γ* = 5–7 ± 1%", "gamma* = 5-7 +/- 1%"),
        ("N ≥ 1.2×10⁻³", "N >= 1.2x10^-^3"),
        ("┌─┐│└┴┘━┃", "+-+|+++-|"),
        ("café, 模型", "cafe, ??"),
    ],
)
def test_plain_letters(text, expected):
    assert streams.plain(text) == expected


def test_names_of_files_that_are_no_text_are_printed_as_they_are(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8"))
    streams.prepare()
    print("model-\udcff α", flush=True)
    assert raw.getvalue() == b"model-\xff \xce\xb1\n"
