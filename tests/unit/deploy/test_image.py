"""The recipe of the node daemon's image, without a build."""

import re
import subprocess

import pytest

from tests.e2e.images import PYTHONS, SUITE
from tests.unit.deploy.test_manifest import DEPLOY

DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def wheel_options(architecture):
    return subprocess.run(
        [DEPLOY / "wheel-options", architecture], capture_output=True, text=True, check=False, timeout=60
    )


def test_what_is_copied_is_not_ignored():
    copied = [name for line in re.findall(r"^COPY ([^-\n].*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()]
    let_through = re.findall(r"^!(\S+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert sorted(copied) == sorted(let_through)


def test_a_release_looks_for_wheels_for_the_python_of_the_image():
    assert re.findall(r"^image_python=(\S+)$", (DEPLOY / "release").read_text(), re.MULTILINE) == [PYTHONS[SUITE]]


@pytest.mark.parametrize(("architecture", "machine"), [("amd64", "x86_64"), ("arm64", "aarch64")])
def test_wheels_are_for_the_machine_of_the_image(architecture, machine):
    only_wheels, *platforms = wheel_options(architecture).stdout.split()
    assert only_wheels == "--only-binary=:all:"
    assert {f"--platform=manylinux2014_{machine}", f"--platform=manylinux_2_36_{machine}"} < set(platforms)
    assert all(each.startswith("--platform=manylinux") and each.endswith(f"_{machine}") for each in platforms)


def test_wheels_of_the_plugin_are_for_macs_of_today_too():
    only_wheels, *platforms = wheel_options("darwin-arm64").stdout.split()
    assert only_wheels == "--only-binary=:all:"
    assert {"--platform=macosx_11_0_arm64", "--platform=macosx_10_9_universal2"} < set(platforms)
    assert all(each.endswith(("_arm64", "_universal2")) for each in platforms)


def test_no_wheels_for_another_architecture():
    done = wheel_options("riscv64")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "wheel-options: nothing is made for riscv64\n"
