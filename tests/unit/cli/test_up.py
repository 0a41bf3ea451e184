"""What `sidestep up` says of a file before anything runs."""

import asyncio
import socket

import pytest

from sidestep.aio.time_limit import time_limit
from sidestep.cli import up
from sidestep.cli.main import run
from sidestep.config.session_file import HandlerEntry
from sidestep.laptop.handler import Handler, HandlerSettings
from sidestep.tunnel.messages import SessionSpec

GOOD = "{workload: orders, port: 9443:https}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("namespace: shop", "has neither intercepts nor wiretaps"),
        ("intercepts: [{workload: a/b/c, port: 1}]", "intercepts[0]: "),
        ("intercepts: [{workload: a, port: 'x:y'}]", "intercepts[0]: 'x:y': LOCAL is the handler's port"),
        (f"intercepts: [{GOOD}, {{workload: a, port: 1, headers: ['=']}}]", "intercepts[1]: "),
        ("intercepts: [{workload: a, port: 1, pathRegex: ['(']}]", "intercepts[0]: "),
        ("wiretaps: [{workload: a, port: 1, name: Mine}]", "wiretaps[0]: 'Mine' is no name of a session"),
        ("namespace: Shop\nintercepts: [{workload: a, port: 1}]", "intercepts[0]: 'Shop' is no namespace"),
        ("intercepts: [{workload: a, port: 1, address: 'a b'}]", "intercepts[0]: --address"),
        ("intercepts: [{workload: a, port: 1, handlerCa: none.pem}]", "intercepts[0]: --handler-ca"),
        ("intercepts: 7", "intercepts: "),
        ("\xff", "is no UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path, capsys, text, said):
    path = tmp_path / "sidestep.yaml"
    path.write_bytes(text.encode("latin-1"))
    assert run(["up", "-f", str(path), "--socket", "/nowhere/node.sock"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"sidestep: {path}: ")
    assert said in error


def test_a_file_that_is_not_there(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["up", "--socket", "/nowhere/node.sock"]) == 1
    assert "--file 'sidestep.yaml': cannot be read" in capsys.readouterr().err


def planned(workload, port, *, name="", kind="intercept"):
    spec = SessionSpec(namespace="shop", workload=workload, port="https", kind=kind, name=name)
    return up.Planned(spec, Handler(HandlerSettings(port)), "")


def port_of(name, *sessions, **environment):
    return up.handler_variables(name, HandlerEntry(("x",), environment=environment), sessions).get("SIDESTEP_PORT")


def test_a_handler_has_the_variables_of_its_session():
    orders, posts = planned("deployment/orders", 9443), planned("deployment/orders", 9444, name="posts", kind="wiretap")
    assert up.handler_variables("orders", HandlerEntry(("x",), environment={"A": "1"}), [orders, posts]) == {
        "SIDESTEP_KIND": "intercept",
        "SIDESTEP_NAMESPACE": "shop",
        "SIDESTEP_WORKLOAD": "deployment/orders",
        "SIDESTEP_WORKLOAD_PORT": "https",
        "SIDESTEP_ADDRESS": "127.0.0.1",
        "SIDESTEP_PORT": "9443",
        "A": "1",
    }
    assert port_of("posts", orders, posts) == "9444"
    assert port_of("web", orders) == "9443"
    assert port_of("web", orders, posts) is None
    assert port_of("posts", orders, posts, SIDESTEP_PORT="1") == "1"


class Told(list):
    """A report that is active."""

    def __init__(self):
        self.active = asyncio.Event()
        self.active.set()

    def handler_absent(self, reason):
        self.append(reason)


def test_a_handler_has_a_while_to_begin(monkeypatch):
    """Once it listens no more is looked; without it that is told when the time is over."""
    monkeypatch.setattr(up, "AGAIN", 0.01)

    async def run():
        with socket.create_server(("127.0.0.1", 0)) as free:
            session = planned("orders", free.getsockname()[1])
        patient, impatient = Told(), Told()
        looking = asyncio.ensure_future(up.look_for(session, patient, 3600.0))
        await up.look_for(session, impatient, 0.05)
        assert impatient == [f"nothing listens on {session.handler.settings}"]
        assert not looking.done()
        with socket.create_server(("127.0.0.1", session.handler.settings.port)):
            async with time_limit(30):
                await looking
        assert patient == []

    asyncio.run(run())


def test_without_a_daemon(tmp_path, capsys):
    path = tmp_path / "sidestep.yaml"
    path.write_text(f"intercepts: [{GOOD}]")
    assert run(["up", "-f", str(path), "--socket", "/nowhere/node.sock"]) == 1
    assert "no node daemon answers on /nowhere/node.sock" in capsys.readouterr().err
