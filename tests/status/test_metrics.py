"""The metrics, as Prometheus reads them."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from pyramid_threaded_proxy.limits.descriptors import RESERVE, SELECT_LIMIT
from pyramid_threaded_proxy.status.counts import BOUNDS
from pyramid_threaded_proxy.status.document import document
from pyramid_threaded_proxy.status.metrics import ProxyCollector, exposition
from pyramid_threaded_proxy.status.published import published
from pyramid_threaded_proxy.status.report import Asked, report
from pyramid_threaded_proxy.status.status import Status
from tests.support.observed import Nothing
from tests.support.origin import MakeOrigin, answering, echo
from tests.support.site import MakeSite, Site, route
from tests.support.status import STATUS, watched
from tests.support.waiting import wait_until

#: Names, types and labels, as docs/metrics.md and DESIGN.md have them.
TABLE = {
    "proxy_exchanges": ("counter", {"route", "method", "code", "ended"}),
    "proxy_exchanges_active": ("gauge", {"route"}),
    "proxy_exchanges_limit": ("gauge", {"route"}),
    "proxy_exchange_duration_seconds": ("histogram", {"route", "kind"}),
    "proxy_authorize_seconds": ("histogram", {"route"}),
    "proxy_upstream_connect_seconds": ("histogram", {"route", "upstream"}),
    "proxy_upstream_first_byte_seconds": ("histogram", {"route", "upstream"}),
    "proxy_body_bytes": ("counter", {"route", "direction"}),
    "proxy_refused": ("counter", {"route", "reason"}),
    "proxy_retries": ("counter", {"route", "upstream"}),
    "proxy_upstream_up": ("gauge", {"route", "upstream"}),
    "proxy_upstream_active": ("gauge", {"route", "upstream"}),
    "proxy_upstream_idle_connections": ("gauge", {"route", "upstream"}),
    "proxy_loop_lag_seconds": ("histogram", set()),
    "proxy_descriptors": ("gauge", set()),
    "proxy_pool_busy": ("gauge", set()),
    "proxy_draining": ("gauge", set()),
    "proxy_build_info": ("gauge", {"version"}),
}


def scrape(site: Site) -> str:
    """The metrics as text."""
    answer = site.get("/status/metrics", {"X-User": "watcher"})
    assert answer.status == 200
    assert (answer.one("Content-Type") or "").startswith("text/plain; version=")
    return answer.body.decode()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by its name and labels."""
    families = text_string_to_metric_families(text)
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def value(text: str, name: str, **labels: str) -> float:
    """One sample; 0 where there is none."""
    return samples(text).get((name, frozenset(labels.items())), 0.0)


@pytest.fixture
def busy(origin: MakeOrigin, site: MakeSite) -> Site:
    """A site on which something of every kind has happened."""
    good, second, dead = origin(echo), origin(echo), origin(echo)
    dead.stop_listening()
    bad = origin(answering(b"nonsense\r\n\r\n"))
    settings = (
        STATUS
        | route("good", good.url, methods="GET")
        | route("flaky", f"{dead.url} {second.url}")
        | route("bad", bad.url)
    )
    here = site(settings, configure=watched)
    for path in ("/good/", "/flaky/", "/bad/", "/good/%00"):
        here.get(path)
    here.get("/good/", method="PUT")
    here.get("/flaky/", method="POST", body=b"x" * 100)
    wait_until(lambda: here.engine.admission.in_flight == 0)
    return here


def test_names_types_and_labels_are_those_of_the_table(busy: Site) -> None:
    """Nothing more, nothing less: dashboards are built on them."""
    families = list(text_string_to_metric_families(scrape(busy)))
    found = {}
    for family in families:
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        found[family.name] = (family.type, labels)
    assert found == TABLE
    bounds = {
        sample.labels["le"] for family in families for sample in family.samples if sample.name.endswith("_bucket")
    }
    assert bounds == {*(f"{bound}" for bound in BOUNDS), "+Inf"}


def test_what_happened_is_what_is_counted(busy: Site) -> None:
    """Exchanges, refusals, retries and bytes, each once."""
    text = scrape(busy)
    assert value(text, "proxy_exchanges_total", route="good", method="GET", code="200", ended="whole") == 1
    assert value(text, "proxy_exchanges_total", route="bad", method="GET", code="502", ended="answer-refused") == 1
    assert value(text, "proxy_exchanges_total", route="flaky", method="POST", code="200", ended="whole") == 1
    assert value(text, "proxy_refused_total", route="good", reason="target") == 1
    assert value(text, "proxy_refused_total", route="good", reason="method") == 1
    upstream = busy.engine.routes["flaky"].balancer.upstreams[1].url
    assert value(text, "proxy_upstream_up", route="flaky", upstream=upstream) == 1
    # In turn: each was sent to the dead one first, because the other one's turn was the retry.
    assert value(text, "proxy_retries_total", route="flaky", upstream=upstream) in (1, 2)
    assert value(text, "proxy_body_bytes_total", route="flaky", direction="up") == 100
    assert value(text, "proxy_exchange_duration_seconds_count", route="good", kind="request") == 1
    assert value(text, "proxy_authorize_seconds_count", route="good") == 1


