"""What is built once and kept: whole or absent, made by one, forgotten after a day; steps, alone and side by side."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.debian import cache
from tests.harness.waiting import until

KEY, OLD = "0123456789abcdef", "fedcba9876543210"
LONG = 120.0
"""Seconds for which a step runs that is to be killed: more than a test may take."""

ENTRY = """
import sys, time
from tests.debian import cache
def make(partial):
    (partial / "half").touch()
    print("making", flush=True)
    sys.stdin.readline()
    (partial / "whole").touch()
cache.entry("thing", sys.argv[1], make)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SIDESTEP_E2E_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "PAUSE", 0.01)
    return cache.folder()


def whole(partial):
    (partial / "whole").touch()


def other(key=KEY):
    """Another process that makes the entry, as far as the first half until it is told to go on."""
    command = [sys.executable, "-c", ENTRY, key]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=cache.REPOSITORY)


def age(path, seconds):
    path.mkdir(exist_ok=True)
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def test_an_entry_is_made_once():
    made = []
    for _ in range(3):
        path = cache.entry("thing", KEY, lambda partial: made.append(whole(partial)))
        assert (path / "whole").exists()
    assert len(made) == 1


def test_an_entry_that_failed_is_absent_and_begins_anew_in_an_empty_folder(folder):
    def fail(partial):
        (partial / "log").touch()
        raise cache.BuildError("no")

    with pytest.raises(cache.BuildError):
        cache.entry("thing", KEY, fail)
    assert not (folder / f"thing-{KEY}").exists()
    assert (folder / "thing.partial" / "log").exists()
    path = cache.entry("thing", KEY, whole)
    assert [each.name for each in path.iterdir()] == ["whole"]


def test_an_entry_whose_maker_was_killed_is_absent(folder):
    with other() as process:
        process.stdout.readline()
        process.kill()
        process.wait()
    assert not (folder / f"thing-{KEY}").exists()
    assert [each.name for each in cache.entry("thing", KEY, whole).iterdir()] == ["whole"]


def test_two_processes_make_it_once(capfd):
    with other() as process, ThreadPoolExecutor(1) as pool:
        process.stdout.readline()
        waiting = pool.submit(cache.entry, "thing", KEY, lambda partial: pytest.fail("made twice"))
        until(lambda: "waiting for it" in capfd.readouterr().err, within=30, what="the second to wait")
        assert not waiting.done()
        process.stdin.write(b"go on\n")
        process.stdin.flush()
        assert sorted(each.name for each in waiting.result(30).iterdir()) == ["half", "whole"]


def test_two_threads_make_it_once():
    begun, made = threading.Barrier(2), []

    def make(partial):
        made.append(partial)
        whole(partial)

    def one():
        begun.wait(30)
        return cache.entry("thing", KEY, make)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(one), pool.submit(one)
        assert first.result(30) == second.result(30)
    assert len(made) == 1


def test_other_entries_do_not_wait():
    with cache.locked("other"):
        assert (cache.entry("thing", KEY, whole) / "whole").exists()


def test_an_older_version_is_forgotten_a_day_after_its_last_use(folder):
    unused, used = age(folder / f"thing-{OLD}", cache.IN_USE + 60), age(folder / f"thing-{'a' * 16}", cache.IN_USE - 60)
    longer = age(folder / f"thing-more-{OLD}", cache.IN_USE + 60)
    cache.entry("thing", KEY, whole)
    assert not unused.exists()
    assert used.exists()
    assert longer.exists()


def test_an_entry_that_is_used_stays(folder):
    made = age(folder / f"thing-{OLD}", cache.IN_USE + 60)
    assert cache.entry("thing", OLD, whole) == made
    cache.entry("thing", KEY, whole)
    assert made.exists()


def test_an_entry_whose_removal_is_interrupted_is_absent(folder, monkeypatch):
    old = age(folder / f"thing-{OLD}", cache.IN_USE + 60)
    for name in ("half", "whole"):
        (old / name).touch()
    age(old, cache.IN_USE + 60)
    rmtree = shutil.rmtree

    def interrupted(path):
        (path / "whole").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.forget("thing-*", but=folder)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    assert not old.exists()
    assert [each.name for each in cache.entry("thing", OLD, whole).iterdir()] == ["whole"]
    assert [each.name for each in folder.glob("thing*")] == [f"thing-{OLD}"]


