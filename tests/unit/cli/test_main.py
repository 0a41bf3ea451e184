"""What arrives at the edge: exit codes and single lines."""

import click
import pytest

from sidestep.cli import main as module
from sidestep.cli.main import run
from sidestep.model.errors import BugError, ConfigurationError, KernelError, RefusedError

PORT = ("--port", "9")


@pytest.fixture
def failing(monkeypatch):
    """A command `fail` that raises what the test chooses."""
    chosen = {}

    @click.command()
    def fail():
        raise chosen["error"]

    monkeypatch.setitem(module.sidestep.commands, "fail", fail)

    def choose(error):
        chosen["error"] = error
        return run(["fail"])

    return choose


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RefusedError("no,\nand two lines"), 1, "sidestep: no, and two lines"),
        (ConfigurationError("bad", subject="annotation x", value="y"), 1, "sidestep: annotation x 'y': bad"),
        (KernelError("bpf", 1, doing="attaching"), 1, "sidestep: bpf while attaching: Operation not permitted"),
        (BugError("impossible"), 1, "sidestep: impossible"),
        (click.UsageError("what?"), 2, "sidestep fail: what? (try sidestep fail --help)"),
        (ZeroDivisionError("x\x1b"), 1, "sidestep: internal error, please report it: ZeroDivisionError("),
    ],
)
def test_an_error_is_one_line(failing, capsys, monkeypatch, error, code, line):
    monkeypatch.delenv("SIDESTEP_DEBUG", raising=False)
    assert failing(error) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(line)
    assert captured.err.count("\n") == 1
    assert "\x1b" not in captured.err


def test_the_traceback_is_there_for_those_who_ask(failing, capsys, monkeypatch):
    monkeypatch.setenv("SIDESTEP_DEBUG", "1")
    assert failing(ZeroDivisionError("x")) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupt_is_quiet(failing, capsys, error):
    assert failing(error) == 130
    assert capsys.readouterr().err.strip() == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["list", "--nothing"],
        ["list", "too", "many"],
        ["intercept", "orders"],
        ["intercept", *PORT],
        ["intercept", "orders", "--port", "http"],
        ["intercept", "orders", *PORT, "sleep", "1"],
        ["intercept", "orders", *PORT, "--output", "xml"],
        ["intercept", "orders", *PORT, "--http-header", "x=~("],
        ["intercept", "orders", *PORT, "--http-header", "=x"],
        ["intercept", "orders", *PORT, "--http-path-regex", "["],
        ["intercept", "orders", *PORT, "--http-path-prefix", "api"],
        ["intercept", "orders", *PORT, "--http-method", "get"],
        ["intercept", "orders", *PORT, "--handler-ca", "/no/such/file"],
        ["intercept", "orders", *PORT, "--address", "not a host"],
        ["intercept", "orders", *PORT, "--address", ""],
        ["intercept", "or\udcffders", *PORT, "--socket", "/nonexistent/node.sock"],
        ["leave"],
        ["leave", ""],
        ["leave", "shop/"],
        ["leave", "a/b/c"],
        ["leave", "\udcff"],
    ],
)
def test_usage_is_one_line_and_code_2(capsys, arguments):
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("sidestep")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("command", ["", "node", "intercept", "list", "status", "leave"])
def test_help_has_an_example(capsys, command):
    assert run([*command.split(), "--help"]) == 0
    assert f"  sidestep {command}" in capsys.readouterr().out


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("sidestep, version ")


@pytest.mark.parametrize(
    "words", [["list"], ["status"], ["leave", "x"], ["intercept", "orders", *PORT]], ids=lambda words: words[0]
)
def test_an_unreachable_daemon_is_named_with_what_to_do(capsys, tmp_path, words):
    path = tmp_path / "node.sock"
    assert run([*words, "--socket", str(path)]) == 1
    error = capsys.readouterr().err
    assert str(path) in error
    assert "sidestep node --manifests" in error
    assert error.count("\n") == 1


def test_a_command_is_missing_and_the_help_says_which_there_are(capsys):
    assert run([]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("Usage: sidestep")
    assert "\n  intercept " in captured.err


@pytest.mark.parametrize("path", ["x" * 200, "/"])
def test_a_path_that_can_be_no_socket_is_named_with_a_reason(capsys, path):
    assert run(["list", "--socket", path]) == 1
    error = capsys.readouterr().err
    assert "success" not in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("content", ["root:x:0:0", "- a\n- b\n", "contexts: 5\n", "{", "current-context: nowhere\n"])
def test_a_broken_kubeconfig_is_named_and_not_explained_in_python(capsys, tmp_path, content):
    path = tmp_path / "config"
    path.write_text(content)
    assert run(["status", "--kubeconfig", str(path)]) == 1
    error = capsys.readouterr().err
    assert str(path) in error
    assert error.count("\n") == 1
    assert "'str'" not in error


def test_doctor_goes_on_when_a_kubeconfig_is_broken(capsys, monkeypatch, tmp_path):
    async def nothing():
        return []

    path = tmp_path / "config"
    path.write_text("root:x:0:0")
    monkeypatch.setattr("sidestep.node.doctor.examine", nothing)
    assert run(["doctor", "--kubeconfig", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "Kubernetes API" in captured.out
    assert str(path) in captured.out


def test_node_needs_manifests(capsys, tmp_path):
    assert run(["node"]) == 1
    assert "--manifests" in capsys.readouterr().err
    missing = tmp_path / "missing"
    assert run(["node", "--manifests", str(missing)]) == 1
    assert str(missing) in capsys.readouterr().err
