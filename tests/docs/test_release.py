"""What is said of versions is what the project says of itself."""

from __future__ import annotations

import re

import yaml

from tests.detach.test_waitress_contract import RELEASES
from tests.support.docs import PAGES, rows, section
from tests.support.paths import ROOT

PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
VERSIONS = {row[0]: row[1] for row in rows(PAGES["supported-versions.md"])}


def test_the_changes_begin_with_the_version_of_the_project() -> None:
    """A release has its heading, and a version that can be sorted."""
    found = re.search(r'^version = "(\d+\.\d+\.\d+(?:rc\d+)?)"$', PROJECT, re.MULTILINE)
    assert found is not None
    assert (ROOT / "CHANGES").read_text(encoding="utf-8").startswith(f"{found[1]} (")


def test_the_pythons_on_the_page_are_those_of_the_project() -> None:
    """From the least that is required to the last one that is named."""
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    assert VERSIONS["Python"] == f"CPython {named[0]} to {named[-1]}"
    assert f'requires-python = ">={named[0]}"' in PROJECT


def test_the_releases_of_waitress_on_the_page_are_those_that_are_tested() -> None:
    """The contract is held with each of them."""
    assert VERSIONS["waitress"] == f"{RELEASES[0]} to {RELEASES[-1]}"
    assert f'"waitress>={RELEASES[0].rpartition(".")[0]}"' in PROJECT


def test_every_extra_that_users_install_is_on_the_page_of_dependencies() -> None:
    """Those for contributors have sections of their own."""
    listed = PROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[$", listed, re.MULTILINE))
    shown = {row[0].strip("`") for row in rows(section("dependencies.md", "To see more"))}
    contributors = {"addons", "applications", "engines", "heavy_applications", "benchmarks"}
    contributors |= {"docs", "recipes", "release", "testing"}
    assert extras - contributors == shown


def test_read_the_docs_builds_what_make_docs_builds() -> None:
    """Its file names a configuration and an extra that exist, and takes warnings for errors as well."""
    told = yaml.safe_load((ROOT / ".readthedocs.yaml").read_text(encoding="utf-8"))
    assert (ROOT / told["sphinx"]["configuration"]).is_file()
    assert told["sphinx"]["fail_on_warning"] is True
    (extra,) = told["python"]["install"][0]["extra_requirements"]
    assert f"\n{extra} = [" in PROJECT


def test_the_example_for_github_runs_what_exists() -> None:
    """Its commands are targets of make or files, and its Pythons those of the project."""
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    assert jobs["python"]["strategy"]["matrix"]["version"] == named
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for command in [step["run"].split() for job in jobs.values() for step in job["steps"] if "run" in step]:
        assert (command[0] == "make" and command[1] in targets) or (ROOT / command[-1]).is_file(), command
