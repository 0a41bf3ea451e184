import io
import json
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.cli.output import QUEUE, LineWriter, json_line
from sidestep.cli.table import table
from sidestep.model.text import harmless
from tests.harness.waiting import until


@given(st.text())
def test_nothing_reaches_the_terminal_but_printable_text(text):
    assert harmless(text).isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü", "plain ü"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\r\nb", "a\\r\\nb"),
        ("\u202eevil", "\\u202eevil"),
        ("\x9b", "\\x9b"),
        ("\udc80", "\\udc80"),
    ],
)
def test_control_characters_are_shown_not_sent(text, shown):
    assert harmless(text) == shown


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_json_lines_are_printable_and_mean_the_same(text):
    line = json_line({"text": text})
    assert line.isprintable()
    assert json.loads(line) == {"text": text}


@pytest.mark.parametrize("text", ["a\x1b]0;title\x07b", "a\x9b31mb", "\x7f", "\u202eevil", "\U000e0001", "a\u2028b"])
def test_no_escape_sequence_reaches_a_terminal_in_json(text):
    assert not {character for character in json_line([text]) if not character.isprintable()}


def test_long_text_is_cut():
    assert len(harmless("x" * 10_000)) == 2049


def test_lines_are_written_in_order():
    stream = io.StringIO()
    writer = LineWriter(stream, on_closed=lambda: None)
    for number in range(100):
        writer.line(str(number))
    writer.close()
    assert stream.getvalue().split() == [str(number) for number in range(100)]


def test_a_reader_that_does_not_read_costs_lines_not_time():
    read, write = os.pipe()
    with os.fdopen(read, "rb") as reader, os.fdopen(write, "w") as stream:
        writer = LineWriter(stream, on_closed=lambda: None)
        for _ in range(QUEUE + 1000):
            writer.line("x" * 100)
        assert writer.dropped > 0
        drain = threading.Thread(target=reader.read, daemon=True)
        drain.start()
        writer.close()
        stream.close()
        drain.join(10)


def test_a_reader_that_has_gone_is_told_of():
    class Gone(io.StringIO):
        def write(self, _text):
            raise BrokenPipeError

    closed = []
    writer = LineWriter(Gone(), on_closed=lambda: closed.append(True))
    writer.line("x")
    until(lambda: closed, within=5, what="the end of the reader")
    writer.close()


def test_a_table_aligns_and_shows_what_is_empty():
    assert table(("NAME", "X"), [("a", "1"), ("long name", ""), ("b\n", "2")]) == [
        "NAME       X",
        "a          1",
        "long name  -",
        "b\\n        2",
    ]
