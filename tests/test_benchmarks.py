"""The benchmarks: how figures are read, compared and shown, and that a small run of them runs."""

from __future__ import annotations

import os
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import __main__ as command
from benchmarks import accounts, figures, machine, page, plots, report, servers, why
from benchmarks.bench import QUICK, Bench
from benchmarks.goals import GOALS, Goal
from benchmarks.loads import wire, wrk
from benchmarks.processes import Load, ProcessFailed, Service, free_port
from benchmarks.scenarios import beside, chunked, held, own_view, tunnels
from tests.support.waiting import wait_until

STAT = "{pid} ({name}) S {parent} 1 1 0 -1 4194560 1 2 3 4 {utime} {stime} {cutime} {cstime} 20 0 {threads} 0 12345"


def goal(**changes: Any) -> Goal:
    return Goal("a scenario", "a figure", "data", 1.0, 2.0)._replace(**changes)


def document(**changes: Any) -> dict[str, Any]:
    """What a run writes, of two servers and two rounds."""
    samples = {"downloads.cpu": {"proxy": [0.2, 0.3], "haproxy": [0.4, 0.4], "nginx": [0.6, 0.8]},
               "in_flight.small.10": {"proxy": [100.0]}, "in_flight.small.100": {"proxy": [110.0]}}  # fmt: skip
    return {
        "taken": "2030-01-01 00:00 UTC", "quick": True, "rounds": 2, "machine": {"cores": "2"}, "versions": {},
        "load_average": 0.1, "left_out": {"revproxy": "not installed: django"}, "notes": [], "failures": {},
        "ini": "[app:main]\n", "samples": samples, **changes,
    }  # fmt: skip


# Statistics


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float], share: float) -> None:
    """At least the share lies at or below it, and less than the share strictly below."""
    found = figures.percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values) + 1e-9


def test_percentiles_of_a_hundred() -> None:
    """Nearest rank: the 99th of a hundred values is the 99th smallest."""
    values = [float(value) for value in range(100, 0, -1)]
    assert [figures.percentile(values, share) for share in (0.5, 0.99, 1)] == [50, 99, 100]
    with pytest.raises(ValueError, match="no values"):
        figures.percentile([], 0.5)


def test_spread_is_a_share_of_the_median() -> None:
    """One round, and a median of nothing, have no spread."""
    assert figures.spread([9, 10, 12]) == pytest.approx(0.3)
    assert figures.spread([10]) is None
    assert figures.spread([0, 0]) is None


@pytest.mark.parametrize(
    ("at_most", "must", "aim", "measured", "expected"),
    [
        (True, 1.5, 1.0, 1.0, "aim"),
        (True, 1.5, 1.0, 1.5, "must"),
        (True, 1.5, 1.0, 1.51, "MISSED"),
        (False, 0.8, 1.0, 1.0, "aim"),
        (False, 0.8, 1.0, 0.8, "must"),
        (False, 0.8, 1.0, 0.79, "MISSED"),
        (False, None, None, 5.0, ""),
        (True, 1.5, 1.0, None, "no figure"),
    ],
)
def test_verdicts(at_most: bool, must: float | None, aim: float | None, measured: float | None, expected: str) -> None:
    """Bounds belong to what they allow; nothing measured is never a success."""
    assert figures.verdict(goal(must=must, aim=aim, at_most=at_most), measured) == expected


def test_a_ratio_is_of_medians_and_its_spread_of_rounds() -> None:
    """The two servers' medians are divided; the spread pairs what was measured in one round."""
    samples = {"data": {"proxy": [10.0, 30.0, 20.0], "nginx": [10.0, 10.0, 10.0]}}
    row = figures.evaluate(goal(against="nginx"), samples)
    assert (row.subject, row.baseline, row.measured) == (20, 10, 2)
    assert row.spread == pytest.approx(1)


def test_other_samples_may_be_the_measure() -> None:
    """64 connections are compared with the ceiling at 16; without its figure there is no ratio."""
    rows = {"data": {"proxy": [10.0], "bare": [1.0]}, "other": {"bare": [5.0]}}
    assert figures.evaluate(goal(against="bare", against_data="other"), rows).measured == 2
    assert figures.evaluate(goal(against="haproxy"), rows).verdict == "no figure"


