"""The trace that a request belongs to."""

import pytest

from sidestep.policy.tracing import trace_id

TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = b"00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ([], b""),
        ([(b"traceparent", b"00-" + TRACE + b"-" + SPAN + b"-01")], TRACE),
        ([(b"traceparent", b"cc-" + TRACE + b"-" + SPAN + b"-01-what-comes-later")], TRACE),
        ([(b"traceparent", b"ff-" + TRACE + b"-" + SPAN + b"-01")], b""),
        ([(b"traceparent", b"00-" + b"0" * 32 + b"-" + SPAN + b"-01")], b""),
        ([(b"traceparent", b"00-" + TRACE + b"-" + b"0" * 16 + b"-01")], b""),
        ([(b"traceparent", b"00-" + TRACE.upper() + b"-" + SPAN + b"-01")], b""),
        ([(b"traceparent", b"00-" + TRACE + b"-" + SPAN + b"-01\n")], b""),
        ([(b"b3", TRACE + b"-" + SPAN + b"-1-" + SPAN)], TRACE),
        ([(b"b3", TRACE.upper() + b"-" + SPAN)], TRACE),
        ([(b"b3", b"0")], b""),
        ([(b"x-b3-traceid", SPAN), (b"x-b3-spanid", SPAN)], SPAN),
        ([(b"x-b3-traceid", b"\x1b[31m")], b""),
        ([(b"b3", SPAN + b"-" + SPAN), (b"traceparent", b"00-" + TRACE + b"-" + SPAN + b"-01")], TRACE),
        ([(b"traceparent", b"none"), (b"b3", SPAN + b"-" + SPAN)], SPAN),
    ],
)
def test_the_id_of_a_trace(fields, found):
    assert trace_id(fields) == found
