"""Words that shells complete, asked for in a cluster and of this machine's daemon; real bash completes one of them."""

import os
import subprocess
from pathlib import Path

import pytest

from sidestep.cli.completion_script import SHELLS
from tests.harness.warm import SIDESTEP
from tests.integration.kube.cluster import GROUP
from tests.integration.kube.test_cluster_cache import populate
from tests.integration.kube.test_commands import Server, sidestep
from tests.unit.node.sessions.test_resources import value


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path)
    made.do(populate(made.api))
    made.do(made.api.put(GROUP, "intercepts", value("a")))
    made.do(made.api.put(GROUP, "wiretaps", value("b", headsOnly=True)))
    yield made
    made.close()


def completed(server, *words):
    """The words that kubectl would show, and its directive."""
    environment = {"SIDESTEP_INSECURE_HTTP": "1", "KUBECONFIG": str(server.kubeconfig), "HOME": "/nonexistent"}
    command = [Path(SIDESTEP).with_name("python"), "-c", CALL]
    done = subprocess.run(
        [*map(str, command), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=os.environ | environment,
    )
    assert done.stderr == ""
    *lines, directive = done.stdout.splitlines()
    return [line.partition("\t")[0] for line in lines], directive


CALL = "from sidestep.cli import completing, completion; completing.DEADLINE = 60.0; completion.kubectl()"
"""What `kubectl_complete-sidestep` does, on a machine that may be busy."""


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["leave", ""], ["flows/b", "intercept/a"]),
        (["leave", "fl"], ["flows/b"]),
        (["intercept", ""], ["deployment/orders"]),
        (["intercept", "ord"], ["orders"]),
        (["wiretap", "deployment/"], ["deployment/orders"]),
        (["list", "-n", ""], ["shop"]),
        (["list", "-n", "x"], []),
        (["status", "--context", ""], ["here", "there"]),
        (["leave", "-n", "other", ""], []),
        (["inter"], ["intercept"]),
        (["intercept", "orders", "--http-m"], ["--http-method"]),
        (["list", "--context", "nowhere", "-n", ""], []),
    ],
    ids=" ".join,
)
def test_kubectl_is_given_what_there_is(server, words, found):
    assert completed(server, *words) == (found, ":4")


def test_files_are_completed_by_the_shell(server):
    assert completed(server, "list", "--kubeconfig", "x")[1] == ":0"


def test_a_server_that_is_away_gives_no_names(server):
    server.do(server.api.stop())
    assert completed(server, "leave", "") == ([], ":4")


PROGRAM = "from sidestep.cli import completing, main; completing.DEADLINE = 60.0; main.main()"
"""`sidestep`, on such a machine."""


def test_bash_completes_a_session(server, tmp_path):
    program = tmp_path / "bin" / "sidestep"
    program.parent.mkdir()
    program.write_text(f"#!{Path(SIDESTEP).with_name('python')}\n{PROGRAM}\n")
    program.chmod(0o755)
    script = f"""
        source <({SIDESTEP} completion bash)
        COMP_WORDS=(sidestep leave fl); COMP_CWORD=2; COMP_LINE='sidestep leave fl'; COMP_POINT=${{#COMP_LINE}}
        _sidestep_completion sidestep fl leave
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={
            **os.environ,
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "SIDESTEP_INSECURE_HTTP": "1",
            "KUBECONFIG": str(server.kubeconfig),
        },
    )
    assert (done.stdout, done.stderr) == ("flows/b\n", "")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script(shell):
    code, text, errors = sidestep("completion", shell)
    assert (code, errors) == (0, "")
    assert "_SIDESTEP_COMPLETE" in text
