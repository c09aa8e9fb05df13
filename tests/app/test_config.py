"""Configuration: what is declared becomes Pyramid's own routes and views, and every mistake stops the start."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationConflictError
from pyramid.scripts.proutes import PRoutesCommand
from pyramid.scripts.pviews import PViewsCommand
from pyramid.security import NO_PERMISSION_REQUIRED
from pyramid.session import SignedCookieSessionFactory

from pyramid_threaded_proxy import SettingsError
from tests.support.site import Policy, own_view, route, with_policy

UPSTREAM = "http://127.0.0.1:9"
EXCVIEW = "pyramid.tweens.excview_tween_factory"
TWEEN = "pyramid_threaded_proxy.tween.proxy_tween_factory"
KEYS = {"prefix": "/r", "upstream": UPSTREAM, "public": True}


def make(
    settings: dict[str, Any] | None = None, configure: Callable[[Configurator], None] | None = None, **options: Any
) -> Configurator:
    """A committed application; start-up errors are raised."""
    config = Configurator(settings=settings or {}, **options)
    config.include("pyramid_threaded_proxy")
    if configure is not None:
        configure(config)
    config.make_wsgi_app()
    return config


def application(global_settings: dict[str, str], **settings: str) -> Any:
    """What the ini file of the p-scripts' tests names."""
    config = Configurator(settings=settings)
    config.set_security_policy(Policy())
    return config.make_wsgi_app()


def faults(*arguments: Any, **options: Any) -> tuple[str, ...]:
    """The lines of the start-up error."""
    with pytest.raises(SettingsError) as caught:
        make(*arguments, **options)
    return caught.value.faults


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# Nothing is exposed by omission


def test_a_route_that_nobody_is_asked_for_is_an_error() -> None:
    """A route without permission, in an application without a default one, does not start."""
    settings = {"proxy.routes.r.prefix": "/r", "proxy.routes.r.upstream": UPSTREAM}
    (fault,) = faults(settings, with_policy)
    assert fault.startswith("proxy.routes.r: nobody would be asked")
    assert "proxy.routes.r.permission" in fault
    assert "proxy.routes.r.public = true" in fault


def test_a_permission_without_a_policy_is_an_error() -> None:
    """A permission is worth nothing in an application without a security policy."""
    settings = {"proxy.routes.r.prefix": "/r", "proxy.routes.r.upstream": UPSTREAM, "proxy.routes.r.permission": "view"}
    (fault,) = faults(settings)
    assert fault.startswith("proxy.routes.r.permission: 'view' would be asked of nobody")


def test_a_default_permission_is_enough() -> None:
    """With a default permission and a policy a route needs no permission of its own."""
    settings = {"proxy.routes.r.prefix": "/r", "proxy.routes.r.upstream": UPSTREAM}
    config = make(settings, security_policy=Policy(), default_permission="view")
    assert config.introspector.get("proxied routes", "r")["permission"] is None


def test_a_default_permission_that_asks_nobody_is_no_permission() -> None:
    """The default permission ``__no_permission_required__`` does not count as one."""
    settings = {"proxy.routes.r.prefix": "/r", "proxy.routes.r.upstream": UPSTREAM}
    (fault,) = faults(settings, security_policy=Policy(), default_permission=NO_PERMISSION_REQUIRED)
    assert fault.startswith("proxy.routes.r: nobody would be asked")


def test_a_default_permission_without_a_policy_is_an_error() -> None:
    """The default permission too needs a policy that is asked."""
    settings = {"proxy.routes.r.prefix": "/r", "proxy.routes.r.upstream": UPSTREAM}
    (fault,) = faults(settings, lambda config: config.set_default_permission("view"))
    assert "'view' would be asked of nobody" in fault


def test_all_faults_come_at_once() -> None:
    """What is wrong with several routes and the tweens is one error with a line for each."""
    settings = {
        "proxy.routes.a.prefix": "/a",
        "proxy.routes.a.upstream": UPSTREAM,
        "proxy.routes.b.prefix": "/b",
        "proxy.routes.b.upstream": UPSTREAM,
        "proxy.routes.b.permission": "view",
        "pyramid.tweens": EXCVIEW,
    }
    found = faults(settings)
    assert len(found) == 3
    assert [line.partition(":")[0] for line in found] == [
        "proxy.routes.a",
        "proxy.routes.b.permission",
        "pyramid.tweens",
    ]


@pytest.mark.parametrize("prefix", ["/a%7Bb%7D", "/a%7db"])
def test_a_prefix_that_pyramid_would_read_otherwise(prefix: str) -> None:
    """An escaped brace, which Pyramid would read as a placeholder, is refused."""
    with pytest.raises(SettingsError, match=r"proxy\.routes\.r\.prefix .*Pyramid's patterns can't hold"):
        make(route("r", UPSTREAM, prefix=prefix))


