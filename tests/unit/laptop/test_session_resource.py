"""What a session writes as its resource is what a daemon reads from it."""

from __future__ import annotations

import msgspec
import pytest

from sidestep.kube.resource_fields import MetadataFields
from sidestep.kube.session_specs import DEFINITIONS, intercept_of
from sidestep.laptop.session_resource import kind_of, spec_fields
from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.intercept import Kind, Live, Snap
from sidestep.tunnel.messages import SessionSpec

METADATA = MetadataFields(name="mine", namespace="shop", uid="u")


def written(**wants):
    """The resource's `spec` as JSON, and the kind."""
    spec = SessionSpec(namespace="shop", workload="deployment/orders", **{"kind": "wiretap", **wants})
    kind = kind_of(spec)
    return kind, msgspec.json.decode(msgspec.json.encode(spec_fields(spec, "key", "ada")))


def read(kind, value):
    return intercept_of(kind, METADATA, msgspec.convert(value, DEFINITIONS[kind].fields))


@pytest.mark.parametrize(
    ("wants", "found"),
    [
        ({"records": "all"}, {"records": Live.ALL}),
        ({"records": "alerts"}, {"records": Live.ALERTS}),
        ({"heads_only": True}, {"heads_only": True}),
        ({"capture": "all"}, {"capture": Snap.ALL}),
    ],
)
def test_sessions_about_what_pods_send_have_no_port(wants, found):
    kind, value = written(port="", egress=True, **wants)
    assert (value["egress"], "port" in value) == (True, False)
    made = read(kind, value)
    assert (made.egress, made.port, made.kind, str(made.workload)) == (True, "", Kind.WIRETAP, "deployment/orders")
    assert {name: getattr(made, name) for name in found} == found


@pytest.mark.parametrize("wants", [{"records": "all"}, {"heads_only": True}, {"capture": "all"}])
def test_all_others_have_one_and_no_word_of_it(wants):
    kind, value = written(port="https", **wants)
    assert (value["port"], "egress" in value) == ("https", False)
    made = read(kind, value)
    assert (made.egress, made.port) == (False, "https")
    with pytest.raises(ConfigurationError, match="port"):
        read(kind, {name: each for name, each in value.items() if name != "port"})


def test_what_could_not_be_served_is_refused_where_it_is_read():
    kind, value = written(port="", egress=True, records="all")
    with pytest.raises(RefusedError, match="leave the port out"):
        read(kind, {**value, "port": 443})
    kind, value = written(port="", egress=True, heads_only=True)
    with pytest.raises(RefusedError, match="no copies"):
        read(kind, {**value, "headsOnly": False})
