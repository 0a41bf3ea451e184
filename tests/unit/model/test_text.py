"""Text of strangers, made fit for a terminal."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.model.text import MAX_SHOWN, harmless, harmless_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("orders-1", "orders-1"),
        ("straße 東京", "straße 東京"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("a\u202eb", "a\\u202eb"),
        ("a\x9bb", "a\\x9bb"),
        ("a\ud800b", "a\\ud800b"),
        ("a\U000e0001b", "a\\U000e0001b"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text, shown):
    assert harmless(text) == shown


def test_a_long_text_is_cut():
    assert harmless("x" * (MAX_SHOWN + 1)) == "x" * MAX_SHOWN + "…"
    assert harmless("x" * MAX_SHOWN) == "x" * MAX_SHOWN
    assert harmless("abc", limit=2) == "ab…"


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_a_json_document_means_the_same_and_is_printable(text):
    document = json.dumps({"text": text}, ensure_ascii=False)
    shown = harmless_json(document)
    assert shown.isprintable()
    assert json.loads(shown) == {"text": text}


def test_a_printable_json_document_is_the_same_object():
    document = '{"text": "straße"}'
    assert harmless_json(document) is document
    assert harmless_json('"\U000e0001"') == '"\\udb40\\udc01"'
