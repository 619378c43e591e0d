"""Who may ask a server."""

import pytest

from torchbeats.errors import RequestError
from torchbeats.serve.security import COOKIE, Access, is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "LOCALHOST", "::1", "[::1]", "a.localhost"])
def test_this_machine(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "localhost.evil.example", "", "127.0.0.1.nip.io"])
def test_others(host):
    assert not is_loopback(host)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::1", "1.2.3.4"])
def test_a_name_that_is_made_to_resolve_to_this_machine(host):
    with pytest.raises(RequestError) as caught:
        Access("127.0.0.1").check("/", "", {"host": host})
    assert caught.value.status == 421


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000", "localhost"])
def test_names_of_this_machine(host):
    Access("127.0.0.1").check("/", "", {"host": host})
    Access("127.0.0.1").check("/", "", {"host": host, "origin": f"http://{host}"})


def test_other_sites():
    for origin in ("https://evil.example", "null", "http://localhost:9999"):
        with pytest.raises(RequestError, match="Pages of other sites"):
            Access("127.0.0.1").check("/", "", {"host": "localhost:8000", "origin": origin})
    Access("127.0.0.1", None, ("https://a.example",)).check(
        "/", "", {"host": "localhost", "origin": "https://a.example"}
    )


def test_a_browser_keeps_the_token_without_knowing_it():
    access = Access("0.0.0.0", "s3cret")
    headers = {"host": "server:8000"}
    cookie = access.cookie_for("token=s3cret", headers)
    assert cookie.startswith(f"{COOKIE}=")
    assert "s3cret" not in cookie
    assert {"HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))
    access.check("/", "", {**headers, "cookie": f"other=1; {cookie.split(';')[0]}"})
    assert access.cookie_for("token=wrong", headers) is None
    for wrong in (f"{COOKIE}=s3cret", f"{COOKIE}=", f"x{cookie.split(';')[0]}"):
        with pytest.raises(RequestError, match="asks for its token"):
            access.check("/", "", {**headers, "cookie": wrong})
