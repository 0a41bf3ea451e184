import io
import json
import logging

import pytest
import structlog

from sidestep.observability import logs


@pytest.fixture
def lines():
    stream = io.StringIO()
    level = logging.getLogger().level
    logs.configure(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.reset_defaults()
    root = logging.getLogger()
    root.setLevel(level)
    for handler in list(root.handlers):
        if type(handler).__module__ == logs.__name__:
            root.removeHandler(handler)


def test_an_event_is_one_json_object(lines):
    logs.get_logger("node").info("pod steered", pod="shop/orders-1", ports=[8443])
    (line,) = lines()
    assert line.pop("time").endswith("Z")
    assert line == {
        "component": "node",
        "event": "pod steered",
        "level": "info",
        "pod": "shop/orders-1",
        "ports": [8443],
    }


def test_key_material_and_secrets_are_never_written(lines):
    pem = "-----BEGIN EC PRIVATE KEY-----\nMHcC\n-----END EC PRIVATE KEY-----"
    logs.get_logger("node").info("x", text=pem, nested={"Authorization": "Bearer t", "list": [pem]}, raw=pem.encode())
    (line,) = lines()
    shown = json.dumps(line)
    assert "MHcC" not in shown
    assert "Bearer" not in shown
    assert line["raw"] == f"({len(pem)} bytes)"


def test_a_field_is_bounded(lines):
    logs.get_logger("node").info("x", text="a" * 100_000)
    assert len(lines()[0]["text"]) == logs.MAX_TEXT + 1


def test_the_standard_librarys_lines_are_json_too(lines):
    logging.getLogger("asyncio").warning("slow %s", "callback")
    logging.getLogger("asyncio").info("not shown")
    (line,) = lines()
    assert (line["component"], line["event"], line["level"]) == ("asyncio", "slow callback", "warning")