def test_each_refusal_counts_with_its_reason(origin: MakeOrigin, site: MakeSite) -> None:
    """A limit, a user's limit, a body, a method, a target and a foreign origin, each once."""
    upstream = origin(echo).url
    settings = (
        STATUS
        | route("r", upstream, methods="GET POST", max_body="10", upgrade="websocket")
        | route("full", upstream, max_exchanges="1")
        | route("own", upstream, max_exchanges_per_user="1")
    )
    here = site(settings, configure=watched)
    ann = {"X-User": "ann"}
    slots = [here.engine.admission.admit("full")]
    limits = here.engine.routes["own"].rules.answer.limits
    slots.append(here.engine.admission.admit("own", "ann", limits))
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Origin": "http://evil.example"}
    statuses = [
        here.get("/full/", ann).status,
        here.get("/own/", ann).status,
        here.get("/r/", ann, "POST", b"x" * 11).status,
        here.get("/r/", ann, "PUT").status,
        here.get("/r/%00", ann).status,
        here.get("/r/", ann | upgrade).status,
    ]
    for slot in slots:
        slot.release()
    assert statuses == [503, 429, 413, 405, 400, 403]
    text = scrape(here)
    reasons = {"limit": "full", "user_limit": "own", "body": "r", "method": "r", "target": "r", "origin": "r"}
    assert {
        reason: value(text, "proxy_refused_total", route=name, reason=reason) for reason, name in reasons.items()
    } == (dict.fromkeys(reasons, 1))


def test_running_out_of_descriptors_counts(origin: MakeOrigin, site: MakeSite) -> None:
    """Under `select` numbers end at 1024: an exchange that comes with one of the last is refused, and counted so."""
    here = site(STATUS | route("r", origin(echo).url), configure=watched, asyncore_use_poll=False)
    assert here.get("/r/", {"X-User": "ann"}).status == 200
    taken: list[int] = []
    try:
        while not taken or taken[-1] < SELECT_LIMIT - RESERVE:
            taken.append(os.dup(0))
        assert here.get("/r/", {"X-User": "ann"}).status == 503
    finally:
        for number in taken:
            os.close(number)
    assert value(scrape(here), "proxy_refused_total", route="r", reason="descriptors") == 1
    assert here.get("/r/", {"X-User": "ann"}).status == 200