def test_a_prefix_below_placeholders() -> None:
    """A prefix has a fixed place: below a route prefix with placeholders it is an error."""

    def included(config: Configurator) -> None:
        config.add_proxy_route("r", **KEYS)

    with pytest.raises(SettingsError, match=r"'t/\{tenant\}' has placeholders"):
        make(configure=lambda config: config.include(included, route_prefix="/t/{tenant}"))


# Dotted names


def test_dotted_names_that_lead_nowhere_are_named() -> None:
    """Hooks and factories that can't be imported or called, files that can't be read and an upstream that no request
    could reach are start-up errors, with all the others, each with its key and value."""
    settings = {
        **route("a", UPSTREAM, hooks__request="nowhere.at_all", factory="tests.support.missing"),
        **route("b", UPSTREAM, hooks__complete="tests.support:missing", hooks__error="tests.app.test_config:KEYS"),
        **route("c", "http://h/v2%C2%80", tls__ca_file="/nowhere/ca.pem", max_body="much"),
    }
    config = Configurator(settings=settings)
    with pytest.raises(SettingsError) as caught:
        config.include("pyramid_threaded_proxy")
    found = caught.value.faults
    said = [line.partition(" (the ini settings): ") for line in found]
    assert sorted((key, problem.partition(":")[0]) for key, _, problem in said) == [
        ("proxy.routes.a.factory = 'tests.support.missing'", "can't be imported"),
        ("proxy.routes.a.hooks.request = 'nowhere.at_all'", "can't be imported"),
        ("proxy.routes.b.hooks.complete = 'tests.support:missing'", "can't be imported"),
        ("proxy.routes.b.hooks.error = 'tests.app.test_config:KEYS'", "is not callable, but a dict"),
        ("proxy.routes.c.max_body = 'much'", "is not a size; allowed"),
        ("proxy.routes.c.tls.ca_file = '/nowhere/ca.pem'", "can't be read"),
        ("proxy.routes.c.upstream = 'http://h/v2%C2%80'", "could never be asked for"),
    ]


# Tweens


def test_explicit_tweens_without_ours_are_an_error() -> None:
    """A ``pyramid.tweens`` list without the package's tween is a start-up error that names it."""
    (fault,) = faults({**route("r", UPSTREAM), "pyramid.tweens": EXCVIEW})
    assert fault.startswith(f"pyramid.tweens: {TWEEN} is missing")


def test_explicit_tweens_with_ours_are_fine() -> None:
    """A ``pyramid.tweens`` list that has the package's tween starts."""
    make({**route("r", UPSTREAM), "pyramid.tweens": f"{EXCVIEW}\n{TWEEN}"})


# Names


def test_a_name_declared_twice_is_an_error() -> None:
    """A name in the settings and in ``add_proxy_route`` is an error that names both sources."""
    (fault,) = faults(route("r", UPSTREAM), lambda config: config.add_proxy_route("r", **KEYS))
    assert fault == "proxy.routes.r: declared twice, by the settings and by add_proxy_route()"


def test_a_name_added_twice_is_a_conflict() -> None:
    """Two ``add_proxy_route`` of one name are Pyramid's own configuration conflict."""

    def twice(config: Configurator) -> None:
        config.add_proxy_route("r", **KEYS)
        config.add_proxy_route("r", **{**KEYS, "prefix": "/other"})

    with pytest.raises(ConfigurationConflictError, match=r"'route', 'r'"):
        make(configure=twice)


def test_a_name_added_twice_under_autocommit_is_an_error() -> None:
    """Where Pyramid detects no conflicts, the second declaration is still an error."""

    def twice(config: Configurator) -> None:
        config.add_proxy_route("r", **KEYS)
        config.add_proxy_route("r", **KEYS)

    assert "declared twice" in faults(configure=twice, autocommit=True)[0]


def test_one_include_overrides_another() -> None:
    """The name may not be taken by an included declaration that Pyramid would drop without a word."""

    def included(config: Configurator) -> None:
        config.add_proxy_route("r", **{**KEYS, "prefix": "/inner"})

    def both(config: Configurator) -> None:
        config.include(included)
        config.add_proxy_route("r", **KEYS)

    assert "declared twice" in faults(configure=both)[0]


@pytest.mark.parametrize("autocommit", [False, True], ids=["actions", "autocommit"])
def test_a_name_that_the_application_bears_is_an_error(autocommit: bool) -> None:
    """An application's route of the same name replaces an included one: our view would answer at its URL."""
    found = faults(route("r", UPSTREAM), lambda config: own_view(config, "r", "/own"), autocommit=autocommit)
    assert found == ("proxy.routes.r: the application has a route of that name, which took its place; rename one",)


