"""The guard by itself: whatever becomes of the sidecar, of it, or of the child, no child outlives its lease."""

from __future__ import annotations

import os
import signal
import sys

import psutil
import pytest

from tests.process.driving import FakeSidecar, signals_in, status, stop
from tests.support.nodes import alive, wait_dead
from tests.support.waiting import wait_until
from zkbeat import clock
from zkbeat.core.custody import ANSWER_WITHIN_S, ORPHAN_GRACE_S
from zkbeat.core.lease import KILL_MARGIN_S
from zkbeat.guard import SHRUGGED_OFF

MARGIN_S = 0.5
"""How late a busy machine may make us see what has happened in time."""


def within(at: float, since: float, least_s: float, most_s: float) -> bool:
    return least_s <= at - since <= most_s + MARGIN_S


# the sidecar is killed, or hangs


@pytest.mark.parametrize("own", ["child", "child+stubborn"])
def test_a_killed_sidecar_takes_its_child_along_within_the_grace(sidecar, kin, own):
    family = kin(own)
    sidecar.begin(family.argv)
    pid = family.wait_ready(sidecar.report)["child"]
    killed_at = clock.now()
    os.kill(sidecar.pid, signal.SIGKILL)
    wait_dead([pid, sidecar.guard], ORPHAN_GRACE_S + MARGIN_S)
    assert family.signals("child") == ["SIGTERM"]
    assert within(family.when("child", "SIGTERM"), killed_at, 0.0, 0.0)
    if own == "child":
        assert within(clock.now(), killed_at, 0.0, 0.0), "it could have ended at once"


def test_the_grace_of_an_orphan_does_not_go_beyond_its_lease(sidecar, kin):
    family = kin("child+stubborn")
    began_at = sidecar.begin(family.argv, 0.6, 0.9)
    pid = family.wait_ready(sidecar.report)["child"]
    os.kill(sidecar.pid, signal.SIGKILL)
    wait_dead([pid], began_at + 0.9 + MARGIN_S / 2 - clock.now())


def test_a_suspended_sidecar_changes_nothing_about_the_deadline_and_is_killed_for_its_silence(sidecar, kin):
    family = kin("child+stubborn")
    began_at = sidecar.begin(family.argv, 0.7, 1.0)
    pid = family.wait_ready(sidecar.report)["child"]
    stop(sidecar.pid)
    wait_until(lambda: not alive(pid), 5, "the child dead", sidecar.report, every_s=0.005)
    dead_at = clock.now()
    assert within(family.when("child", "SIGTERM"), began_at, 0.7, 0.7)
    assert within(dead_at, began_at, 1.0, 1.0)
    assert alive(sidecar.pid), "it has a second to answer"
    wait_dead([sidecar.pid, sidecar.guard], ANSWER_WITHIN_S + MARGIN_S)
    assert within(clock.now(), dead_at, ANSWER_WITHIN_S - 0.1, ANSWER_WITHIN_S)


def test_a_sidecar_that_answers_is_not_killed(sidecar, kin):
    family = kin("child")
    sidecar.begin(family.argv, 0.5, 0.8)
    assert sidecar.event("ChildDead")["overdue"] is True
    sidecar.order("answer")
    wait_dead([sidecar.guard], 2)
    assert alive(sidecar.pid)


# the guard is killed, or hangs


@pytest.mark.parametrize("also_the_sidecar", [False, True], ids=["the guard alone", "with the sidecar"])
@pytest.mark.parametrize("shell", [False, True], ids=["the child itself", "behind sh -c"])
def test_a_killed_guard_takes_everything_along_at_once(sidecar, kin, shell, also_the_sidecar):
    family = kin("child+stubborn", "fork:grandchild+stubborn", shell=shell)
    sidecar.begin(family.argv)
    pids = [*family.wait_ready(sidecar.report).values(), sidecar.child()]
    if also_the_sidecar:
        # Stopped first, so that it cannot help in between.
        stop(sidecar.pid)
        os.kill(sidecar.pid, signal.SIGKILL)
        # The guard notices: it must not have the time to act on that.
    os.kill(sidecar.guard, signal.SIGKILL)
    wait_dead(pids, 0.25, "child and grandchildren dead, by the kernel's hand")
    if not also_the_sidecar:
        sidecar.event("GuardGone", 2)


def test_the_leash_works_without_anybody_to_help(sidecar, kin):
    family = kin("child+stubborn", "fork:grandchild+stubborn", shell=True)
    sidecar.begin(family.argv)
    pids = [*family.wait_ready(sidecar.report).values(), sidecar.child()]
    stop(sidecar.pid)
    os.kill(sidecar.guard, signal.SIGKILL)
    wait_dead(pids, 0.25, "child and grandchildren dead, while the sidecar sleeps")