def test_the_stronger_kind_of_a_peer_counts() -> None:
    """Of HAProxy with one thread and with more the better is compared with: less CPU, or more MB/s."""
    samples = {"data": {"proxy": [4.0], "haproxy": [2.0], "haproxy-mt": [5.0]}}
    assert figures.evaluate(goal(against="haproxy"), samples)[2:5] == ("haproxy-mt", 5.0, 0.8)
    assert figures.evaluate(goal(against="haproxy", at_most=True), samples)[2:5] == ("haproxy", 2.0, 2.0)


def test_growth_is_the_worst_round() -> None:
    """Where the worst counts, a single bad round is not outvoted."""
    assert figures.evaluate(goal(worst=True), {"data": {"proxy": [1.0, 9.0, 1.0]}}).measured == 9


def test_noise_names_the_worst_row() -> None:
    """The row whose rounds lay furthest apart is found; one round says nothing."""
    found = figures.noise(figures.evaluate_all(document()["samples"]))
    assert found is not None
    assert found[1:2] == (pytest.approx(0.4),)
    assert found[2].goal.data == "downloads.cpu"
    assert figures.noise(figures.evaluate_all({"downloads.cpu": {"proxy": [1.0]}})) is None


def test_aims_are_not_below_musts() -> None:
    """Every aim asks at least as much as its must, and a row has both or neither."""
    for row in GOALS:
        assert (row.must is None) == (row.aim is None)
        if row.must is not None and row.aim is not None:
            assert row.aim <= row.must if row.at_most else row.aim >= row.must
        assert {row.subject, row.against or "proxy"} <= set(servers.TITLES)


# The system's accounts


@given(st.text(st.characters(codec="latin-1", exclude_characters="\0\n"), max_size=15))
def test_a_stat_line_is_read_whatever_the_process_is_called(name: str) -> None:
    """Blanks and parentheses in a name move no field."""
    line = STAT.format(pid=7, name=name, parent=3, utime=10, stime=20, cutime=30, cstime=40, threads=5)
    assert accounts.parse_stat(line) == accounts.Stat(7, 3, 100, 5)


def test_resident_memory_is_read_in_bytes() -> None:
    """VmRSS is in kB; a process that has ended has no such line."""
    assert accounts.parse_rss("Name:\tpython\nVmHWM:\t  99 kB\nVmRSS:\t    12 kB\n") == 12288
    assert accounts.parse_rss("Name:\tpython\nState:\tZ (zombie)\n") == 0
    with pytest.raises(ValueError, match="VmRSS in MB"):
        accounts.parse_rss("VmRSS:\t 1 MB\n")


def test_descendants_are_found_over_generations() -> None:
    """A worker's own children count; another's do not."""
    stats = [accounts.Stat(pid, parent, 0, 1) for pid, parent in ((4, 3), (3, 2), (2, 1), (9, 1), (5, 2))]
    assert {stat.pid for stat in accounts.descendants(2, stats)} == {2, 3, 4, 5}


def test_usage_of_this_process() -> None:
    """CPU that was spent shows in the accounts."""
    with accounts.Watch(os.getpid()) as watch:
        while accounts.usage(os.getpid()).cpu < watch.before.cpu + 2 / accounts.TICKS:
            sum(range(10000))
    assert watch.cpu >= 1.99 / accounts.TICKS
    assert watch.most.rss > 1 << 20
    assert watch.most.threads >= 1


def test_switches_of_a_thread_are_counted_both_ways() -> None:
    """Of itself and not; and a process that does nothing but begin has some."""
    assert accounts.parse_switches("voluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t2\nThreads:\t9\n") == 7


def test_what_is_written_to_disk() -> None:
    """Bytes to files count, and what is read does not."""
    assert accounts.parse_written("wchar: 9\nread_bytes: 4\nwrite_bytes: 7\ncancelled_write_bytes: 1\n") == 7
    assert accounts.parse_written("") == 0
    assert accounts.written(os.getpid()) >= 0
    assert accounts.switches(os.getpid()) > 0


# What is shown


def test_the_table_has_must_and_aim_beside_the_ratio() -> None:
    """Measured, must, aim, verdict, both figures, the peers beside them, and the spread."""
    line = next(line for line in report.table(document()).splitlines() if "CPU-s/GiB" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:] == ["0.625 x", "≤ 1.15", "≤ 0.9", "aim", "0.25", "haproxy 0.4", "nginx 0.7", "40%"]


