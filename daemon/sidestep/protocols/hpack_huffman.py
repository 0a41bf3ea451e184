"""HPACK's Huffman code, decoded a byte at a time (RFC 7541 section 5.2 and appendix B).

The code of appendix B is canonical: sorted by (length, symbol) the codes count upwards, so the 257 lengths say
everything. From them comes a tree of exactly 256 inner nodes, and from the tree two flat tables indexed by
`node << 8 | byte`: the node where that byte ends, and the number of the piece of text it completes (no symbol, one or
two: the shortest code has five bits). With the 17,665 pieces that is 1 MiB, built once (30 ms) when the module is
imported and shared by fork; rows of tuples would be a little faster and cost 5 MiB.

A byte that completes EOS has no piece: the number that stands there lies past the last one. What is left at the end
must be the beginning of EOS (ones only) and shorter than a byte.
"""

from __future__ import annotations

from array import array
from functools import lru_cache
from typing import Final

LENGTHS: Final = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b08060606"
    "0505050606060606060607080f060c0a0d06070707070707070707070707070707070707070707070807080d130d0e06"
    "0f05060506050606060507070606060506070605050607070707070f0b0e0d1c14161414161616171617171717171817"
    "181816171817171717151617161717181615141616171715171616181516171715151615171617171416161617161617"
    "1a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b14181415161515171616191918181a17"
    "1a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a1e"
)
"""Bits of the code of each symbol; symbol 256 is EOS."""
EOS: Final = 256
SHORT: Final = 128
"""Encoded bytes up to which a string is worth remembering."""
REMEMBERED: Final = 2048
"""Strings remembered; with `SHORT` this bounds the cache to about half a MiB."""
NO_PIECE: Final = 0xFFFF


def codes() -> list[int]:
    """The code of each symbol, right-aligned in as many bits as `LENGTHS` says."""
    result = [0] * len(LENGTHS)
    code = length = 0
    for symbol in sorted(range(len(LENGTHS)), key=lambda each: (LENGTHS[each], each)):
        code <<= LENGTHS[symbol] - length
        length = LENGTHS[symbol]
        result[symbol] = code
        code += 1
    return result


def _tree() -> list[list[int]]:
    """Inner nodes as [next on 0, next on 1]; a leaf is the complement of its symbol (so that it is negative)."""
    nodes = [[0, 0]]
    for symbol, code in enumerate(codes()):
        node = 0
        for shift in range(LENGTHS[symbol] - 1, 0, -1):
            bit = code >> shift & 1
            if not nodes[node][bit]:
                nodes[node][bit] = len(nodes)
                nodes.append([0, 0])
            node = nodes[node][bit]
        nodes[node][code & 1] = ~symbol
    return nodes


_NODES: Final = _tree()


def _walk(node: int, value: int, bits: int) -> tuple[int, bytes | None]:
    """Follow some bits: the node reached and the symbols completed, None once EOS is among them."""
    text = b""
    for shift in range(bits - 1, -1, -1):
        node = _NODES[node][value >> shift & 1]
        if node < 0:
            symbol = ~node
            if symbol == EOS:
                return 0, None
            text += bytes((symbol,))
            node = 0
    return node, text


def _flatten() -> tuple[bytes, array[int], list[bytes]]:
    """The two tables and the pieces, composed from half bytes."""
    halves = [[_walk(node, value, 4) for value in range(16)] for node in range(256)]
    numbers: dict[bytes, int] = {}
    following = bytearray()
    emitted = array("H")
    for row in halves:
        for high in range(16):
            middle, first = row[high]
            for node, second in halves[middle]:
                following.append(node)
                if first is None or second is None:
                    emitted.append(NO_PIECE)
                else:
                    emitted.append(numbers.setdefault(first + second, len(numbers)))
    return bytes(following), emitted, list(numbers)


_FOLLOWING, _EMITTED, _PIECES = _flatten()
_COMPLETE: Final = frozenset(_walk(0, (1 << bits) - 1, bits)[0] for bits in range(8))
"""Nodes at which a string may end: the root, and up to seven ones."""


def decode(data: bytes) -> bytes:
    """Decode one string. Raises ValueError on EOS, on padding that is not ones, and on a whole byte of padding."""
    if len(data) <= SHORT:
        return _remembered(data)
    return _decode(data)


def _decode(data: bytes) -> bytes:
    node = 0
    pieces = _PIECES
    following = _FOLLOWING
    emitted = _EMITTED
    text = []
    try:
        for byte in data:
            step = node << 8 | byte
            text.append(pieces[emitted[step]])
            node = following[step]
    except IndexError:
        raise ValueError("EOS in a Huffman string") from None
    if node not in _COMPLETE:
        raise ValueError("bad padding of a Huffman string")
    return b"".join(text)


_remembered = lru_cache(REMEMBERED)(_decode)
