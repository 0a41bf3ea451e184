"""Relocation and acceptance of what the compiler child hands over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.model.errors import BugError
from sidestep.model.pod import Family, Transport
from sidestep.steering.bpf import LinkInfo, count_cpus
from sidestep.steering.layout import LOOKUP_SOURCE, PROGRAM, pack_key, unpack_key
from sidestep.steering.program import (
    FORMAT,
    INSTRUCTION,
    MAX_INSTRUCTIONS,
    CompilerOutput,
    checked,
    map_references,
    rewrite_references,
)

LD_IMM64 = 0x18
EXIT = INSTRUCTION.pack(0x95, 0, 0, 0)


def wide(immediate: int, *, source: int = 1, register: int = 3, second: int = 0) -> bytes:
    return INSTRUCTION.pack(LD_IMM64, source << 4 | register, 0, immediate) + INSTRUCTION.pack(0, 0, 0, second)


def test_references_to_maps_are_found_and_rewritten():
    code = wide(0) + EXIT + wide(1, register=1) + EXIT
    assert list(map_references(code)) == [(0, 0), (24, 1)]
    assert rewrite_references(code, {0: 71, 1: 72}) == wide(71) + EXIT + wide(72, register=1) + EXIT


def test_constants_are_not_taken_for_maps():
    code = wide(7, source=0, second=9) + EXIT
    assert list(map_references(code)) == []
    assert rewrite_references(code, {}) == code


def test_the_second_slot_of_a_wide_instruction_is_not_read_as_one():
    code = INSTRUCTION.pack(LD_IMM64, 0, 0, 0) + wide(5)[:8] + EXIT
    assert list(map_references(code)) == []


@pytest.mark.parametrize(
    "code",
    [b"\0" * 7, wide(0)[:8], EXIT + wide(0)[:8], EXIT * (MAX_INSTRUCTIONS + 1)],
    ids=["odd length", "half an instruction", "half at the end", "too long"],
)
def test_what_is_not_a_program_is_refused(code):
    with pytest.raises(BugError):
        list(map_references(code))


def test_an_unknown_map_is_refused():
    with pytest.raises(BugError, match="unknown map 4"):
        rewrite_references(wide(4), {0: 9})


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_rewritten_to_the_same_length_or_refused(code):
    try:
        changed = rewrite_references(code, {})
    except BugError:
        return
    assert changed == code


MAPS = len(LOOKUP_SOURCE.maps)


def using(maps: int) -> bytes:
    """A program that refers to so many maps."""
    return b"".join(wide(index) for index in range(maps)) + EXIT


def output(**changes) -> CompilerOutput:
    fields = {"format": FORMAT, "error": "", "functions": {PROGRAM: using(MAPS)}}
    return CompilerOutput(**{**fields, **changes})


def test_the_expected_program_is_accepted():
    program = checked(output(), LOOKUP_SOURCE)[PROGRAM]
    descriptors = range(50, 50 + MAPS)
    assert program.relocated(list(descriptors)) == b"".join(wide(each) for each in descriptors) + EXIT


@pytest.mark.parametrize(
    "changes",
    [
        {"format": FORMAT + 1},
        {"functions": {PROGRAM: using(MAPS - 1)}},
        {"functions": {PROGRAM: using(MAPS + 1)}},
        {"functions": {}},
    ],
    ids=["format", "map unused", "map unknown", "function missing"],
)
def test_what_differs_from_the_layout_is_refused(changes):
    with pytest.raises(BugError):
        checked(output(**changes), LOOKUP_SOURCE)


@pytest.mark.parametrize("transport", Transport)
@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("port", [1, 443, 65535])
def test_keys_round_trip(port, transport, family):
    key = pack_key(port, transport, family)
    assert len(key) == 4
    assert unpack_key(key) == (port, transport, family)


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_a_key_needs_a_port(port):
    with pytest.raises(BugError):
        pack_key(port, Transport.TCP, Family.IPV4)


@pytest.mark.parametrize("data", [b"", b"\1\0\6", b"\1\0\7\2", b"\1\0\6\3"])
def test_impossible_keys_are_refused(data):
    with pytest.raises(BugError):
        unpack_key(data)


def test_the_link_info_has_the_offsets_of_the_kernel():
    assert (LinkInfo.prog_id.offset, LinkInfo.netns_ino.offset, LinkInfo.attach_type.offset) == (8, 16, 20)


@pytest.mark.parametrize(("text", "count"), [("0\n", 1), ("0-1\n", 2), ("0,2-3,8\n", 4), ("0-127", 128)])
def test_cpus_are_counted(text, count):
    assert count_cpus(text) == count


@pytest.mark.parametrize("text", ["", "\n", "a", "-3", "0,,1", "0-x"])
def test_what_is_no_list_of_cpus_is_refused(text):
    with pytest.raises(BugError):
        count_cpus(text)
