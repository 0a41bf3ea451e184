"""Bodies, whole and cut, bounded, truncated and hostile."""

import gzip
import random
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.protocols.decoding import (
    AMBIGUOUS,
    ENCODING,
    FREE,
    MALFORMED,
    MAX_MEMBERS,
    MEMBERS,
    RATIO,
    STEP,
    TRAILING,
    TRUNCATED,
    WINDOW,
    Bounds,
    Decoder,
)  # fmt: skip
from tests.effort import examples
from tests.harness.table import each_row

WIDE = Bounds(window=1 << 20)
TEXT = b"".join(b"%d: the quick brown fox jumps over the lazy dog\n" % number for number in range(400))
NOISE = random.Random(7).randbytes(50000)


def raw(data, level=6):
    deflate = zlib.compressobj(level, zlib.DEFLATED, -15)
    return deflate.compress(data) + deflate.flush()


def decode(encodings, data, bounds=WIDE, size=0):
    """All output and the reason."""
    decoder = Decoder(encodings, bounds)
    out = b""
    for at in range(0, len(data), size or len(data) or 1):
        out += decoder.feed(data[at : at + (size or len(data))])
    return out + decoder.finish(), decoder.reason


ENCODED = {
    "identity": ([], TEXT),
    "named identity": ([b"identity, ", b""], TEXT),
    "gzip": ([b"gzip"], gzip.compress(TEXT)),
    "x-gzip in capitals": ([b" X-GZIP\t"], gzip.compress(TEXT)),
    "gzip in members": ([b"gzip"], gzip.compress(TEXT[:9]) + gzip.compress(b"") + gzip.compress(TEXT[9:])),
    "deflate": ([b"deflate"], zlib.compress(TEXT)),
    "deflate, stored": ([b"deflate"], zlib.compress(TEXT, 0)),
    "deflate without header": ([b"deflate"], raw(TEXT)),
    "deflate without header, stored": ([b"deflate"], raw(TEXT, 0)),
    "two layers": ([b"deflate", b"gzip"], gzip.compress(zlib.compress(TEXT))),
    "two layers in one field": ([b"gzip, identity, deflate"], raw(gzip.compress(TEXT))),
}


@each_row("encodings, data", ENCODED.values(), ids=ENCODED.keys())
@each_row("size", [0, 1, 2, 3, 7, 1000, STEP, STEP + 1])
def test_bodies_are_decoded_however_they_are_cut(encodings, data, size):
    assert decode(encodings, data, size=size) == (TEXT, None)


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b""])
def test_empty_bodies_are_right(encoding):
    assert decode([encoding], b"") == (b"", None)


@pytest.mark.parametrize("text", [b"", b"a", b"ab"])
def test_the_shortest_deflate_comes_out_at_the_end(text):
    assert decode([b"deflate"], raw(text)) == (text, None)
    assert decode([b"gzip, deflate"], raw(gzip.compress(text))) == (text, None)


@pytest.mark.parametrize(
    "encoding", [b"br", b"zstd", b"compress", b"gzip, br", b"aes128gcm", b"gzip;q=1", b"gzip gzip"]
)
def test_other_encodings_are_not_decoded(encoding):
    assert decode([encoding], b"data") == (b"", ENCODING)


def test_more_than_two_layers_are_not_decoded():
    assert decode([b"gzip, gzip", b"gzip"], b"data") == (b"", ENCODING)
    assert decode([b"gzip," * 1000], b"data") == (b"", ENCODING)


def stored_and_zlib():
    """Deflate that is valid with a zlib header (b"x\\x9c", then a block) and as a stored block of 0x..9c bytes."""
    return b"\x78\x9c\x00\x63\xff" + bytes(0x9C)


SPOILT = {
    "no gzip": (b"gzip", b"hello", b"", MALFORMED),
    "no deflate": (b"deflate", b"\xff\xff\xff\xff\xff\xff", b"", MALFORMED),
    "a dictionary": (b"deflate", b"\x78\xbb\x01\x02\x03\x04" + raw(b"x"), b"", MALFORMED),
    "two things": (b"deflate", stored_and_zlib(), b"", AMBIGUOUS),
    "a wrong checksum": (b"gzip", gzip.compress(TEXT)[:-8] + bytes(8), TEXT, MALFORMED),
    "cut gzip": (b"gzip", gzip.compress(TEXT)[:-1], TEXT, TRUNCATED),
    "a cut header": (b"gzip", b"\x1f\x8b\x08", b"", TRUNCATED),
    "cut deflate": (b"deflate", zlib.compress(TEXT)[:-1], TEXT, TRUNCATED),
    "one byte": (b"deflate", b"\x78", b"", TRUNCATED),
    "zeros behind gzip": (b"gzip", gzip.compress(TEXT) + bytes(9), TEXT, TRAILING),
    "a byte behind gzip": (b"gzip", gzip.compress(TEXT) + b"\x1f", TEXT, TRAILING),
    "a request behind gzip": (b"gzip", gzip.compress(TEXT) + b"GET / HTTP/1.1", TEXT, TRAILING),
    "half a member behind gzip": (b"gzip", gzip.compress(TEXT) + b"\x1f\x8b\x08", TEXT, TRUNCATED),
    "something behind deflate": (b"deflate", zlib.compress(TEXT) + b"x", TEXT, TRAILING),
    "members": (b"gzip", gzip.compress(b"a") * (MAX_MEMBERS + 1), b"a" * MAX_MEMBERS, MEMBERS),
}


