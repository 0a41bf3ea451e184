"""The parts of `make kernels` that boot nothing: choosing packages and modules, reading reports, the table."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys

import pytest

from sidestep.node import doctor
from tests.debian.cache import REPOSITORY, BuildError
from tests.harness.processes import alive, child
from tests.harness.waiting import until
from tests.kernels import guest as guests
from tests.kernels import image, machine, packages, report, steps
from tests.kernels.machine import Guest, GuestError
from tests.kernels.packages import Kernel
from tests.kernels.report import Outcome, Report, ReportError
from tests.kernels.steps import Step

GOOD = Outcome("demo", 0, 12.5, passed=21)


def depends(packages):
    """What `apt-cache depends` prints of each package."""
    return lambda name: "".join([f"{name}\n", *(f"  {line}\n" for line in packages[name])])


def test_the_image_has_the_modules_or_depends_on_them():
    older = {
        packages.META: ["Depends: linux-image-6.12.117+deb13-cloud-amd64"],
        "linux-image-6.12.117+deb13-cloud-amd64": [
            "Depends: kmod",
            " |Depends: linux-initramfs-tool",
            "Suggests: grub",
        ],
    }
    assert packages.packages(depends(older)) == ["linux-image-6.12.117+deb13-cloud-amd64"]
    newer = {
        packages.META: ["Depends: linux-base-cloud-amd64", "Depends: linux-image-7.2.13+deb14-cloud-amd64"],
        "linux-image-7.2.13+deb14-cloud-amd64": [
            "Depends: linux-base-7.2.13+deb14-cloud-amd64",
            "Depends: linux-binary-7.2.13+deb14-cloud-amd64",
            "Depends: linux-modules-7.2.13+deb14-cloud-amd64",
        ],
    }
    assert packages.packages(depends(newer)) == [
        f"linux-{part}-7.2.13+deb14-cloud-amd64" for part in ("image", "binary", "modules")
    ]
    with pytest.raises(BuildError, match="0 kernels"):
        packages.packages(depends({packages.META: []}))


def test_which_kernels():
    assert packages.chosen([]) == ["5.10", "6.1", "6.12", "newest"]
    assert packages.chosen(["newest", "5.10"]) == ["5.10", "newest"]
    with pytest.raises(BuildError, match=r"no such kernel: 4\.19"):
        packages.chosen(["4.19", "5.10"])


@pytest.mark.parametrize("image", ["boot/vmlinuz-6.1.0", "lib/modules/6.1.0/vmlinuz"])
def test_where_the_image_lies(tmp_path, image):
    (tmp_path / "lib/modules/6.1.0").mkdir(parents=True)
    with pytest.raises(BuildError, match="0 images"):
        packages.unpacked(tmp_path)
    (tmp_path / image).parent.mkdir(exist_ok=True)
    (tmp_path / image).touch()
    assert packages.unpacked(tmp_path) == Kernel("6.1.0", tmp_path / image, tmp_path)
    (tmp_path / "lib/modules/6.2.0").mkdir()
    with pytest.raises(BuildError, match="2 kernels"):
        packages.unpacked(tmp_path)


def test_modules_are_loaded_after_those_they_need():
    text = (
        "k/virtio_pci.ko.xz: k/virtio_ring.ko.xz k/virtio.ko.xz\n"
        "k/virtio-blk.ko.xz: k/virtio_ring.ko.xz k/virtio.ko.xz\n"
        "k/crc32c-generic.ko.xz:\n"
    )
    assert image.in_order(text, ["virtio_pci", "virtio_blk", "ext4"]) == [
        "k/virtio.ko.xz",
        "k/virtio_ring.ko.xz",
        "k/virtio_pci.ko.xz",
        "k/virtio-blk.ko.xz",
    ]


SPOKEN = "\r\n".join(['{"release": "5.10.0-32"}', report.spoken(GOOD), '{"end": true}', ""])


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_report_is_the_same_however_it_is_cut(size):
    heard = Report()
    outcomes = [each for at in range(0, len(SPOKEN), size) for each in heard.feed(SPOKEN[at : at + size])]
    assert outcomes == heard.outcomes == [GOOD]
    assert heard.ended
    assert heard.release == "5.10.0-32"


RESULT = json.loads(report.spoken(GOOD))


@pytest.mark.parametrize(
    "lines",
    [
        ["no JSON"],
        ["[" * 50_000],
        ["7"],
        [""],
        ['{"end": true}'],
        ['{"release": 7}'],
        ['{"release": ""}'],
        [json.dumps(RESULT)],
        ['{"release": "1"}', '{"release": "1"}'],
        ['{"release": "1"}', '{"end": false}'],
        ['{"release": "1"}', '{"end": true}', '{"end": true}'],
        ['{"release": "1"}', json.dumps(RESULT), json.dumps(RESULT)],
        ['{"release": "1"}', json.dumps({**RESULT, "more": 1})],
        ['{"release": "1"}', json.dumps({**RESULT, "passed": -1})],
        ['{"release": "1"}', json.dumps({**RESULT, "passed": True})],
        ['{"release": "1"}', json.dumps({**RESULT, "status": "0"})],
        ['{"release": "1"}', json.dumps({**RESULT, "seconds": None})],
        ['{"release": "1"}', json.dumps({**RESULT, "names": [1]})],
        ["x" * (report.MAX_LINE + 1)],
    ],
)
def test_anything_else_is_no_report(lines):
    with pytest.raises(ReportError):
        Report().feed("\n".join([*lines, ""]))


def test_a_line_without_end_is_bounded():
    with pytest.raises(ReportError, match="more than"):
        Report().feed("x" * (report.MAX_LINE + 1))


@pytest.mark.parametrize(
    ("printed", "counts"),
    [
        ("....\n76 passed in 24.55s\n", (76, 0, 0, [])),
        ("=== 1 passed, 2 warnings in 3.1s ===\n", (1, 0, 0, [])),
        (
            "FAILED a.py::test_b[1] - 1\nERROR a.py::test_c\n1 failed, 7 passed, 2 skipped, 1 error in 9.1s\n",
            (7, 2, 2, ["a.py::test_b[1]", "a.py::test_c"]),
        ),
        ("no tests ran in 0.01s\n", (0, 0, 0, [])),
        ("Traceback (most recent call last):\n", (0, 0, 0, [])),
    ],
)
def test_counting_tests(printed, counts):
    assert tuple(report.tests(printed).values()) == counts


def test_counting_statements():
    assert report.statements("\nAll 21 statements were observed, and so on.\n") == {"passed": 21}
    assert report.statements("\n2 of 21 statements were NOT observed:\n    x\n") == {"passed": 19, "failed": 2}
    assert report.statements("") == {}


def test_counting_checks():
    findings = [
        ("root", "ok", True),
        ("sk_lookup", "missing", True),
        ("memory cgroups", "missing", False),
        ("node daemon", "missing", False),
        ("Kubernetes API", "skipped", False),
    ]
    lines = [json.dumps({"check": check, "state": state, "essential": last}) for check, state, last in findings]
    printed = "".join(f"{line}\n" for line in lines)
    assert report.checks(f"something else\n{printed}") == {
        "passed": 1,
        "failed": 1,
        "names": ["sk_lookup"],
        "absent": ["memory cgroups"],
    }


@pytest.mark.parametrize(
    ("outcome", "good", "cell"),
    [
        (GOOD, True, "21 passed"),
        (Outcome("a", 1, 1, passed=7, failed=2, skipped=1), False, "7 passed, **2 failed**, 1 skipped"),
        (Outcome("a", None, 1, passed=7), False, "7 passed, **not done in time**"),
        (Outcome("a", 1, 1), False, "**exit status 1**"),
        (Outcome("a", 0, 1), False, "**exit status 0**"),
        (Outcome("a", 0, 1, passed=12, absent=["swap"]), True, "12 passed, without swap"),
    ],
)
def test_a_cell(outcome, good, cell):
    assert outcome.good is good
    assert outcome.cell() == cell


def test_the_table_says_what_did_not_run():
    whole, cut = Report("5.10.0-32", [GOOD], ended=True), Report()
    assert report.table({"5.10": whole, "6.1": cut}, {"demo": "`make demo`", "udp": "UDP"}).splitlines() == [
        "|  | 5.10.0-32 | 6.1 |",
        "| --- | --- | --- |",
        "| `make demo` | 21 passed | not run |",
        "| UDP | not run | not run |",
    ]


def test_which_steps():
    assert [step for step in steps.STEPS if step not in steps.named("")] == steps.named("node")
    assert [step.name for step in steps.named("demo,doctor")] == ["doctor", "demo"]
    assert [step.name for step in steps.STEPS if step.cluster] == ["node"]
    with pytest.raises(ValueError, match="no such step: x"):
        steps.named("x,demo")


def test_a_kernel_before_5_11_needs_one_capability_more():
    assert set(steps.capabilities("6.1.0-50-cloud-amd64")) == set(doctor.CAPABILITIES)
    assert set(steps.capabilities("5.10.0-32-cloud-amd64")) == {*doctor.CAPABILITIES, "SYS_RESOURCE"}


def test_a_step_that_is_late_is_ended_and_counted():
    command = (sys.executable, "-c", "import time\nprint('3 passed in 1s', flush=True)\ntime.sleep(600)")
    outcome = guests.run(Step("late", "late", 3, command), platform.release())
    assert outcome.status is None
    assert outcome.passed == 3


def test_a_step_says_how_it_ended():
    command = (sys.executable, "-c", "print('3 passed in 1s')\nraise SystemExit(7)")
    outcome = guests.run(Step("odd", "odd", 60, command), platform.release())
    assert (outcome.status, outcome.passed, outcome.good) == (7, 3, False)


QEMU = """#!/bin/sh
for word; do case $word in file:*console) console=${word#file:};; file:*results) results=${word#file:};; esac; done
echo $$ >"$console"
cat "$SPOKEN" >>"$results"
"""


@pytest.fixture
def guest(tmp_path, monkeypatch):
    """A guest whose QEMU is a script: writes its process number to the console, what `say` was given to the results."""

    def say(spoken: str, then: str) -> Guest:
        program = tmp_path / "qemu-system-x86_64"
        program.write_text(f"{QEMU}{then}\n")
        program.chmod(0o755)
        (tmp_path / "spoken").write_text(spoken, newline="")
        kernel = Kernel("6.1.0", tmp_path / "vmlinuz", tmp_path)
        return Guest(kernel, tmp_path, tmp_path, tmp_path, tmp_path / "console", tmp_path / "results")

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SPOKEN", str(tmp_path / "spoken"))
    return say


def test_a_guest_that_has_ended_its_report_is_gone(guest):
    heard, seen = Report(), []
    booted = guest(SPOKEN, "exec sleep 600")
    machine.run(booted, "demo", report=heard, within=60, seen=seen.append)
    assert heard.ended
    assert seen == [GOOD]
    assert not alive(int(booted.console.read_text()))


def test_two_runs_of_one_kernel_do_not_write_into_each_others_files(guest):
    booted = guest(SPOKEN, "exec sleep 600")
    booted.results.write_text("of another run")
    with booted.results.open() as other:
        machine.run(booted, "demo", report=Report(), within=60, seen=lambda outcome: None)
        assert other.read() == "of another run"


def test_a_guest_is_gone_after_an_interrupt(guest):
    booted = guest(SPOKEN.replace('{"end": true}\r\n', ""), "exec sleep 600")

    def interrupt(outcome: Outcome) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        machine.run(booted, "demo", report=Report(), within=60, seen=interrupt)
    assert not alive(int(booted.console.read_text()))


RUN = """
import os, sys
from pathlib import Path
from tests.kernels import __main__, image, packages
place = Path(sys.argv.pop())
os.geteuid = lambda: 0
packages.kernel = lambda name: packages.Kernel("6.1.0", place, place)
image.root = image.sources = image.initrd = lambda *arguments, **options: place
sys.exit(__main__.main())
"""
"""The command, without what it fetches and builds."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_leaves_its_table_and_no_guest(guest, tmp_path, number):
    guest(SPOKEN.replace('{"end": true}\r\n', ""), "exec sleep 600")
    table = tmp_path / "kernel-logs/table.md"
    words = [sys.executable, "-c", RUN, "--packages", "make", "--steps", "demo,udp", "6.1", "5.10", tmp_path]
    # A shell's background job ignores SIGINT, and its children inherit that.
    run = ["env", "--default-signal=INT,HUP", *words]
    environment = {**os.environ, "SIDESTEP_E2E_CACHE": str(tmp_path)}
    with child(run, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            until(table.exists, within=60, what="the first result")
            process.send_signal(number)
            printed, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert printed == table.read_text()
    assert printed.splitlines()[2:] == ["| `make demo` | 21 passed |", "| UDP (`tests/system/test_udp.py`) | not run |"]
    assert not alive(int((tmp_path / "kernel-logs/5.10.console").read_text()))


@pytest.mark.parametrize(
    ("spoken", "then", "within", "error"),
    [
        (SPOKEN.replace('{"end": true}', ""), "exec sleep 600", 60, "not a guest's result"),
        (
            SPOKEN.removesuffix('{"end": true}\r\n'),
            "echo 'Kernel panic' >>\"$console\"; exit 3",
            60,
            "status 3\n(?s:.*)panic",
        ),
        ("", "exec sleep 600", 2, "not done after 2 s"),
    ],
)
def test_a_guest_that_goes_wrong_is_gone(guest, spoken, then, within, error):
    booted = guest(spoken, then)
    with pytest.raises(GuestError, match=error):
        machine.run(booted, "demo", report=Report(), within=within, seen=lambda outcome: None)
    assert not any(alive(int(pid)) for pid in booted.console.read_text().split()[:1])
