"""What the documents say is what the code does, as far as that can be compared."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

import zkbeat
from zkbeat import __main__ as entry
from zkbeat import cli, config, health

TOP = Path(__file__).resolve().parents[2]
PACKAGE = Path(zkbeat.__file__).resolve().parent
REFERENCE = TOP / "docs" / "reference.md"
DOCUMENTS = sorted([*TOP.glob("*.md"), *TOP.glob("docs/**/*.md")])

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def prose(path: Path) -> str:
    """Return a document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def section(heading: str) -> str:
    """Return what stands in the reference under a heading, with the sections below it."""
    level = heading.split(" ", maxsplit=1)[0]
    found = re.search(
        rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", prose(REFERENCE), re.MULTILINE | re.DOTALL
    )
    assert found, f"docs/reference.md has no {heading!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """Return the cells of all tables, without their headings."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    body = [line for at, line in enumerate(lines) if not line.startswith("|---") and not _heads(lines, at)]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in body]


def _heads(lines: list[str], at: int) -> bool:
    return at + 1 < len(lines) and lines[at + 1].startswith("|---")


def code(cell: str) -> str:
    return cell.strip("`")


def slug(heading: str) -> str:
    """Return the anchor that a heading gets on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")


def test_the_option_tables_are_the_options_of_the_command_line():
    documented = {
        code(row[0]): code(row[1]) or None for row in rows(section("## Options")) if code(row[0]).startswith("--")
    }
    real = {}
    for parameter in cli._commands()["run"].params:
        flags = [option for option in parameter.opts if option.startswith("--")]
        real.update(dict.fromkeys(flags, parameter.envvar))
    assert documented == real


def test_what_all_commands_share_is_documented_as_shared():
    documented = {code(row[0]) for row in rows(section("### Of every command that talks to ZooKeeper"))}
    for command in ("status", "step-down", "pause", "resume", "doctor"):
        shared = {option for p in cli._commands()[command].params if p.envvar for option in p.opts} - {"--lease"}
        assert shared == {word for word in documented if word.startswith("--")}, command


def test_secrets_are_documented_with_their_environment_variables_and_have_no_flag():
    documented = {code(row[0]): code(row[1]) for row in rows(section("## Options")) if not row[0].startswith("`--")}
    assert documented == {name.replace("_", "-"): f"ZKBEAT_{name.upper()}" for name in config.SECRETS}
    flags = {option for command in cli._commands().values() for p in command.params for option in p.opts}
    assert not {f"--{name}" for name in documented} & flags


def test_every_command_and_its_own_switches_are_documented():
    text = section("## Commands beside it")
    for command in entry.SUBCOMMANDS:
        assert f"`zkbeat {command}" in text, command
        if command == "health":
            continue
        for parameter in cli._commands()[command].params:
            if not parameter.envvar and parameter.name != "config":
                assert f"{parameter.opts[0]}" in text, f"{command} {parameter.opts[0]}"
    for switch in re.findall(r"^ +(--[a-z-]+)", health.USAGE, re.MULTILINE):
        assert switch in text, switch


def test_every_exit_code_is_documented():
    documented = {int(row[0]) for row in rows(section("## Exit codes"))}
    used = {0, 1, 126, 127}
    for path in PACKAGE.rglob("*.py"):
        module = importlib.import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
        used |= {value for name, value in vars(module).items() if name.startswith("EXIT_") and isinstance(value, int)}
    assert documented == used


def _said() -> dict[str, set[str]]:
    """Return the events of the log that the code names, each with its levels: empty where one is computed."""
    found: dict[str, set[str]] = {"bug": {"error"}}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or len(node.args) < 3:
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            level, event = node.args[:2]
            if name in {"Say", "say"} and isinstance(event, ast.Constant):
                levels = found.setdefault(event.value, set())
                levels |= {level.value} if isinstance(level, ast.Constant) else set()
    return found


def test_every_event_of_the_log_is_documented_with_its_levels():
    documented = {code(row[0]): set(row[1].split(", ")) for row in rows(section("## The log"))}
    said = _said()
    assert documented.keys() == said.keys()
    for event, levels in said.items():
        assert levels <= documented[event], event


def test_what_the_child_gets_in_its_environment_is_documented():
    documented = {code(row[0]) for row in rows(section("## What the child gets"))}
    given = re.findall(r'"(ZKBEAT_[A-Z_]+)": ', (PACKAGE / "sidecar.py").read_text(encoding="utf-8"))
    assert documented == set(given)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(TOP)))
def test_links_lead_somewhere(document):
    for link in _LINK.findall(prose(document)):
        if re.match(r"[a-z]+://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        if target.is_relative_to(TOP / "zkbeat"):  # where the tests run against an installed package
            target = PACKAGE / target.relative_to(TOP / "zkbeat")
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", prose(target), re.MULTILINE)
            assert anchor in map(slug, headings), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(TOP)))
def test_a_line_holds_one_sentence(document):
    for number, line in enumerate(prose(document).splitlines(), 1):
        if not line.startswith("|"):
            assert not re.search(r"[^.\s\d]\.\)? [A-Z]", line), f"line {number} of the prose: {line}"


def test_decisions_are_numbered_and_in_the_index():
    decisions = sorted((TOP / "docs" / "adr").glob("*.md"))
    index = (TOP / "docs" / "index.md").read_text(encoding="utf-8")
    for number, path in enumerate(decisions, 1):
        title = path.read_text(encoding="utf-8").splitlines()[0]
        assert path.name.startswith(f"{number:04d}-")
        assert title.startswith(f"# {number:04d} ")
        assert f"(adr/{path.name})" in index


def test_every_document_is_reached_from_the_index():
    index = (TOP / "docs" / "index.md").read_text(encoding="utf-8")
    for path in (TOP / "docs").glob("*.md"):
        if path.name != "index.md":
            assert f"({path.name})" in index, path.name


def test_the_changelog_keeps_its_format():
    lines = (TOP / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# Changelog"
    versions = [line for line in lines if line.startswith("## ")]
    assert versions[0] == "## [Unreleased]"
    for line in versions[1:]:
        assert re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", line), line
    kinds = {line for line in lines if line.startswith("### ")}
    assert kinds <= {f"### {kind}" for kind in ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")}
