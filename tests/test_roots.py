"""Which tests show the roots that real traffic came apart at, and in which modes: a table that is held to be true.

A mode is how an answer goes: detached under either of waitress's loops, or streamed where nothing can be detached.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest

#: Both of waitress's loops, and streamed. `NONE`: what is decided before any connection, at start-up.
POLL, STREAMED, NONE = "poll and select", "streamed", "none"
#: Root: tests, with the modes that they run in.
ROOTS: dict[str, dict[str, tuple[str, ...]]] = {
    "bytes behind a whole answer": {
        "relay.test_stray_bytes:test_the_answer_stands": (POLL,),
        "relay.test_stray_bytes:test_streamed": (STREAMED,),
        "relay.test_stray_bytes:test_behind_a_large_body": (POLL, STREAMED),
        "relay.test_stray_bytes:test_bytes_that_come_with_the_next_request": (POLL, STREAMED),
        "relay.test_stray_bytes:test_a_body_on_head_is_no_answer": (POLL, STREAMED),
    },
    "full duplex": {
        "relay.test_duplex:test_what_goes_up_comes_down": (POLL,),
        "relay.test_duplex:test_over_tls": (POLL, STREAMED),
        "relay.test_duplex:test_an_upstream_that_ends_the_upload": (POLL,),
        "relay.test_duplex:test_under_other_servers": (STREAMED,),
        "relay.test_duplex:test_streamed_in_this_thread": (STREAMED,),
    },
    # Streamed, the connection is another server's to close; and nothing is switched.
    "a close keeps the answer": {
        "detach.test_closing:test_the_answer_survives": (POLL,),
        "detach.test_closing:test_an_error_survives": (POLL,),
        "detach.test_closing:test_a_broken_answer_is_still_reset": (POLL,),
        "site.test_processes:test_a_request_in_the_socket_is_served": (POLL,),
        "site.test_processes:test_a_request_that_crosses_the_close": (POLL,),
        "relay.test_tunnel:test_an_upstream_that_resets_behind_data": (POLL,),
    },
    "a backend that believes its prefix": {
        "site.test_traffic:test_a_prefix_that_the_upstream_believes": (POLL, STREAMED),
        "site.test_traffic:test_a_prefix_that_was_not_sent": (POLL, STREAMED),
        "site.test_traffic:test_the_mount_without_its_slash": (POLL, STREAMED),
    },
    "redirects made of the public host": {
        # Streamed, no peer is trusted, so that nobody tells another scheme.
        "site.test_traffic:test_the_scheme_that_the_upstream_was_told": (POLL,),
        "site.test_traffic:test_the_host_that_the_upstream_was_told": (POLL, STREAMED),
        "site.test_traffic:test_rules_of_the_site": (POLL, STREAMED),
        "site.test_apache:test_a_directory_without_its_slash": (POLL,),
    },
    "second targets": {
        "site.test_traffic:test_a_destination_is_mapped": (POLL, STREAMED),
        "site.test_traffic:test_a_destination_is_judged_as_a_target": (POLL, STREAMED),
        "site.test_traffic:test_tags_are_mapped": (POLL, STREAMED),
        "app.test_copy_source:test_a_source_that_the_client_may_read": (POLL, STREAMED),
        "app.test_copy_source:test_a_source_that_the_client_may_not_read": (POLL, STREAMED),
    },
    "cookies": {
        "site.test_traffic:test_several_cookie_fields": (POLL,),  # other servers don't say that there were several
        "site.test_traffic:test_names_tell_cases_apart": (POLL, STREAMED),
        "site.test_traffic:test_a_dropped_cookie_is_said_once": (POLL, STREAMED),
    },
    "forwarded chains": {
        "site.test_traffic:test_chains_go_on_across_formats": (POLL,),  # streamed, no peer is trusted
        "site.test_traffic:test_via_names_the_version_that_was_received": (POLL, STREAMED),
    },
    "errors after Accept": {
        "relay.test_errors:test_errors_come_in_a_form_that_the_client_accepts": (POLL, STREAMED),
    },
    "settings": {"app.test_config:test_dotted_names_that_lead_nowhere_are_named": (NONE,)},
    "fields that make another request": {
        "site.test_traffic:test_fields_that_name_another_request": (POLL, STREAMED),
        "site.test_traffic:test_fields_that_name_another_client": (POLL,),  # streamed, no peer is trusted
    },
    "right without a tuned ini": {
        "detach.test_defaults:test_a_crowd_at_once": (NONE,),
        "detach.test_defaults:test_a_crowd_where_few_files_may_be_open": (NONE,),
    },
}
TESTS = [(name, modes) for tests in ROOTS.values() for name, modes in tests.items()]


def modes_of(module: Any, function: Any) -> set[str]:
    """The modes that a test runs in, by its parameters."""
    parameters = {*inspect.signature(function).parameters}
    marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
    if "poll" in parameters:
        return {POLL}
    if "mode" in parameters or ("site" in vars(module) and "site" in parameters):
        chosen = [mark.args[1] for mark in marks if mark.args[0] == "mode"]
        return {POLL} if chosen else {POLL, STREAMED}
    return {NONE}


@pytest.mark.parametrize(("name", "modes"), TESTS, ids=[name for name, _ in TESTS])
def test_each_root_is_shown_in_its_modes(name: str, modes: tuple[str, ...]) -> None:
    """The test exists, and runs in the modes that stand here; those of other servers are streamed by nature."""
    where, _, function = name.partition(":")
    module = importlib.import_module(f"tests.{where}")
    found = modes_of(module, getattr(module, function))
    assert found == ({NONE} if modes == (STREAMED,) else set(modes))


@pytest.mark.parametrize("root", ROOTS)
def test_no_root_is_left_out_of_a_mode(root: str) -> None:
    """Detached and streamed, but for what belongs to one of them alone, and for what has no connection."""
    shown = {mode for modes in ROOTS[root].values() for mode in modes}
    alone = {"a close keeps the answer": {POLL}, "settings": {NONE}, "right without a tuned ini": {NONE}}
    assert shown == alone.get(root, {POLL, STREAMED})