def test_what_wrk_showed_stands_together() -> None:
    """A line for each server and placement: requests a second, latencies, CPU and switches."""
    figures_of = {
        "": [200.0, 400.0],
        ".p50": [1.0, 2.0],
        ".p99": [5.0, 5.0],
        ".cpu": [0.5, 0.5],
        ".switches": [3.0, 3.0],
    }
    samples = {f"own16.two{figure}": {"bare": values} for figure, values in figures_of.items()}
    cells = [cell.strip() for cell in report.small(document(samples=samples)).splitlines()[-1].strip("|").split("|")]
    assert cells == ["own view, 16 connections", "two", "bare", "300", "1.5", "5", "0.5", "3"]
    assert report.small(document()) == ""


def test_what_each_change_buys_is_said_of_the_whole() -> None:
    """Of each variant the figure, and what it is of the add-on as it is; both kinds, anywhere and alone."""
    names = ("proxy", *why.VARIANTS, "bare")
    samples = {f"why.{kind}.{figure}": {name: [10.0 if name == "proxy" else 5.0] for name in names}
               for kind in ("own", "proxied") for figure in ("two", "two.p99", "two.switches", "one")}  # fmt: skip
    first, *_, last = why.table(samples).splitlines()[2:]
    assert [cell.strip() for cell in first.strip("|").split("|")] == ["as it is", *["10"] * 8]
    assert [cell.strip() for cell in last.strip("|").split("|")][1:] == ["5 (0.50)", "5 (0.50)", "5", "5 (0.50)"] * 2
    assert servers.ADDONS.keys() >= {*names}


def test_what_is_missing_is_named() -> None:
    """A peer that is not installed, a scenario that failed, a row without figures."""
    samples = {"slow.growth": {"proxy": [1.0]}}
    failures = {"https": "no certificate"}
    lines = report.left_out(document(failures=failures, notes=["9,000 at once: no"], samples=samples))
    assert lines[:3] == [
        "left out: django-revproxy, gunicorn gthread: not installed: django",
        "9,000 at once: no",
        "FAILED: scenario https: no certificate",
    ]
    assert "2,000 idle tunnels" in lines[3]
    assert "500 readers" not in lines[3]


def test_a_busy_machine_is_told() -> None:
    """The load before the run stands beside the noise."""
    assert "not idle" in report.how_noisy(document(load_average=2.0))
    assert "not idle" not in report.how_noisy(document())
    assert "nothing is known" in report.how_noisy(document(samples={}))


@pytest.mark.parametrize("samples", [document()["samples"], {}], ids=["some", "none"])
def test_plots_are_xml(samples: dict[str, Any]) -> None:
    """Every plot is a well-formed SVG with a title, of an empty run too."""
    for drawing in plots.draw(document(samples=samples)).values():
        root = ElementTree.fromstring(drawing)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root[0].text


def test_labels_are_escaped() -> None:
    """A label can't become markup."""
    assert "a &lt;b&gt;" in plots.bars("a <b>", {"x": [plots.Bar("proxy", 1, "1")]})


def test_only_what_stands_between_the_marks_is_rewritten() -> None:
    """The prose around the figures is left alone; a page without marks is refused."""
    text = f"before\n{page.BEGIN}old\n{page.END}after\n"
    assert page.replaced(text, "new\n") == f"before\n{page.BEGIN}\nnew\n\n{page.END}after\n"
    assert page.replaced(page.replaced(text, "x\n"), "new\n") == page.replaced(text, "new\n")
    with pytest.raises(ValueError, match="lacks one of its two marks"):
        page.replaced("no marks", "new\n")


def test_the_page_shows_the_reference() -> None:
    """docs/how-fast.md and its plots are what the command makes of the committed run."""
    reference = command.read(command.REFERENCE)
    text = page.PAGE.read_text(encoding="utf-8")
    assert text == page.replaced(text, page.block(reference))
    for name, drawing in plots.draw(reference).items():
        assert (page.PLOTS / name).read_text(encoding="utf-8") == drawing


def test_the_readme_shows_the_reference() -> None:
    """The few figures of the README are those of the committed run, and rows that are no honour are among them."""
    reference = command.read(command.REFERENCE)
    text = page.README.read_text(encoding="utf-8")
    assert text == page.replaced(text, page.in_short(reference), page.BEGIN_SHORT, page.END_SHORT)
    lines = report.summary(reference).splitlines()
    assert len(lines) == 2 + len(report._IN_SHORT)
    assert any(line.startswith("| 1 KiB answers") for line in lines)


