"""A release for both architectures: what its files say, and the commands of the arm64 image in a container."""

from __future__ import annotations

import json

import pytest

import sidestep
from tests.arm64.conftest import Arm64
from tests.arm64.image import MACHINES, release
from tests.debian.room import Room

pytestmark = pytest.mark.timeout(4 * 3600)

ENTRY = "/opt/sidestep/bin/sidestep"
OF_THE_MACHINE = ("swap", "memory cgroups", "firewall")
"""Checks of doctor whose result is the machine's or the emulation's, whatever the image."""


@pytest.fixture(scope="module")
def built(emulation):
    return release()


@pytest.fixture(scope="module")
def container(built):
    return Arm64(Room(built.root, own=["net"], memory=["/tmp"], environment={"PYTHONDONTWRITEBYTECODE": "1"}))


@pytest.mark.parametrize("architecture", MACHINES)
def test_the_archive_has_the_image_for_each_architecture(built, architecture):
    config = built.config(architecture)
    assert (config["architecture"], config["os"]) == (architecture, "linux")
    assert (config["config"]["Entrypoint"], config["config"]["Cmd"]) == ([ENTRY], ["node"])


def test_the_sbom_names_the_packages_of_both_once(built):
    names = [each["bom-ref"] for each in json.loads(built.sbom.read_text())["components"]]
    assert len(set(names)) == len(names)
    for architecture in MACHINES:
        assert [name for name in names if "/libc6@" in name and name.endswith(f"?arch={architecture}")]


def test_the_command_tells_its_version(container):
    done = container.run(ENTRY, "--version", within=600)
    assert done.stdout.decode() == f"sidestep, version {sidestep.__version__}\n", done.stderr


def test_doctor_finds_all_that_the_image_brings(container):
    """Python, bcc and the kernel headers serve. QEMU's user mode has neither bpf(2) nor the ioctl that tells what kind
    of namespace a descriptor is (ioctl_ns(2)), so what takes them is missing, in one line each."""
    done = container.run(ENTRY, "doctor", "--output", "json", within=1200)
    found = {each["check"]: each for each in map(json.loads, done.stdout.splitlines())}
    states = {name: each["state"] for name, each in found.items() if name not in OF_THE_MACHINE}
    assert states == {
        **dict.fromkeys(["root", "capabilities", "kernel", "python", "bcc and headers", "seccomp"], "ok"),
        **dict.fromkeys(
            [
                "sk_lookup",
                "sock_diag",
                "SOCK_DESTROY",
                "client addresses",
                "outbound steering",
                "suricata",
                "node daemon",
            ],
            "missing",
        ),
        "Kubernetes API": "skipped",
    }, done
    assert found["kernel"]["text"].endswith(" aarch64")
    assert found["bcc and headers"]["text"].startswith("the program compiles")
    assert found["client addresses"]["text"].endswith("Function not implemented")
    assert done.returncode == 1