def test_promtool_finds_nothing_to_say(busy: Site, need_program: Callable[[str], str]) -> None:
    """Prometheus's own checker is content with names, help and format."""
    checked = subprocess.run(
        [need_program("promtool"), "check", "metrics"], input=scrape(busy), capture_output=True, text=True, timeout=60
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@contextmanager
def prometheus(program: str, folder: Path, site: Site) -> Iterator[str]:
    """A real Prometheus that scrapes the site each second; its URL."""
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: proxy\n  metrics_path: /status/metrics\n"
        "  params: {user: [watcher]}\n"
        f"  static_configs: [{{targets: ['127.0.0.1:{site.port}']}}]\n"
    )
    command = [
        program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
        "--web.listen-address=127.0.0.1:0",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if "Listening on" in line or "Start listening" in line:
                    break
            yield f"http://{listening(process.pid)}"
        finally:
            process.kill()


def listening(pid: int) -> str:
    """The address that a process listens on."""

    def found() -> str | None:
        inodes = set()
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = str(link.readlink())
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                return f"127.0.0.1:{int(words[1].split(':')[1], 16)}"
        return None

    return str(wait_until(found, "a listening Prometheus", timeout=30))


def query(url: str, what: str) -> float | None:
    """The one value of a query at this moment."""
    try:
        with urllib.request.urlopen(f"{url}/api/v1/query?query={what}", timeout=10) as answer:
            result = json.load(answer)["data"]["result"]
    except (OSError, http.client.HTTPException):
        return None
    return float(result[0]["value"][1]) if result else None


def test_a_real_prometheus_scrapes_it(
    origin: MakeOrigin, site: MakeSite, need_program: Callable[[str], str], tmp_path: Path
) -> None:
    """What Prometheus has after a scrape is what clients were answered."""

    here = site(
        STATUS | route("r", origin(echo).url), configure=lambda config: config.set_security_policy(QueryPolicy())
    )
    with prometheus(need_program("prometheus"), tmp_path, here) as url:
        for _ in range(7):
            assert here.get("/r/").status == 200
        asked = "sum(proxy_exchanges_total)"
        wait_until(lambda: query(url, asked) == 7, "a scrape", timeout=60)
        assert query(url, "proxy_exchanges_limit") == 1000
        assert query(url, "up") == 1


class QueryPolicy:
    """The user is whoever the query says: Prometheus sends no field of its own in this release."""

    def identity(self, request: object) -> str | None:
        return request.GET.get("user")  # type: ignore[attr-defined,no-any-return]

    authenticated_userid = identity

    def permits(self, request: object, context: object, permission: str) -> bool:
        return self.identity(request) is not None


def test_an_application_has_a_registry_of_its_own(busy: Site) -> None:
    """The collector can be registered beside the application's own metrics."""
    registry = CollectorRegistry()
    registry.register(ProxyCollector(busy.engine.count()))
    assert registry.get_sample_value("proxy_exchanges_limit", {"route": "good"}) == 1000


@given(st.text(), st.text(), st.text(), st.text())
def test_whatever_reaches_a_label_is_read_back(name: str, method: str, end: str, upstream: str) -> None:
    """Quotes, backslashes and line ends stay in their label, and the text stays readable."""
    status = Status(Nothing(), lambda route: frozenset({upstream}))
    status._ended.append((name, method, 200, end, upstream, 1, 0, 0, None, None, 0.1, 0.2))
    text = exposition(status, "")[0].decode()
    lines = [line for line in text.split("\n") if line.startswith("proxy_exchanges_total{")]
    assert len(lines) == 1
    if all(ord(mark) < 0xD800 for mark in name + end):
        found = [labels for (sample, labels) in samples(text) if sample == "proxy_exchanges_total"]
        assert (dict(found[0])["route"], dict(found[0])["ended"]) == (name, end)


def test_counting_is_off_by_default(origin: MakeOrigin, site: MakeSite) -> None:
    """Without a page and without a collector nothing is counted."""
    here = site(route("r", origin(echo).url))
    here.get("/r/")
    assert here.engine.status is None
    assert here.get("/status").status == 404


def test_the_loop_tells_its_lag(busy: Site) -> None:
    """Once a second something is measured."""
    begin = time.monotonic()
    wait_until(lambda: value(scrape(busy), "proxy_loop_lag_seconds_count") >= 1, timeout=30)
    assert time.monotonic() - begin < 30


class Elsewhere:
    """Another process, and what it says of itself."""

    name = "here:1:ab"

    def __init__(self, *reports: str, known: bool = True) -> None:
        self._found = known, [json.loads(report) for report in reports]

    def others(self) -> tuple[bool, list[dict[str, object]]]:
        return self._found


def two_processes() -> Status:
    """The status of a process that hears of another one, and of one with a release that it does not understand."""
    other = Status(Nothing(), lambda route: frozenset())
    other.refused("r", "limit")
    other.refused("r", "limit")
    other.counts.lag.add(0.3)
    status = Status(Nothing(), lambda route: frozenset())
    status.refused("r", "limit")
    reports = published(other, "there:2:cd"), json.dumps({"version": 0, "process": "old:3:ef"})
    status.elsewhere = Elsewhere(*reports)
    return status


def test_all_processes_are_shown_by_each() -> None:
    """Every series has the process as a label more; the numbers are those that each says of itself."""
    text = exposition(two_processes(), "")[0].decode()
    for name, family in {one.name: one for one in text_string_to_metric_families(text)}.items():
        assert {sample.labels["process"] for sample in family.samples} <= {"here:1:ab", "there:2:cd"}, name
    found = samples(text)
    for process, count in (("here:1:ab", 1), ("there:2:cd", 2)):
        labels = frozenset({"route": "r", "reason": "limit", "process": process}.items())
        assert found["proxy_refused_total", labels] == count
    assert found["proxy_loop_lag_seconds_count", frozenset({("process", "there:2:cd")})] == 1
    assert ("proxy_draining", frozenset({("process", "there:2:cd")})) in found


def test_the_page_sums_up_all_processes() -> None:
    """First the sum, then this process, then the others."""
    found = report(two_processes(), Asked())
    assert [(one["process"], one["refused"], one["limit"]) for one in found["processes"]] == [
        ("", 3, 2000), ("here:1:ab", 1, 1000), ("there:2:cd", 2, 1000),
    ]  # fmt: skip
    assert found["others_known"]
    text = document(found, Asked(), "/status", "", "")
    assert 'id="site" >' in text
    assert "there:2:cd" in text
    assert 'id="others" hidden' in text


def test_others_that_can_not_be_asked() -> None:
    """The page says so, and shows this process; without `proxy.shared` it shows no processes at all."""
    status = Status(Nothing(), lambda route: frozenset())
    assert 'id="site" hidden' in document(report(status, Asked()), Asked(), "/status", "", "")
    status.elsewhere = Elsewhere(known=False)
    found = report(status, Asked())
    assert [one["process"] for one in found["processes"]] == ["", "here:1:ab"]
    assert 'id="others" >' in document(found, Asked(), "/status", "", "")
