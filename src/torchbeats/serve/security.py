"""Who may ask a server: a token, the names that it answers to, and pages of other sites."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from torchbeats.errors import RequestError, SettingsError

COOKIE = "torchbeats_token"
OPEN = ("/health",)  # says only that the server is there
_TOKEN = re.compile(r"[\x21-\x7e]+")


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's alone."""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def check_token(host: str, token: str | None, without: bool) -> None:
    """Raise a `SettingsError` where anybody could use a server.

    Args:
        host: that it listens on.
        token: that it asks for.
        without: the user has said that it is to ask for none.
    """
    if token is not None and not _TOKEN.fullmatch(token):
        raise SettingsError("A token is of letters, digits and signs of ASCII, without spaces.")
    if token is not None and without:
        raise SettingsError("A token and --no-token contradict each other; leave one out.")
    if token is None and not without and not is_loopback(host):
        raise SettingsError(
            f"At {host} others on the network could use the server: give it a --token (or TORCHBEATS_TOKEN), or say "
            "--no-token."
        )


@dataclass(frozen=True)
class Access:
    """Which requests are let in.

    Attributes:
        host: that the server listens on.
        token: that a request must bring; None for none.
        origins: sites whose pages may use the server; "*" for any.
    """

    host: str
    token: str | None = None
    origins: tuple[str, ...] = ()

    def check(self, path: str, query: str, headers: dict[str, str], asks_first: bool = False) -> None:
        """Raise a `RequestError` where a request is not let in.

        Args:
            path: of its URL.
            query: of its URL.
            headers: by their names in lower case.
            asks_first: a browser asks whether a site's page may send a request; it never has the token.
        """
        host = headers.get("host", "")
        # A site's name that is made to resolve to this machine would make its pages pages of this server.
        if is_loopback(self.host) and not is_loopback(_name(host)):
            raise RequestError(
                421, "wrong_host", f"This server answers to localhost and its addresses, not to {host[:100]!r}."
            )
        origin = headers.get("origin")
        if origin is not None and not self.allows(origin) and urlsplit(origin).netloc.lower() != host.lower():
            raise RequestError(
                403, "wrong_origin", "Pages of other sites may not use this server; --cors names those that may."
            )
        if self.token is None or path in OPEN or asks_first or self._is_known(self._brought(query, headers)):
            return
        raise RequestError(
            401,
            "wrong_token",
            "This server asks for its token: send it as Authorization: Bearer …; in a browser, open /?token=… once.",
            {"WWW-Authenticate": "Bearer"},
        )

    def allows(self, origin: str) -> bool:
        """Whether pages of a site may read answers."""
        return "*" in self.origins or origin in self.origins

    def cookie_for(self, query: str, headers: dict[str, str]) -> str | None:
        """What a browser is to keep that has brought the token in the URL; its scripts cannot read it."""
        token = _of_query(query)
        if self.token is None or token is None or not self._is_known([_digest(token)]):
            return None
        secure = "; Secure" if headers.get("x-forwarded-proto") == "https" else ""
        return f"{COOKIE}={_digest(token)}; Path=/; HttpOnly; SameSite=Strict{secure}"

    def _is_known(self, digests: Iterable[str]) -> bool:
        expected = _digest(self.token or "").encode()
        return any(hmac.compare_digest(digest.encode("utf-8", "replace"), expected) for digest in digests)

    @staticmethod
    def _brought(query: str, headers: dict[str, str]) -> list[str]:
        """Digests of the tokens in a request."""
        kind, _, value = headers.get("authorization", "").partition(" ")
        tokens = [value.strip() if kind.lower() == "bearer" else None, _of_query(query)]
        cookies = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
        return [
            *(_digest(token) for token in tokens if token),
            *(value for name, _, value in cookies if name == COOKIE),
        ]


def _digest(token: str) -> str:
    """What a browser keeps in place of the token."""
    return hashlib.sha256(b"torchbeats" + token.encode("utf-8", "replace")).hexdigest()


def _of_query(query: str) -> str | None:
    try:
        values = parse_qs(query, max_num_fields=100).get("token")
    except ValueError:
        return None
    return values[0] if values else None


def _name(host: str) -> str:
    """A Host header without its port."""
    return host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.rpartition(":")[0] or host
