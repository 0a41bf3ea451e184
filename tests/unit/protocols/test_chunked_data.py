"""The data of chunked bodies, however they are cut."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from sidestep.protocols.chunked import ChunkedBody
from sidestep.protocols.chunked_data import ChunkedData

TRAILERS = b"X-Sum: 1\r\nX-Other: 2\r\n\r\n"


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.integers(0, 1 << 30))
def test_data_and_trailers(chunks, seed):
    random = Random(seed)
    body = b"".join(b"%X;a=b\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"00\r\n" + TRAILERS
    assert ChunkedBody().read(body) == len(body)
    reader = ChunkedData()
    data = trailers = b""
    at = 0
    while at < len(body):
        size = random.choice((1, 2, 5, 1000))
        data += reader.read(body[at : at + size])
        trailers += reader.trailers
        at += size
    assert data == b"".join(chunks)
    assert trailers == TRAILERS