def test_the_sidecar_buries_what_a_killed_guard_leaves_behind(sidecar, kin):
    family = kin("child", "daemon:stray+stubborn")
    sidecar.begin(family.argv)
    pids = family.wait_ready(sidecar.report).values()
    os.kill(sidecar.guard, signal.SIGKILL)
    assert sidecar.event("GuardGone", 2)["left"] == [], "reported gone only once all are dead"
    assert not [pid for pid in pids if alive(pid)]


def test_a_suspended_guard_is_for_the_sidecar_to_notice_and_its_death_is_the_childs(sidecar, kin):
    family = kin("child+stubborn")
    sidecar.begin(family.argv)
    pid = family.wait_ready(sidecar.report)["child"]
    stop(sidecar.guard)
    sidecar.order("extend", clock.now() + 50, clock.now() + 70)
    assert not sidecar.events("GuardConfirmed")
    os.kill(sidecar.guard, signal.SIGKILL)
    wait_dead([pid], 0.25)
    assert not sidecar.events("GuardConfirmed")


@pytest.mark.parametrize("frozen", ["the guard", "the node"])
def test_the_kernel_keeps_the_deadline_of_a_guard_that_is_suspended(sidecar, kin, frozen):
    family = kin("child+stubborn", "fork:below+stubborn")
    sidecar.begin(family.argv, 0.6, 0.8)
    pids = [*family.wait_ready(sidecar.report).values()]
    for pid in [sidecar.guard] if frozen == "the guard" else [sidecar.pid, sidecar.guard, *pids]:
        stop(pid)
    sidecar.order("extend", clock.now() + 50, clock.now() + 60)  # comes too late, however early it was sent
    wait_dead([sidecar.guard, *pids], 0.8 + KILL_MARGIN_S + MARGIN_S)


def test_the_kernel_leaves_a_guard_in_peace_whose_lease_is_extended(sidecar, kin):
    family = kin("child")
    began = sidecar.begin(family.argv, 0.6, 0.8)
    pid = family.wait_ready(sidecar.report)["child"]
    sidecar.order("extend", began + 50, began + 60)
    sidecar.event("GuardConfirmed")
    stop(sidecar.guard)
    wait_until(lambda: clock.now() > began + 1.2, 5, "the first deadline is over")
    assert alive(pid)
    assert alive(sidecar.guard)


def test_the_kernel_leaves_a_guard_in_peace_whose_child_is_dead(sidecar):
    began = sidecar.begin([sys.executable, "-c", ""], 0.6, 0.8)
    sidecar.event("ChildDead")
    sidecar.order("tell", {"do": "place", "znode": "/none", "led": False, "access": {}, "note": "/none"})
    stop(sidecar.guard)
    wait_until(lambda: clock.now() > began + 1.2, 5, "the deadline is over")
    assert alive(sidecar.guard)


# deadlines


def test_the_soft_deadline_asks_and_the_hard_one_kills_all_that_it_ever_started(sidecar, kin):
    family = kin("child+stubborn", "fork:grandchild+stubborn", "daemon:stray+stubborn", "fork:gentle")
    began_at = sidecar.begin(family.argv, 0.7, 1.1)
    pids = family.wait_ready(sidecar.report)
    assert os.getsid(pids["stray"]) != os.getsid(pids["child"])
    dead = sidecar.event("ChildDead", 5)
    assert within(dead["at"], began_at, 1.1, 1.1)
    assert dead["left"] == [], "reported only once all are dead"
    assert not [name for name, pid in pids.items() if alive(pid)]
    assert dead["overdue"] is True
    assert dead["code"] == 128 + signal.SIGKILL
    for name in ("child", "grandchild", "gentle"):
        assert family.signals(name) == ["SIGTERM"], name
        assert within(family.when(name, "SIGTERM"), began_at, 0.7, 0.7), name


def test_the_hard_deadline_kills_a_group_that_is_stopped(sidecar, kin):
    family = kin("child")
    sidecar.begin(family.argv, 0.5, 0.7)
    stop(family.wait_ready(sidecar.report)["child"])
    assert sidecar.event("ChildDead", 3)["code"] == 128 + signal.SIGKILL


def test_an_extension_moves_the_deadlines_in_the_lease_file_too(sidecar, kin):
    family = kin("child+stubborn")
    began_at = sidecar.begin(family.argv, 0.6, 0.9)
    pid = family.wait_ready(sidecar.report)["child"]
    assert sidecar.published_lease() == pytest.approx((began_at + 0.6, began_at + 0.9), abs=1e-6)
    sidecar.order("extend", began_at + 1.4, began_at + 1.7)
    sidecar.event("GuardConfirmed")
    assert sidecar.published_lease() == pytest.approx((began_at + 1.4, began_at + 1.7), abs=1e-6)
    wait_until(lambda: not alive(pid), 5, "the child dead", every_s=0.005)
    assert within(clock.now(), began_at, 1.7, 1.7)
    assert within(family.when("child", "SIGTERM"), began_at, 1.4, 1.4)


