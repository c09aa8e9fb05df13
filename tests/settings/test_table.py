"""The table of the settings, and the frozen values that it makes."""

from __future__ import annotations

import dataclasses

import pytest

from pyramid_threaded_proxy.settings import table as settings_table
from pyramid_threaded_proxy.settings.load import (
    ProcessSettings,
    RouteSettings,
)
from pyramid_threaded_proxy.settings.process_table import PROCESS_KEYS
from tests.support.settings import route_settings


def test_route_defaults() -> None:
    """A route with a place alone has the defaults of the design, in seconds and bytes."""
    assert route_settings() == RouteSettings(
        name="reports", prefix="/reports", pattern=None, upstream=("http://up:9000/v2",), permission=None, public=False,
        require_csrf=None, factory=None, methods=None, order=0, before=False, host=None, preflight="ask",
        query_remove=(), query_only=None, query_set=(), request_origin="pass", request_only=None, response_only=None,
        response_replace=(), response_encoded="decode",
        request_set=(), request_add=(), request_remove=(),
        request_cookies=None, request_authorization="drop", request_overrides="drop", slash=None,
        request_buffering=True,
        response_set=(), response_add=(), response_default=(),
        response_remove=(), preserve_host=False, forwarded="x-forwarded", rewrite_location=(), rewrite_cookies=(),
        upgrade=(), origins=(), cache="private", recheck=None, total_timeout=None, idle_timeout=3600.0,
        log_error_body=None, max_exchanges=None, max_exchanges_per_user=None,
        hooks_request=None, hooks_response=None, hooks_headers=None, hooks_body=None, hooks_complete=None,
        hooks_error=None, connect_timeout=5.0, read_timeout=60.0, send_timeout=60.0, client_body_timeout=60.0,
        max_body=None, max_head=65536,
        buffer=262144, retries=1, balance="round_robin", health_fails=3, health_pause=10.0, health_path=None,
        health_interval=10.0, keepalive=32, keepalive_time=3600.0,
        tls_verify=True, tls_ca_file=None, tls_cert_file=None, tls_key_file=None,
        tls_server_name=None,
    )  # fmt: skip


def test_every_row_has_its_field_and_the_other_way_round() -> None:
    """The table and the dataclasses name the same settings."""
    route_fields = {field.name for field in dataclasses.fields(RouteSettings)}
    assert {key.attribute for key in settings_table.ROUTE_KEYS} == route_fields - {"name"}
    process_fields = {field.name for field in dataclasses.fields(ProcessSettings)}
    assert {key.attribute for key in PROCESS_KEYS} == process_fields - {"own_cookies_given"} | {"file"}


def test_settings_are_frozen() -> None:
    """Settings can't be changed after the start."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        route_settings().prefix = "/other"  # type: ignore[misc]
