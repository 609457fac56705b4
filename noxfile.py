"""The checks of this project, one session each: ``nox --list`` names them, ``nox`` runs the usual ones."""

from __future__ import annotations

import nox

nox.needs_version = ">=2024.10"
nox.options.sessions = ["lint", "layers", "types", "verifytypes", "tests"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False

PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14", "3.15"]
PROJECT = nox.project.load_toml("pyproject.toml")


def install(session: nox.Session, *groups: str) -> None:
    """Install mpkit as it stands, editable, with what `groups` of pyproject.toml list."""
    session.install("-e", ".[test]", *nox.project.dependency_groups(PROJECT, *groups))


@nox.session
def lint(session: nox.Session) -> None:
    """Style, likely bugs, formatting."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session
def layers(session: nox.Session) -> None:
    """No floor imports a higher one."""
    install(session, "layers")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Both type checkers, both strict, for the oldest and the newest Python; one of them for each system."""
    install(session, "types")
    for version in (PYTHONS[0], PYTHONS[-2]):
        session.run("mypy", "--python-version", version)
        session.run("pyright", "--pythonversion", version)
    for platform in ("darwin", "win32"):
        # What is for other systems cannot be reached.
        session.run("mypy", "--platform", platform, "--no-warn-unreachable", "src")


@nox.session
def verifytypes(session: nox.Session) -> None:
    """Every public name is fully typed, as a user of the installed package sees it."""
    session.install(".", *nox.project.dependency_groups(PROJECT, "types"))
    session.run("pyright", "--verifytypes", "mpkit", "--ignoreexternal")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The suite as the README runs it."""
    install(session, "test")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """The suite with every line counted, those that only child processes run included."""
    install(session, "coverage")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, where every broken reference is an error."""
    install(session, "docs")
    session.run("mkdocs", "build", "--strict", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Each example prints what it says it prints."""
    install(session, "test")
    session.run("python", "-m", "pytest", "tests/integration/test_examples.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """mpkit beside the standard library, in one run on one machine."""
    install(session, "bench")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def stress(session: nox.Session) -> None:
    """Seeded chaos for as long as asked for; not part of the usual run."""
    install(session, "test")
    session.run("python", "-m", "pytest", "tests/stress", "--timeout=900", *session.posargs)