def test_an_extension_after_the_soft_deadline_does_not_save_the_child(sidecar, kin):
    family = kin("child+stubborn")
    began_at = sidecar.begin(family.argv, 0.5, 1.0)
    pid = family.wait_ready(sidecar.report)["child"]
    wait_until(lambda: family.signals("child"), 5, "TERM", sidecar.report)
    sidecar.order("extend", began_at + 50, began_at + 60)
    wait_until(lambda: not alive(pid), 5, "the child dead", every_s=0.005)
    assert within(clock.now(), began_at, 1.0, 1.0)
    assert sidecar.published_lease()[1] == pytest.approx(began_at + 1.0, abs=1e-6)


def test_an_order_to_begin_after_the_hard_deadline_starts_nothing(sidecar, kin):
    sidecar.begin(kin("child").argv, -1.0, -0.5)
    sidecar.order("tell", {"do": "stop", "kill_at": clock.now()})
    sidecar.order("answer")
    wait_dead([sidecar.guard], 2)
    assert not sidecar.events("ChildStarted")


def test_the_lease_file_is_private(sidecar, kin):
    sidecar.begin(kin("child").argv)
    sidecar.child()
    assert sidecar.lease_file.stat().st_mode & 0o777 == 0o600


# the child ends by itself


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 1", 1), ("exit 75", 75), ("exit 255", 255), ("kill -9 $$", 137), ("kill -15 $$", 143)],
)
def test_how_a_child_ended_is_reported_as_a_shell_would(sidecar, script, code):
    sidecar.begin(["sh", "-c", script])
    dead = sidecar.event("ChildDead")
    assert (dead["code"], dead["overdue"], dead["error"]) == (code, False, None)


def test_what_a_child_leaves_behind_is_killed_before_its_end_is_reported(sidecar, kin):
    family = kin("child+stubborn", "fork:grandchild+stubborn", "daemon:stray+stubborn+large")
    sidecar.begin(family.argv)
    pids = family.wait_ready(sidecar.report)
    os.kill(pids["child"], signal.SIGKILL)
    dead = sidecar.event("ChildDead", 2)
    assert (dead["code"], dead["left"]) == (137, [])
    assert not [name for name, pid in pids.items() if alive(pid)]


def test_a_daemon_that_is_left_behind_by_a_clean_exit_is_killed_too(sidecar, kin):
    family = kin("daemon+stubborn")
    sidecar.begin(["sh", "-c", 'setsid "$@" & exit 0', "sh", *family.argv])
    assert sidecar.event("ChildDead", 2)["code"] == 0
    assert not [pid for pid in sidecar.pids() if pid not in {sidecar.pid, sidecar.guard}]


def test_a_command_that_is_not_found_is_127(sidecar):
    sidecar.begin(["no-such-command-anywhere"])
    dead = sidecar.event("ChildDead")
    assert dead["code"] == 127
    assert "no-such-command-anywhere" in dead["error"]
    assert not sidecar.events("ChildStarted")


def test_a_command_that_may_not_be_run_is_126(sidecar, tmp_path):
    (tmp_path / "text").write_text("not a program\n")
    sidecar.begin([str(tmp_path / "text")])
    dead = sidecar.event("ChildDead")
    assert (dead["code"], "Permission denied" in dead["error"]) == (126, True)


# what the child gets