@pytest.mark.parametrize(("encoding", "data", "out", "reason"), SPOILT.values(), ids=SPOILT.keys())
@pytest.mark.parametrize("size", [0, 1, 5, 1000])
def test_spoilt_bodies_have_a_reason(encoding, data, out, reason, size):
    assert decode([encoding], data, size=size) == (out, reason)


@pytest.mark.parametrize("size", [0, 1, 100])
def test_output_before_an_error_comes_out(size):
    text = NOISE[:6000] + TEXT
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    data = deflate.compress(text) + deflate.flush(zlib.Z_SYNC_FLUSH)
    no_type_of_block = b"\x07"
    assert decode([b"deflate"], data + no_type_of_block, size=size) == (text, MALFORMED)


@pytest.mark.parametrize(("encodings", "data"), ENCODED.values(), ids=ENCODED.keys())
@pytest.mark.parametrize("size", [0, 1, 1000])
def test_no_more_than_the_window_comes_out(encodings, data, size):
    assert decode(encodings, data, Bounds(len(TEXT)), size) == (TEXT, None)
    if len(encodings) < 2 and b"," not in b"".join(encodings):
        assert decode(encodings, data, Bounds(len(TEXT) - 1), size) == (TEXT[:-1], WINDOW)
        assert decode(encodings, data, Bounds(0), size) == (b"", WINDOW)


@pytest.mark.parametrize("size", [0, 500, 100000])
def test_bombs_are_stopped(size):
    bomb = gzip.compress(bytes(20 << 20))
    out, reason = decode([b"gzip"], bomb, Bounds(1 << 30), size)
    assert reason == RATIO
    assert len(out) <= 1032 * STEP
    twice = gzip.compress(bomb)
    assert decode([b"gzip, gzip"], twice, Bounds(1 << 30), size)[1] == RATIO
    assert decode([b"gzip"], bomb, Bounds(65536), size) == (bytes(65536), WINDOW)


def test_short_repetitive_bodies_are_no_bombs():
    assert decode([b"gzip"], gzip.compress(bytes(FREE))) == (bytes(FREE), None)
    assert decode([b"gzip"], gzip.compress(bytes(FREE * 4)))[1] == RATIO


def test_nothing_comes_out_after_a_reason():
    decoder = Decoder([b"gzip"], WIDE)
    decoder.feed(b"no gzip")
    assert decoder.feed(gzip.compress(TEXT)) == b""
    assert decoder.finish() == b""
    assert decoder.reason == MALFORMED


PIECES = st.lists(
    st.sampled_from([b"a" * 3000, NOISE[:5000], TEXT[:9000], b"", bytes(30000)]) | st.binary(max_size=50), max_size=6
)
CODERS: dict[bytes, Any] = {b"gzip": gzip.compress, b"deflate": zlib.compress, b"x-gzip": gzip.compress}


@given(
    pieces=PIECES,
    layers=st.lists(st.sampled_from(sorted(CODERS)), max_size=2),
    window=st.sampled_from([0, 1, 100, 20000, 1 << 20]),
    ratio=st.sampled_from([1, 20, 1100]),
    spoil=st.none() | st.tuples(st.integers(0, 10**6), st.binary(max_size=3)),
    cuts=st.integers(1, 6000),
)
@settings(deadline=None, max_examples=examples(200))
def test_fuzzed_bodies_have_the_same_outcome_however_they_are_rechunked(pieces, layers, window, ratio, spoil, cuts):
    data = b"".join(pieces)
    body = data
    for layer in layers:
        body = CODERS[layer](body)
    if spoil is not None and body:
        at = spoil[0] % len(body)
        body = body[:at] + spoil[1] + body[at + 2 :]
    bounds = Bounds(window, ratio)
    whole = decode(layers, body, bounds)
    assert decode(layers, body, bounds, cuts) == whole
    assert len(whole[0]) <= window
    if spoil is None:
        assert data.startswith(whole[0])
        assert whole[1] in (None, WINDOW, RATIO)
        assert whole[1] is not None or whole[0] == data


@given(st.binary(max_size=400), st.sampled_from([[b"gzip"], [b"deflate"], [b"gzip", b"deflate"]]))
@settings(deadline=None, max_examples=examples(200))
def test_arbitrary_bytes_end_in_a_reason_or_are_what_zlib_says(data, encodings):
    whole = decode(encodings, data)
    assert decode(encodings, data, size=1) == whole
    if encodings == [b"deflate"] and whole[1] is None and data:
        assert whole[0] == zlib.decompress(
            data, 15 if data[0] & 0x8F == 8 and int.from_bytes(data[:2]) % 31 == 0 else -15
        )
