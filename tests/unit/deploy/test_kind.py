"""deploy/kind.sh, which `make kind` runs, says what it lacks before it does anything. The rest is in tests/kind."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "deploy" / "kind.sh"
SHELL = ("bash", "dirname", "cat", "true", "false")


@pytest.fixture
def machine(tmp_path):
    """A folder with the few programs of a machine; `add` puts one there that does as another."""
    for name in SHELL:
        (tmp_path / name).symlink_to(shutil.which(name))

    def add(name, program="true"):
        (tmp_path / name).symlink_to(shutil.which(program))

    return tmp_path, add


def run(path, *words, **environment):
    """Run the script with that folder as its PATH."""
    command = [path / "bash", SCRIPT, *words]
    variables = {"PATH": str(path), **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=20)


def test_help(machine):
    path, _ = machine
    done = run(path, "--help")
    assert done.returncode == 0
    assert "usage: deploy/kind.sh" in done.stdout


def test_an_array_that_may_be_empty_is_expanded_as_bash_3_2_has_it():
    """The bash of macOS; `set -u` is on."""
    text = SCRIPT.read_text()
    empty = re.findall(r"(\w+)=\(\)", text)
    assert empty == ["archives", "ignore"]
    before, text = text.split('archives=("$folder', 1)  # from here on it has one
    assert "[@]}" in text
    for name in empty:
        guarded = f'${{{name}[@]+"${{{name}[@]}}"}}'
        assert f"${{{name}[@]}}" in before
        assert f"${{{name}[@]}}" not in before.replace(guarded, "")


@pytest.mark.parametrize(
    ("tools", "words", "environment", "error"),
    [
        ([], [], {}, "this needs kind (it was not found)"),
        (["kind"], [], {}, "this needs kubectl (it was not found)"),
        (["kind", "kubectl"], [], {}, "this needs docker or podman (neither was found)"),
        (["kind", "kubectl"], [], {"KIND_EXPERIMENTAL_PROVIDER": "podman"}, "this needs podman (it was not found)"),
        (["kind", "kubectl"], [], {"KIND_EXPERIMENTAL_PROVIDER": "nerdctl"}, "only docker and podman are supported"),
        (["kind", "kubectl", "podman"], ["--archive", "/nowhere.tar"], {}, "/nowhere.tar cannot be read"),
        (["kind", "kubectl", "docker"], ["--config", "/nowhere.yaml"], {}, "/nowhere.yaml cannot be read"),
        ([], ["--archive"], {}, "--archive needs a value"),
        ([], ["--nodes"], {}, "unknown option: --nodes"),
    ],
)
def test_what_is_lacking(machine, tools, words, environment, error):
    path, add = machine
    for tool in tools:
        add(tool)
    done = run(path, *words, **environment)
    assert done.returncode == 1
    assert error in done.stderr


def test_a_runtime_that_does_not_answer(machine):
    path, add = machine
    add("kind")
    add("kubectl")
    add("docker", "false")
    done = run(path)
    assert done.returncode == 1
    assert done.stderr == "sidestep: docker does not answer: 'docker info' says why\n"
