"""Errors: what they say, and what they carry."""

from __future__ import annotations

import errno

import pytest

from sidestep.model.errors import (
    BugError,
    ClusterError,
    ConfigurationError,
    KernelError,
    PeerError,
    RefusedError,
    SidestepError,
)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConfigurationError("is missing"), "is missing"),
        (ConfigurationError("is no name", subject="--name"), "--name: is no name"),
        (ConfigurationError("is no name", subject="--name", value="a b"), "--name 'a b': is no name"),
        (ConfigurationError("is empty", subject="--name", value=""), "--name '': is empty"),
        (RefusedError("the port is taken"), "the port is taken"),
        (PeerError("odd frame", code=1), "odd frame"),
        (KernelError("setns", errno.EPERM), "setns: Operation not permitted"),
        (KernelError("bpf", errno.ENOMEM, doing="making a map"), "bpf while making a map: Cannot allocate memory"),
        (ClusterError("no answer"), "no answer"),
        (BugError("it is not so"), "it is not so"),
    ],
)
def test_one_line_for_people(error, text):
    assert str(error) == text
    assert isinstance(error, SidestepError)


def test_they_carry_their_data():
    assert PeerError("odd frame", code=1).code == 1
    assert PeerError("odd").code is None
    error = KernelError("setns", errno.EPERM)
    assert (error.call, error.errno) == ("setns", errno.EPERM)
    wrong = ConfigurationError("is no name", subject="--name", value="a b")
    assert (wrong.reason, wrong.subject, wrong.value) == ("is no name", "--name", "a b")
