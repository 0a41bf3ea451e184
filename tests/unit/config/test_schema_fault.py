"""No word of the decoder's own reaches a person."""

from __future__ import annotations

import pytest

from sidestep.model.errors import PeerError
from sidestep.tunnel.messages import SessionSpec, decode

GOOD = '"namespace":"shop","workload":"orders","port":"9"'


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (b"{}", "lacks namespace"),
        (b'{"namespace":"a","workload":"","port":"1"}', "workload: is empty"),
        (b'{"namespace":1}', "namespace: must be a text, not a whole number"),
        (b'{"namespace":null}', "namespace: must be a text, not null"),
        (b"[]", "must be an object, not a list"),
        (b"{", "is not JSON of the expected form"),
        (b"\xff", "is not JSON of the expected form"),
        (b'{"resume":' + b"[" * 100_000, "resume: must be a text, not a list"),
        (f'{{{GOOD},"kind":"x\\u001b"}}'.encode(), "none of the values that are possible"),
        (f'{{{GOOD},"headers":[{{"name":"","test":"exact"}}]}}'.encode(), "headers[0].name: is empty"),
        (f'{{{GOOD},"methods":{["GET"] * 65}}}'.replace("'", '"').encode(), "methods: must have at most 64 entries"),
        (f'{{{GOOD},"pod":"{"x" * 254}"}}'.encode(), "pod: must have at most 253 characters"),
        (f'{{{GOOD},"created":"x"}}'.encode(), "created: must be a number, not a text"),
        (f'{{{GOOD},"plaintext":1}}'.encode(), "plaintext: must be true or false, not a whole number"),
    ],
)
def test_in_words(document, said):
    with pytest.raises(PeerError) as caught:
        decode(document, SessionSpec, what="the session's spec")
    text = str(caught.value)
    assert text.startswith("the session's spec cannot be read: ")
    assert said in text
    assert text.isprintable()
    assert not {"`", "$"} & set(text)