def test_the_childs_output_passes_through_byte_for_byte(sidecar):
    size = 300_000
    script = (
        "import os\n"
        f"left = memoryview(bytes(range(256)) * ({size} // 256))\n"
        "while left: left = left[os.write(1, left):]"
    )
    sidecar.begin([sys.executable, "-I", "-S", "-c", script])
    assert sidecar.event("ChildDead")["code"] == 0
    assert sidecar.output == bytes(range(256)) * (size // 256)


def test_the_childs_environment_is_what_the_sidecar_says_in_any_bytes(sidecar):
    value = os.fsdecode(b"\xff\xfe=\xc3\xa4\n'")
    given = {"ODD": value, **{key: sidecar.env[key] for key in sidecar.env if key.startswith("NODE_")}}
    sidecar.begin(["/bin/sleep", "1000"], env=given)
    pid = sidecar.child()
    found = open(f"/proc/{pid}/environ", "rb").read().rstrip(b"\0").split(b"\0")  # noqa: PTH123, SIM115
    assert sorted(found) == sorted(os.fsencode(f"{key}={given[key]}") for key in given)


def test_an_order_larger_than_the_socket_takes_at_once_arrives(sidecar):
    large = {f"LARGE_{n}": "x" * 100_000 for n in range(8)}
    sidecar.begin(["sh", "-c", "exit ${#LARGE_7}"], env={**sidecar.env, **large})
    assert sidecar.event("ChildDead")["code"] == 100_000 % 256


def test_the_child_leads_a_session_and_a_group_of_its_own(sidecar):
    sidecar.begin(["sleep", "1000"])
    pid = sidecar.child()
    assert os.getsid(pid) == os.getpgid(pid) == pid


def test_the_childs_signals_are_as_if_nothing_was_in_between(sidecar):
    sidecar.begin(["sleep", "1000"])
    pid = sidecar.child()
    # Python ignores SIGPIPE and SIGXFSZ for itself, and undoes that for those whom it starts.
    assert signals_in(status(pid, "SigIgn")) <= signals_in(status(os.getpid(), "SigIgn")) - {
        signal.SIGPIPE,
        signal.SIGXFSZ,
    }
    assert signals_in(status(pid, "SigBlk")) == set()


def test_what_was_ignored_before_stays_ignored_in_the_child(tmp_path):
    with FakeSidecar(tmp_path, prefix=["sh", "-c", 'trap "" HUP USR1; exec "$@"', "sh"]) as sidecar:
        sidecar.begin(["sleep", "1000"])
        pid = sidecar.child()
        ignored = signals_in(status(pid, "SigIgn"))
        assert {signal.SIGHUP, signal.SIGUSR1} <= ignored
        assert signal.SIGTERM not in ignored


def test_no_descriptor_of_the_guards_reaches_the_child_but_the_lock_and_the_leash(sidecar):
    sidecar.begin(["sleep", "1000"])
    pid = sidecar.child()
    names = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd") if int(fd) > 2]  # noqa: PTH115, PTH208
    assert sorted(name.partition(":")[0] for name in names) == sorted([str(sidecar.runtime_dir), "pipe"])


# signals to the guard


@pytest.mark.parametrize("number", sorted(set(SHRUGGED_OFF)), ids=lambda number: number.name)
def test_a_signal_to_the_guard_does_nothing(sidecar, kin, number):
    family = kin("child")
    sidecar.begin(family.argv)
    pid = family.wait_ready(sidecar.report)["child"]
    for _ in range(3):
        os.kill(sidecar.guard, number)
    sidecar.order("extend", clock.now() + 50, clock.now() + 70)
    sidecar.event("GuardConfirmed", 2)
    assert psutil.Process(sidecar.guard).status() != psutil.STATUS_STOPPED
    assert alive(pid)
    assert family.signals("child") == []


def test_a_signal_that_the_sidecar_passes_on_reaches_the_child(sidecar, kin):
    family = kin("child")
    sidecar.begin(family.argv)
    family.wait_ready(sidecar.report)
    sidecar.order("tell", {"do": "signal", "number": int(signal.SIGHUP)})
    wait_until(lambda: family.signals("child") == ["SIGHUP"], 2, "HUP", sidecar.report)


# the host lock


@pytest.mark.parametrize("last", ["sidecar", "guard"])
def test_the_host_lock_is_free_only_once_sidecar_guard_and_child_are_all_dead(sidecar, kin, last):
    family = kin("child+stubborn")
    sidecar.begin(family.argv)
    pid = family.wait_ready(sidecar.report)["child"]
    assert not sidecar.lock_is_free()
    if last == "guard":
        os.kill(sidecar.pid, signal.SIGKILL)
        wait_until(lambda: family.signals("child"), 2, "TERM", sidecar.report)
        while alive(pid):
            assert not sidecar.lock_is_free() or not alive(pid)
        wait_until(sidecar.lock_is_free, 2, "the lock is free", sidecar.pids)
        assert not alive(sidecar.guard)
    else:
        os.kill(sidecar.guard, signal.SIGKILL)
        sidecar.event("GuardGone", 2)
        assert not sidecar.lock_is_free()
        os.kill(sidecar.pid, signal.SIGKILL)
        wait_until(sidecar.lock_is_free, 2, "the lock is free", sidecar.pids)


def test_a_child_that_was_left_alone_by_everybody_still_holds_the_host_lock(sidecar, kin):
    # Only one that has left group and session can be: the kernel's signals do not reach it.
    family = kin("child", "daemon:stray")
    sidecar.begin(family.argv)
    stray = family.wait_ready(sidecar.report)["stray"]
    for pid in (sidecar.pid, sidecar.guard):
        stop(pid)
    for pid in (sidecar.pid, sidecar.guard):
        os.kill(pid, signal.SIGKILL)
    wait_dead([sidecar.guard, sidecar.child()], 2)
    assert alive(stray)
    assert not sidecar.lock_is_free()
    os.kill(stray, signal.SIGKILL)
    wait_until(sidecar.lock_is_free, 2, "the lock is free", sidecar.pids)
