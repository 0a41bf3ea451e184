"""Private interfaces of `ssl`, on every CPython of this machine, and what the daemon does where they are missing."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sidestep.model.errors import ConfigurationError
from sidestep.proxy.io import error_queue
from sidestep.proxy.tls import interpreter
from tests.harness.authority import Authority

HERE = Path(__file__).resolve().parent
DAEMON = Path(interpreter.__file__).parents[3]


def interpreters() -> list[str]:
    """The interpreter of this test, and each other `python3.N` that starts, from the oldest supported one on.

    They are looked for on PATH and in the folder of pyenv, whose commands on PATH start only what is chosen.
    """
    folders = [*map(Path, os.environ["PATH"].split(os.pathsep)), *Path.home().glob(".pyenv/versions/*/bin")]
    found = {str(Path(sys.executable).resolve())}
    for path in (each for folder in folders for each in folder.glob("python3.*")):
        minor = re.fullmatch(r"python3\.(\d+)", path.name)
        if minor and int(minor[1]) >= 11 and "shims" not in path.parts:
            found.add(str(path.resolve()))
    return sorted(found)


@pytest.mark.parametrize("python", interpreters())
def test_ssl_of_each_interpreter_does_what_the_proxy_rests_on(python, tmp_path):
    certificate = Authority().issue("app.test")
    identity = tmp_path / "identity.pem"
    identity.write_bytes(certificate.key + certificate.chain)
    command = [python, "-I", "-W", "error", HERE / "private_ssl.py", DAEMON, identity]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("CPython 3."), done.stdout


def without_connection_objects(monkeypatch):
    monkeypatch.setattr("ssl.SSLContext._wrap_socket", None)


def without_callback(monkeypatch):
    def missing(context, callback):
        raise AttributeError("type object '_ssl._SSLContext' has no attribute '_msg_callback'")

    monkeypatch.setattr(interpreter, "set_message_callback", missing)


def with_a_callback_that_is_never_called(monkeypatch):
    monkeypatch.setattr(interpreter, "set_message_callback", lambda context, callback: None)


def with_other_connection_objects(monkeypatch):
    monkeypatch.setattr(interpreter, "_CONNECTION", ("read", "no_such_method"))


def with_openssl_built_in(monkeypatch):
    monkeypatch.setattr(error_queue, "_openssl", ctypes.PyDLL("libm.so.6"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_connection_objects, "not callable"),
        (without_callback, "no attribute '_msg_callback'"),
        (with_a_callback_that_is_never_called, "shows no message"),
        (with_other_connection_objects, "no no_such_method"),
        (with_openssl_built_in, "undefined symbol: ERR_peek_error"),
    ],
)
def test_an_interpreter_without_them_is_told_from_others(monkeypatch, change, says):
    interpreter.check_ssl()
    change(monkeypatch)
    with pytest.raises(ConfigurationError, match=rf"^Python 3\.\d+\.\d+ with OpenSSL .*{says}.*tested: CPython 3\.11"):
        interpreter.check_ssl()


def test_the_daemon_does_not_start_on_it_and_says_why_in_one_line(tmp_path):
    code = "import ssl; ssl.SSLContext._wrap_socket = None; from sidestep.cli.main import main; main()"
    command = [sys.executable, "-c", code, "node", "--manifests", tmp_path, "--socket", tmp_path / "node.sock"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert "its ssl module lacks what TLS interception rests on" in line
    assert not (tmp_path / "node.sock").exists()
