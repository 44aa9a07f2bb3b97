"""Pages by address: what is read, and every limit, against servers of this process."""

import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sdsl_jax.errors import SdslError
from sdsl_jax.user_urls import fetch_text, is_url


class Pages(BaseHTTPRequestHandler):
    seen: list[str]

    def do_GET(self):
        self.seen.append(self.path)
        port = self.server.server_address[1]
        elsewhere = {
            "/same": "/metrics",
            "/other": f"http://localhost:{port}/metrics",
            "/file": "file:///etc/hostname",
        }
        if self.path in elsewhere:
            self.send_response(302)
            self.send_header("Location", elsewhere[self.path])
            self.end_headers()
        elif self.path == "/missing":
            self.send_error(404)
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            # Never silent for longer than a socket's own timeout.
            for _ in range(40):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"\xff" if self.path == "/latin" else "τ 1\n".encode())

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    Pages.seen = []
    made = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    made.daemon_threads = True
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{made.server_address[1]}"
    made.shutdown()
    made.server_close()


def test_an_address_without_a_path_gets_the_default_one(server):
    assert fetch_text(server, "/metrics") == ("τ 1\n", f"{server}/metrics")
    assert fetch_text(f"{server}/", "/metrics")[1] == f"{server}/metrics"
    assert fetch_text(f"{server}/own?x=1", "/metrics")[1] == f"{server}/own?x=1"
    assert Pages.seen[-1] == "/own?x=1"


def test_redirects_stay_on_the_host(server):
    assert fetch_text(f"{server}/same")[0] == "τ 1\n"
    seen = len(Pages.seen)
    for path in ("/other", "/file"):
        with pytest.raises(SdslError, match=r"(?i)redirect.* not (followed|allowed)"):
            fetch_text(f"{server}{path}")
    assert Pages.seen[seen:] == ["/other", "/file"]


@contextmanager
def within(seconds):
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def test_limits_hold_for_the_whole_answer(server):
    with pytest.raises(SdslError, match="holds more than 0 MB"):
        fetch_text(f"{server}/metrics", largest=3)
    # The page takes two seconds; the limit is a quarter of one.
    with within(1.5), pytest.raises(SdslError, match=r"did not answer in full within 0.25 seconds"):
        fetch_text(f"{server}/slow", seconds=0.25)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("{}/missing", "answers 404 Not Found"),
        ("{}/latin", r"is not valid UTF-8 \(byte 0\)"),
        ("http://127.0.0.1:1/x", r"cannot be read \(Connection refused\)"),
        ("http://127.0.0.1:99999/x", "cannot be read"),
        ("http://a b/", "cannot be read"),
        ("http://[::1/", "cannot be read"),
        ("ftp://host/x", "must begin with http:// or https://"),
        ("http:///x", "name a host"),
        ("http://me:secret@host/", "user name or password is not read"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(server, address, message):
    with pytest.raises(SdslError, match=message) as caught:
        fetch_text(address.format(server), "/metrics")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_address_is_no_path():
    assert is_url("http://host:8000")
    assert not is_url("logs/vllm.txt")
    assert not is_url(r"C:\logs\vllm.txt")