def test_a_name_that_the_application_took_before_is_an_error() -> None:
    """The same where the application's route was there before the include."""
    config = Configurator(settings=route("r", UPSTREAM))
    own_view(config, "r", "/own")
    config.include("pyramid_threaded_proxy")
    with pytest.raises(SettingsError, match="took its place"):
        config.make_wsgi_app()


# What is seen


def test_introspectables() -> None:
    """Each route is an introspectable of the category ``proxied routes``, with its settings, related to Pyramid's."""
    config = make(route("r", UPSTREAM), lambda config: config.add_proxy_route("other", **{**KEYS, "prefix": "/o"}))
    found = config.introspector.get_category("proxied routes")
    assert {item["introspectable"]["name"]: item["introspectable"]["mount"] for item in found} == {
        "r": "/r",
        "other": "/o",
    }
    assert found[0]["introspectable"]["upstream"] == UPSTREAM
    assert [related.category_name for related in found[0]["related"]] == ["routes"]


@pytest.fixture
def ini(tmp_path: Path) -> str:
    """An application's ini file with a proxied route."""
    path = tmp_path / "site.ini"
    path.write_text(
        f"[app:main]\nuse = call:{__name__}:application\npyramid.includes = pyramid_threaded_proxy\n"
        f"proxy.routes.reports.prefix = /reports\nproxy.routes.reports.upstream = {UPSTREAM}\n"
        "proxy.routes.reports.permission = view\nproxy.own_cookies = session\n"
    )
    return str(path)


def test_proutes_shows_the_routes(ini: str) -> None:
    """``proutes`` lists a proxied route as any other, and starts no thread for it."""
    before = threading.active_count()
    command = PRoutesCommand(["proutes", ini], quiet=True)
    lines: list[str] = []
    command.out = lines.append
    assert command.run() == 0
    assert any("reports" in line and "/reports{proxied" in line and "proxy_view_of_reports" in line for line in lines)
    assert threading.active_count() == before


def test_pviews_shows_the_views(ini: str) -> None:
    """``pviews`` says which view, with which permission, answers below the mount."""
    command = PViewsCommand(["pviews", ini, "/reports/a"], quiet=True)
    lines: list[str] = []
    command.out = lines.append
    assert command.run() == 0
    text = "\n".join(lines)
    assert "reports" in text
    assert "proxy_view_of_reports" in text
    assert "required permission = view" in text


def test_nothing_is_started() -> None:
    """Neither the include nor the finished application starts a thread."""
    before = threading.active_count()
    make(route("r", UPSTREAM))
    assert threading.active_count() == before


# Warnings


@pytest.mark.parametrize("pattern", ["/r", "/r/x", "/r/{id}", "/{name:.*}", "/{a}/{b}"])
def test_a_mount_that_the_application_takes_is_warned_of(pattern: str, caplog: pytest.LogCaptureFixture) -> None:
    """An application's route that matches below a mount is warned of by both names."""
    make(route("r", UPSTREAM), lambda config: own_view(config, "mine", pattern))
    (warning,) = warnings(caplog)
    assert "'mine'" in warning
    assert "'r'" in warning


@pytest.mark.parametrize("pattern", ["/", "/rx", "/r-{id}", "/own/r"])
def test_a_mount_beside_is_not_warned_of(pattern: str, caplog: pytest.LogCaptureFixture) -> None:
    """Routes that take nothing below the mount are nobody's business."""
    make(route("r", UPSTREAM), lambda config: own_view(config, "mine", pattern))
    assert warnings(caplog) == []


@pytest.mark.parametrize("why", ["session", "policy"])
def test_own_cookies_that_were_not_named_are_warned_of(why: str, caplog: pytest.LogCaptureFixture) -> None:
    """An application with a session or a policy, whose routes let cookies up, is warned once if it names none."""

    def configure(config: Configurator) -> None:
        if why == "session":
            config.set_session_factory(SignedCookieSessionFactory("secret"))
        else:
            config.set_security_policy(Policy())

    make({**route("a", UPSTREAM), **route("b", UPSTREAM)}, configure)
    (warning,) = warnings(caplog)
    assert warning.startswith("proxy.own_cookies is not set")
    assert "auth_tkt, csrf_token, session" in warning


@pytest.mark.parametrize("extra", [{"proxy.own_cookies": ""}, {"proxy.routes.r.request.cookies": ""}])
def test_own_cookies_are_not_warned_of(extra: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """Whoever has set `own_cookies`, or lets no cookie up, hears nothing."""
    make({**route("r", UPSTREAM), **extra}, with_policy)
    assert warnings(caplog) == []
