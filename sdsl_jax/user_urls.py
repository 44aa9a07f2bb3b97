"""Pages that users name by an address, read within limits of time and size."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.parse import urlsplit

from sdsl_jax.errors import SdslError, require

SECONDS = 10.0
LARGEST = 10 << 20


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to the host that the user named, and never from https to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        require(
            after.hostname == before.hostname and after.scheme in ("https", before.scheme),
            f"{req.full_url} redirects to {after.scheme}://{after.netloc}, which is not followed; give that address "
            "itself if you trust it.",
        )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def is_url(text: str) -> bool:
    """Whether a text is an address rather than the path of a file."""
    return "://" in text


def fetch_text(
    url: str, path: str = "", *, seconds: float = SECONDS, largest: int = LARGEST
) -> tuple[str, str]:
    """The text at an http or https address, by one GET.

    Args:
      url: The address.
      path: Path to read if the address has none, such as "/metrics".
      seconds: Time for everything: name lookup, redirects and all of the text.
      largest: Most bytes that are read.

    Returns:
      The text, and the address that was read.

    Raises:
      SdslError: The address is of another kind, nobody answers, the answer is an error or no
        UTF-8, redirects to another host, or exceeds a limit.
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname
    except ValueError:  # brackets of an IPv6 address
        known = None
    require(
        known,
        f"the address {url!r} cannot be read; it must begin with http:// or https:// and name a host.",
    )
    require(
        parts.username is None,
        "an address with a user name or password is not read; save the page to a file and give the file.",
    )
    if path and parts.path in ("", "/"):
        url = parts._replace(path=path).geturl()
    answer: list[bytes | Exception] = []

    def read() -> None:
        try:
            opener = urllib.request.build_opener(_SameHost)
            with opener.open(url, timeout=seconds) as page:
                answer.append(page.read(largest + 1))
        except Exception as error:
            answer.append(error)

    # A socket's own timeout starts again with every byte: a thread bounds the whole.
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(seconds)
    require(answer, f"{url} did not answer in full within {seconds:g} seconds.")
    data = answer[0]
    if isinstance(data, Exception):
        raise _reason(url, data, seconds) from None
    require(
        len(data) <= largest, f"{url} holds more than {largest >> 20} MB, the most that is read."
    )
    try:
        return data.decode(), url
    except UnicodeDecodeError as error:
        raise SdslError(f"{url} is not valid UTF-8 (byte {error.start}).") from None


def _reason(url: str, error: Exception, seconds: float) -> SdslError:
    if isinstance(error, SdslError):
        return error
    if isinstance(error, urllib.error.HTTPError):
        return SdslError(f"{url} answers {error.code} {error.reason}.")
    cause: Any = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError | socket.timeout):
        return SdslError(f"{url} did not answer in full within {seconds:g} seconds.")
    if isinstance(cause, OSError | HTTPException | ValueError | str):
        said = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        return SdslError(f"{url} cannot be read ({said.rstrip('.')}).")
    raise error
