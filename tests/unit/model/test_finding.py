"""Findings of doctor."""

from __future__ import annotations

import msgspec
import pytest

from sidestep.model.finding import Finding


@pytest.mark.parametrize(
    ("state", "essential", "bad"),
    [("ok", True, False), ("missing", True, True), ("skipped", True, True), ("missing", False, False)],
)
def test_only_what_is_essential_is_bad(state, essential, bad):
    assert Finding("kernel", state, essential, "text").bad is bad


def test_the_fields_are_the_output_as_json():
    line = msgspec.json.encode(Finding("kernel", "ok", True, "6.1"))
    assert line == b'{"check":"kernel","state":"ok","essential":true,"text":"6.1","cost":""}'
