from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkbeat.__main__ import SUBCOMMANDS, route

words = st.lists(st.sampled_from(["--", "-v", "--name", "health", "status", "celery", "beat", "", "é"]), max_size=8)


@pytest.mark.parametrize(
    ("argv", "routed"),
    [
        ([], ("run", [], [])),
        (["--", "celery", "beat"], ("run", [], ["celery", "beat"])),
        (["--hosts", "y", "--", "celery"], ("run", ["--hosts", "y"], ["celery"])),
        (["--hosts", "y", "--", "a", "--", "b"], ("run", ["--hosts", "y"], ["a", "--", "b"])),
        (["--", "health", "check"], ("run", [], ["health", "check"])),
        (["health", "--ready"], ("health", ["--ready"], [])),
        (["doctor", "--", "celery"], ("doctor", [], ["celery"])),
        (["--name", "health"], ("run", ["--name", "health"], [])),
        (["celery", "beat"], ("run", ["celery", "beat"], [])),
    ],
)
def test_what_stands_before_the_dashes_decides(argv, routed):
    assert route(argv) == routed


@given(words)
def test_nothing_is_lost_and_the_command_is_never_looked_at(argv):
    what, options, command = route(argv)
    before = argv[: argv.index("--")] if "--" in argv else argv
    assert command == (argv[len(before) + 1 :])
    assert options == (before[1:] if what in SUBCOMMANDS else before)
