"""The checks of this project as nox sessions. ``nox --list`` lists them, ``nox`` runs the usual ones."""

from __future__ import annotations

import nox

nox.needs_version = ">=2024.10"
nox.options.sessions = ["lint", "layers", "types", "verifytypes", "tests"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False

PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14", "3.15"]
PROJECT = nox.project.load_toml("pyproject.toml")


def install(session: nox.Session, *groups: str) -> None:
    """Install mpkit in editable mode, with its test dependencies and the dependency groups `groups`."""
    session.install("-e", ".[test]", *nox.project.dependency_groups(PROJECT, *groups))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, likely bugs and formatting (ruff)."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session
def layers(session: nox.Session) -> None:
    """Check that no layer imports a higher one (import-linter)."""
    install(session, "layers")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Run mypy and pyright, both strict, for two versions of Python; mypy also for macOS and Windows."""
    install(session, "types")
    for version in (PYTHONS[0], PYTHONS[-2]):
        session.run("mypy", "--python-version", version)
        session.run("pyright", "--pythonversion", version)
    for platform in ("darwin", "win32"):
        # Code for other systems is unreachable on this one: that is no error.
        session.run("mypy", "--platform", platform, "--no-warn-unreachable", "src")


@nox.session
def verifytypes(session: nox.Session) -> None:
    """Check that every public name is fully typed, as a user of the installed package sees it."""
    session.install(".", *nox.project.dependency_groups(PROJECT, "types"))
    session.run("pyright", "--verifytypes", "mpkit", "--ignoreexternal")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the test suite, as in the README."""
    install(session, "test")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the test suite and measure its line coverage, including lines that only child processes run."""
    install(session, "coverage")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation. Every broken reference is an error."""
    install(session, "docs")
    session.run("mkdocs", "build", "--strict", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Check that each example prints the expected output."""
    install(session, "test")
    session.run("python", "-m", "pytest", "tests/integration/test_examples.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure mpkit, the standard library and other packages on this machine."""
    install(session, "bench")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def stress(session: nox.Session) -> None:
    """Run the stress tests, for as long as ``--stress-seconds`` says. They are not part of the test suite."""
    install(session, "test")
    session.run("python", "-m", "pytest", "tests/stress", "--timeout=900", *session.posargs)
