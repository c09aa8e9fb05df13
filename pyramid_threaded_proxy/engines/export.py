"""From an application's routes to the files of an engine, with what it can't hold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from pyramid_threaded_proxy.engines import caddy, envoy, haproxy, nginx, traefik
from pyramid_threaded_proxy.engines.site import FrontedRoute, FrontedSite
from pyramid_threaded_proxy.engines.support import Finding, findings
from pyramid_threaded_proxy.upstream.origin import UNIX

#: Each engine's own: from a site to the names and texts of its files.
EXPORTERS: dict[str, Callable[[FrontedSite], dict[str, str]]] = {
    "nginx": nginx.files, "haproxy": haproxy.files, "envoy": envoy.files, "caddy": caddy.files,
    "traefik": traefik.files,
}  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """Files by name, or what stands in their way."""

    files: Mapping[str, str]
    warnings: list[Finding] = field(default_factory=list)
    #: Keys that the engine can't hold, and nobody has accepted: there are no files then.
    refused: list[Finding] = field(default_factory=list)


def export(engine: str, site: FrontedSite, accepted: Collection[str]) -> Exported:
    """The configuration of `engine` for a site; `accepted` are keys that it may lack, each a comment in its place."""
    found = [*findings(engine, site), *_of_upstreams(site), *_of_sockets(engine, site)]
    refused = [one for one in found if one.refused and one.key not in accepted]
    warnings = [one for one in found if not one.refused]
    if refused:
        return Exported({}, warnings, refused)
    left_out = [one for one in found if one.refused]
    notes = "".join(f"# left out, and accepted: {one}\n" for one in left_out)
    files = {name: notes + text for name, text in EXPORTERS[engine](site).items()}
    return Exported(files, warnings)


def _of_upstreams(site: FrontedSite) -> list[Finding]:
    """Several upstreams that are not alike: the target that the application tells is right for one of them alone."""
    differ = tuple(route.name for route in site.routes if not _are_alike(route))
    why = "its upstreams have different schemes or base paths: the target is right for one of them alone"
    return [Finding("upstream", differ, why, refused=True)] if differ else []


def _of_sockets(engine: str, site: FrontedSite) -> list[Finding]:
    """Traefik has no way to a Unix socket."""
    names = tuple(
        route.name for route in site.routes if any(upstream.origin.scheme == UNIX for upstream in route.upstreams)
    )
    return (
        [Finding("upstream", names, "it knows no Unix sockets", refused=True)] if names and engine == "traefik" else []
    )


def _are_alike(route: FrontedRoute) -> bool:
    return len({(one.origin.scheme == "https", one.base) for one in route.upstreams}) == 1