def test_the_page_about_engines_shows_the_reference() -> None:
    """docs/deploying.md has the table of the committed run, or says that the run has none."""
    text = page.DEPLOYING.read_text(encoding="utf-8")
    inside = page.engines(command.read(command.REFERENCE))
    assert text == page.replaced(text, inside, page.BEGIN_ENGINES, page.END_ENGINES)


def test_engines_stand_side_by_side() -> None:
    """A column for the relay, each way and nginx alone; what is missing is a dash, and a run without them is told."""
    samples = {"fronted16.two": {"proxy": [2000.0], "verify": [1000.0, 1100.0], "nginx": [9000.0]},
               "fronted.cpu": {"proxy": [0.5], "verify": [1.0], "accel": [1.5], "nginx": [0.25]}}  # fmt: skip
    lines = page.engines(document(samples=samples)).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert rows == [
        ["what", "figure", "the relay in the process", "nginx with verify", "nginx with accel", "nginx alone"],
        ["1 KiB answers, 16 connections", "req/s, two cores", "2,000", "1,050", "-", "9,000"],
        ["4 downloads of 256 MiB", "CPU-s/GiB", "0.5", "1", "1.5", "0.25"],
    ]
    assert "2030-01-01" in lines[-1]
    assert "benchmarks engines" in page.engines(document())


def test_the_page_shows_what_each_change_buys() -> None:
    """The table is what the other command makes of its committed run."""
    text = page.WHY_PAGE.read_text(encoding="utf-8")
    assert text == page.replaced(text, why.block(command.read(why.REFERENCE)), page.BEGIN_WHY, page.END_WHY)


@pytest.mark.parametrize("name", ["proxy", *why.VARIANTS, *servers.FRONTED])
def test_what_is_compared_serves(name: str, tmp_path: Path, need_program: Callable[[str], str]) -> None:
    """Each variant, and nginx with each way: an own view and a proxied request, several times on one connection."""
    for needed in ("nginx", "openssl"):
        need_program(needed)
    bench = Bench(tmp_path, QUICK._replace(share=512))
    with bench.upstreams(), bench.running(name) as running:
        for path in ("/own", "/files/1k"):
            shown = bench.measure(running[name], "small", path=path, connections=2, seconds=0.05)
            assert shown.client["answers"] > 2


def test_a_front_server_and_the_application_are_one_server(tmp_path: Path, need_program: Callable[[str], str]) -> None:
    """Both are in the tree of processes that is placed and accounted for, and both end with it."""
    for needed in ("nginx", "openssl"):
        need_program(needed)
    bench = Bench(tmp_path, QUICK._replace(share=512))
    with bench.upstreams(), bench.running("verify") as running:

        def there() -> list[int]:
            pids = [stat.pid for stat in accounts.tree(running["verify"].pid)]
            commands = b" ".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)
            return pids if all(part in commands for part in (b"pserve", b"nginx: master", b"nginx: worker")) else []

        pids = wait_until(there, "nginx's worker, which may begin behind the first connection")
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_the_ini_is_shown_without_variables() -> None:
    """What is printed with the table can be read as an ini file."""
    shown = servers.shown_ini()
    assert "%(" not in shown.replace("%(message)s", "")
    for line in ("threads = 4", "connection_limit = 20000", "asyncore_use_poll = true"):
        assert f"\n{line}\n" in shown


# Reading answers, as far as the loads do

WRK = """Running 1s test @ http://127.0.0.1:8080/own
  1 threads and 16 connections
  Latency Distribution
     50%  980.00us
     75%    1.26ms
     90%    2.00ms
     99%    1.50s
  2500 requests in 1.00s, 2.9MB read
Requests/sec:   2497.51
Transfer/sec:      2.90MB
"""


