"""What a front asks about becomes the environ of that request."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_threaded_proxy.app.front import SOURCES, FrontFault, asked_environ, has_key

_TARGETS = st.text(st.sampled_from("/%2Fr.?#&=a;:é\\ \x00\xff")) | st.text(st.characters(max_codepoint=255))


def environ(**more: Any) -> dict[str, Any]:
    """That of a question of nginx's."""
    return {"REQUEST_METHOD": "GET", "PATH_INFO": "/_v", "REQUEST_URI": "/_v", "HTTP_X_ORIGINAL_METHOD": "PUT", **more}


@given(_TARGETS)
def test_any_target_becomes_its_own_path_and_query(target: str) -> None:
    """Nothing of a target is lost or made up: it stands there raw, and PATH_INFO and QUERY_STRING are its parts."""
    if not target:
        return
    asked = asked_environ(environ(HTTP_X_ORIGINAL_URI=target), SOURCES["nginx"], "/_v")
    assert asked is not None
    assert (asked["REQUEST_METHOD"], asked["REQUEST_URI"]) == ("PUT", target)
    path, _, query = target.partition("?")
    assert asked["QUERY_STRING"] == query
    assert asked["PATH_INFO"] == "/" + unquote(path, "latin-1").lstrip("/")


@given(_TARGETS)
def test_envoys_target_is_what_stands_behind_the_prefix(rest: str) -> None:
    """Byte for byte; without a slash there is none."""
    question = environ(REQUEST_URI="/app/_v" + rest, SCRIPT_NAME="/app")
    if not rest.startswith("/"):
        with pytest.raises(FrontFault):
            asked_environ(question, SOURCES["envoy"], "/_v")
        return
    asked = asked_environ(question, SOURCES["envoy"], "/_v")
    assert asked is None or asked["REQUEST_URI"] == rest


def test_what_speaks_of_the_question_is_gone() -> None:
    """Its body, connection and the front's own fields; what middleware knows of the client stays."""
    question = environ(
        HTTP_X_ORIGINAL_URI="/r", CONTENT_LENGTH="3", CONTENT_TYPE="x/y", HTTP_CONNECTION="x", HTTP_UPGRADE="h2c",
        HTTP_X_PROXY_KEY="k", HTTP_X_ORIGINAL_UPGRADE="", RAW_URI="/_v", HTTP_COOKIE="a=b", REMOTE_USER="bob",
    )  # fmt: skip
    question |= {"waitress.client_disconnected": 1, "webob.x": 1, "bfg.x": 1, "beaker.session": 1}
    asked = asked_environ(question, SOURCES["nginx"], "/_v")
    assert asked is not None
    assert asked.keys() == {
        "REQUEST_METHOD", "PATH_INFO", "REQUEST_URI", "QUERY_STRING", "SERVER_PROTOCOL", "CONTENT_TYPE", "HTTP_COOKIE",
        "REMOTE_USER", "beaker.session",
    }  # fmt: skip


def test_what_the_client_said_of_its_connection() -> None:
    """The front tells it in fields of its own; without any it said nothing."""
    told = {"HTTP_X_ORIGINAL_URI": "/r", "HTTP_CONNECTION": "close", "HTTP_UPGRADE": "h2c"}
    for more, expected in (
        ({}, (None, None)),
        ({"HTTP_X_ORIGINAL_UPGRADE": "websocket"}, ("upgrade", "websocket")),
        ({"HTTP_X_ORIGINAL_CONNECTION": "X-Hop"}, ("X-Hop", None)),
        ({"HTTP_X_ORIGINAL_CONNECTION": "X-Hop", "HTTP_X_ORIGINAL_UPGRADE": "a"}, ("X-Hop", "a")),
    ):
        asked = asked_environ(environ(**told, **more), SOURCES["nginx"], "/_v")
        assert asked is not None
        assert (asked.get("HTTP_CONNECTION"), asked.get("HTTP_UPGRADE")) == expected


def test_outside_of_script_name_there_is_nothing() -> None:
    """A sibling's name that only begins alike is outside."""
    for target, inside in (("/app/r", "/r"), ("/app", ""), ("/apple/r", None), ("/r", None)):
        asked = asked_environ(environ(SCRIPT_NAME="/app", HTTP_X_ORIGINAL_URI=target), SOURCES["nginx"], "/_v")
        assert (asked and asked["PATH_INFO"]) == inside


def test_a_method_in_lower_case_is_none() -> None:
    """waitress refuses it, so no question about it is answered either."""
    question = environ(HTTP_X_ORIGINAL_URI="/r", HTTP_X_ORIGINAL_METHOD="get")
    assert asked_environ(question, SOURCES["nginx"], "/_v") is None


@given(st.text(st.characters(max_codepoint=255)))
def test_only_the_key_is_the_key(given_key: str) -> None:
    """Any text that a field can hold is compared, and only the same one is right."""
    assert has_key({"HTTP_X_PROXY_KEY": given_key}, "k" * 16) is (given_key == "k" * 16)
    assert not has_key({}, "k" * 16)
