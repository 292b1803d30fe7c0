"""Who may look at the live page, and who may wish for something.

On this machine alone (loopback) a page needs no token; there the Host header must name this
machine, so that no foreign page reaches it under a name of its own (DNS rebinding). Elsewhere a
token is needed: it stands in the first address, and then in a cookie. A wish (POST) also needs the
page's own secret and, where the browser says one, an Origin that is this server.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

COOKIE = "sweeps-token"
SECRET_HEADER = "X-Sweeps-Secret"
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Decides about each request.

    Args:
        host: address that the server listens on.
        needs_token: whether a token is needed even on loopback.

    Attributes:
        token: what a reader must show; None where none is needed.
        secret: what the page itself sends with a wish.
    """

    def __init__(self, host: str, needs_token: bool = False) -> None:
        self.is_local = is_loopback(host)
        needed = needs_token or not self.is_local
        self.token = secrets.token_urlsafe(24) if needed else None
        self.secret = secrets.token_urlsafe(24)

    def refusal(self, headers: Mapping[str, str], given: str | None) -> str | None:
        """Why a request is refused; None where it is not.

        Args:
            given: the token in the address.
        """
        if self.is_local and not _names_this_machine(headers.get("Host", "")):
            return "the Host header names another machine"
        if self.token is None:
            return None
        shown = given or _cookie(headers.get("Cookie", ""))
        if shown is None or not _same(shown, self.token):
            return "a token is needed: open the address that `sweeps serve` printed"
        return None

    def refusal_of_wish(self, headers: Mapping[str, str]) -> str | None:
        """Why a wish is refused beyond that; None where it is not."""
        origin = headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("Host"):
            return "a page of another origin may not ask for this"
        if not _same(headers.get(SECRET_HEADER, ""), self.secret):
            return "the page is older than this server: load it again"
        return None


def _names_this_machine(host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") else host
    return (name or host) in _LOOPBACK_NAMES


def _cookie(text: str) -> str | None:
    try:
        found = SimpleCookie(text).get(COOKIE)
    except CookieError:
        return None
    return None if found is None else found.value


def _same(shown: str, wanted: str) -> bool:
    """Whether two texts are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(shown.encode(), wanted.encode())