def test_what_wrk_prints_is_read() -> None:
    """Its units are microseconds, milliseconds and seconds."""
    assert wrk.parse(WRK) == {"answers": 2500, "rate": 2497.51, "p50": pytest.approx(0.98), "p99": 1500}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("Requests/sec", "  Non-2xx or 3xx responses: 7\nRequests/sec"), "Non-2xx or 3xx responses: 7"),
        (("Requests/sec", "  Socket errors: connect 0, read 1, write 0, timeout 0\nRequests/sec"), "read 1"),
        (("99%", "98%"), "not what wrk prints"),
        (("Requests/sec", "Pages/sec"), "not what wrk prints"),
    ],
)
def test_what_wrk_was_not_answered_is_no_figure(change: tuple[str, str], told: str) -> None:
    """Refusals and broken connections are quick: a rate that counts them means nothing."""
    with pytest.raises(wire.BadAnswer, match=told):
        wrk.parse(WRK.replace(*change))


def test_answers_other_than_200_are_refused() -> None:
    """A load that counted errors would measure something else."""
    assert wire.head_length(b"HTTP/1.1 200 OK\r\n") == 0
    assert wire.head_length(b"HTTP/1.1 200 OK\r\n\r\nbody") == 19
    assert wire.body_length(b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 12\r\n\r\n") == 12
    with pytest.raises(wire.BadAnswer, match="503"):
        wire.head_length(b"HTTP/1.1 503 Service Unavailable\r\n")
    with pytest.raises(wire.BadAnswer, match="without Content-Length"):
        wire.body_length(b"HTTP/1.1 200 OK\r\n\r\n")


def test_a_browser_sends_twelve_fields() -> None:
    """With Host there are twelve."""
    assert wire.request("/x", wire.BROWSER_FIELDS).count(b": ") == 12


# Running


def test_a_server_that_does_not_start_is_told_with_its_words(tmp_path: Path) -> None:
    """The failure carries what the process wrote."""
    command_line = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    with pytest.raises(ProcessFailed, match="ended with 1; it wrote: no such thing"):
        Service("broken", command_line, free_port(), tmp_path).__enter__()


def cores_of(pids: set[int]) -> set[frozenset[int]]:
    """Where the threads of these processes may run."""
    return {frozenset(os.sched_getaffinity(int(task))) for pid in pids for task in os.listdir(f"/proc/{pid}/task")}


def test_the_server_is_alone_on_its_core(tmp_path: Path, need_program: Callable[[str], str]) -> None:
    """It is a child of this process, as the load is and the other servers, and yet it is not where those are."""
    for name in ("nginx", "openssl"):
        need_program(name)
    bench = Bench(tmp_path, QUICK._replace(share=512))
    with bench.upstreams(), bench.running("bare", "proxy") as running:
        for alone, own, others in ((True, machine.ALONE, machine.OTHERS), (False, machine.ALL, machine.ALL)):
            service = running["bare"]
            bench.place(service, alone)
            with Load("small", port=service.port, path="/own", connections=1) as load:
                load.ready()
                server, all_of_us = ({stat.pid for stat in accounts.tree(pid)} for pid in (service.pid, os.getpid()))
                assert len(all_of_us - server) > 5, "this process, the load, the origins, another server"
                assert cores_of(server) == {frozenset(own)}
                assert cores_of(all_of_us - server) == {frozenset(others)}


def test_a_tiny_run(tmp_path: Path, need_program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers start, loads run, samples of both placements are there, and this process is where it was before."""
    for name in ("nginx", "openssl", "wrk"):
        need_program(name)
    monkeypatch.setattr(tunnels, "_COUNT", 20)
    monkeypatch.setattr(held, "_SECONDS", 0.2)
    monkeypatch.setattr(own_view, "CONNECTIONS", (16,))
    sizes = QUICK._replace(rounds=1, own_rounds=1, seconds=0.1, share=512, held=(20,), lasting_seconds=0.2)
    bench = Bench(tmp_path, sizes)
    bench.left_out.update(dict.fromkeys(("haproxy", "haproxy-mt", "nginx"), "not wanted"))
    with bench.upstreams():
        for scenario in (own_view, chunked, held, beside, tunnels):
            scenario.run(bench)
    assert os.sched_getaffinity(0) == machine.ALL
    assert set(bench.samples) >= {"chunked.cpu", "chunked.rate", "held20.p99", "tunnels.p99"}
    for data in ("own16", "beside"):
        asked = {
            f"{data}.{place}{figure}"
            for place in ("one", "two")
            for figure in ("", ".p50", ".p99", ".cpu", ".switches")
        }
        assert set(bench.samples) >= asked
    assert bench.samples["own16.two"]["bare"][0] > 0
    assert bench.samples["held20.done"]["proxy"][0] >= 0.2
