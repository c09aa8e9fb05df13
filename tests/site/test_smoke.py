"""The whole way once: a client, waitress, Pyramid, the relay, an upstream, and back."""

from __future__ import annotations

from tests.support.origin import MakeOrigin, echo
from tests.support.site import MakeSite, route


def test_a_request_is_relayed(origin: MakeOrigin, site: MakeSite, sockets: int) -> None:
    """A request to a public route reaches the upstream below its base, and its answer the client."""
    upstream = origin(echo)
    answer = site(route("reports", upstream.url + "/v2"), sockets=sockets).get("/reports/a%2Fb?x=%2e")
    assert answer.status == 200
    assert answer.body.startswith(b"GET /v2/a%2Fb?x=%2e HTTP/1.1\r\n")


def test_the_connection_goes_back_to_waitress(origin: MakeOrigin, site: MakeSite) -> None:
    """Two pipelined requests on one connection are answered in order, both relayed."""
    upstream = origin(echo)
    client = site(route("r", upstream.url)).client()
    client.send(b"GET /r/1 HTTP/1.1\r\nHost: a\r\n\r\nGET /r/2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    everything = client.rest()
    client.close()
    assert everything.index(b"GET /1 ") < everything.index(b"GET /2 ")