def test_the_digest_tells_contents_names_modes_and_order_apart(tmp_path):
    file = tmp_path / "file"
    file.write_text("a")
    inner = tmp_path / "sub"
    (inner / "__pycache__").mkdir(parents=True)
    (inner / "x").write_text("a")
    seen = [
        cache.digest(file),
        cache.digest(file, "a"),
        cache.digest("a", file),
        cache.digest("ab"),
        cache.digest("a", "b"),
    ]
    seen.append(cache.digest(inner))
    (inner / "__pycache__" / "y").write_text("of no account")
    assert cache.digest(inner) == seen[-1]
    (inner / "x").rename(inner / "y")
    seen.append(cache.digest(inner))
    (inner / "y").chmod(0o755)
    seen.append(cache.digest(inner))
    file.write_text("b")
    seen.append(cache.digest(file))
    assert len(set(seen)) == len(seen)


def step(tmp_path, script, **options):
    cache.step("the step", ["sh", "-c", script], log=tmp_path / "log", **{"within": LONG, **options})


def test_a_step_that_fails_tells_the_end_of_what_it_printed(tmp_path):
    with pytest.raises(cache.BuildError, match=r"(?s)the step: exit status 3\n.*last line"):
        step(tmp_path, "seq 1 100; echo last line; exit 3")


def test_a_step_is_tried_as_often_as_it_is_told(tmp_path):
    script = f"echo once >>{tmp_path}/tries; [ $(wc -l <{tmp_path}/tries) = 3 ]"
    with pytest.raises(cache.BuildError):
        step(tmp_path, script, attempts=2)
    step(tmp_path, script, attempts=2)


def test_a_late_step_is_killed_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SIGN_OF_LIFE", 0.05)
    with pytest.raises(cache.BuildError, match="not done after"):
        step(tmp_path, f"sleep {LONG} & echo $! >{tmp_path}/child; wait", within=1)
    assert ended(int((tmp_path / "child").read_text()))


def ended(pid):
    def gone():
        try:
            with open(f"/proc/{pid}/stat") as file:
                return file.read().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    return until(gone, within=30, what="the process to end")


def test_two_works_run_at_the_same_time():
    both = threading.Barrier(2)

    def work(result):
        both.wait(30)
        return result

    assert cache.side_by_side(lambda: work(1), lambda: work("two")) == (1, "two")


def sleeper(tmp_path):
    """A work whose step runs for long; `began` waits for it and returns its pid."""

    def began():
        pid = tmp_path / "pid"
        return int(until(lambda: pid.exists() and pid.read_text(), within=30, what="the step to begin"))

    return lambda: step(tmp_path, f"echo $$ >{tmp_path}/pid; exec sleep {LONG}", attempts=3), began


@pytest.mark.parametrize("swapped", [False, True])
def test_when_one_work_fails_the_step_of_the_other_is_killed_and_not_tried_again(tmp_path, swapped):
    work, began = sleeper(tmp_path)

    def fail():
        began()
        raise cache.BuildError("the first fault")

    with pytest.raises(cache.BuildError, match="the first fault"):
        cache.side_by_side(*([fail, work] if swapped else [work, fail]))
    assert ended(began())
    step(tmp_path, "true")


def test_an_interrupt_kills_the_steps_of_both(tmp_path):
    work, began = sleeper(tmp_path)

    def interrupt():
        pid = began()
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        ended(pid)
        step(tmp_path, f"touch {tmp_path}/begun")

    with pytest.raises(KeyboardInterrupt):
        cache.side_by_side(work, interrupt)
    assert ended(began())
    assert not (tmp_path / "begun").exists()


def test_an_interrupt_while_works_are_handed_over_ends_them_too(tmp_path, monkeypatch):
    work, began = sleeper(tmp_path)
    submit = ThreadPoolExecutor.submit

    def interrupted(pool, begin, given):
        if given is work:
            return submit(pool, begin, given)
        began()
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.side_by_side(work, lambda: None)
    assert ended(began())


def test_a_step_that_begins_just_when_the_other_fails_is_killed(tmp_path, monkeypatch):
    """Its process exists by then, but is not yet among those that are killed."""
    started, killed = threading.Event(), threading.Event()

    class Late(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.set()
            assert killed.wait(30)

    class Running(set):
        def __iter__(self):
            found = list(super().__iter__())
            killed.set()
            return iter(found)

    def fail():
        assert started.wait(30)
        raise cache.BuildError("the first fault")

    monkeypatch.setattr(subprocess, "Popen", Late)
    monkeypatch.setattr(cache, "_running", Running())
    with pytest.raises(cache.BuildError, match="the first fault"):
        cache.side_by_side(lambda: step(tmp_path, f"exec sleep {LONG}"), fail)
