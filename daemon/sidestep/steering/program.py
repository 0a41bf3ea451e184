"""A compiled program: instructions that name their maps by position, the maps' layouts, and their relocation.

No map exists while a program is compiled: a map reference in the instructions is the map's index in `maps`. Loading a
program for a pod is then: create the maps, put their descriptors where the indices stand, load. A map reference is a
two-slot `ld_imm64` whose source register field says BPF_PSEUDO_MAP_FD
(Documentation/bpf/standardization/instruction-set.rst, "64-bit immediate instructions").
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import msgspec

from sidestep.model.errors import BugError
from sidestep.steering.layout import MapLayout, Source

FORMAT = 3
"""Version of what the compiler child prints."""

INSTRUCTION = struct.Struct("=BBhi")
"""`struct bpf_insn`: opcode, registers (destination low, source high), offset, immediate."""

MAX_INSTRUCTIONS = 4096
"""Far above our 150; bounds what is accepted from the child."""

_LD_IMM64 = 0x18
_PSEUDO_MAP_FD = 1


class CompilerOutput(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One msgpack document on the compiler child's standard output: functions by name, or why there are none."""

    format: int
    error: str
    functions: dict[str, bytes]


class CompiledProgram(msgspec.Struct, frozen=True):
    """Instructions whose map references are indices into `maps`; valid for this machine's architecture."""

    instructions: bytes
    maps: tuple[MapLayout, ...]

    def relocated(self, descriptors: Sequence[int]) -> bytes:
        """Instructions with `descriptors[i]` in the place of a reference to `maps[i]`."""
        return rewrite_references(self.instructions, dict(enumerate(descriptors)))


def map_references(instructions: bytes) -> Iterator[tuple[int, int]]:
    """Byte offset and immediate of every map reference. Raises BugError for what is not a list of instructions."""
    if len(instructions) % INSTRUCTION.size or len(instructions) > MAX_INSTRUCTIONS * INSTRUCTION.size:
        raise BugError(f"{len(instructions)} bytes are not a BPF program")
    offset = 0
    while offset < len(instructions):
        opcode, registers, _, immediate = INSTRUCTION.unpack_from(instructions, offset)
        wide = opcode == _LD_IMM64
        if wide and registers >> 4 == _PSEUDO_MAP_FD:
            yield offset, immediate
        offset += INSTRUCTION.size * (2 if wide else 1)
    if offset != len(instructions):
        raise BugError("the BPF program ends in the middle of an instruction")


def rewrite_references(instructions: bytes, replacements: dict[int, int]) -> bytes:
    """Replace the immediate of every map reference. Raises BugError for one that `replacements` does not know."""
    result = bytearray(instructions)
    for offset, immediate in map_references(instructions):
        if immediate not in replacements:
            raise BugError(f"the BPF program refers to an unknown map {immediate}")
        opcode, registers, jump, _ = INSTRUCTION.unpack_from(instructions, offset)
        INSTRUCTION.pack_into(result, offset, opcode, registers, jump, replacements[immediate])
    return bytes(result)


def checked(output: CompilerOutput, source: Source) -> dict[str, CompiledProgram]:
    """Accept what the child compiled only if it matches steering/layout.py. Raises BugError where it does not."""
    if output.format != FORMAT:
        raise BugError(f"the compiler child speaks format {output.format}, not {FORMAT}")
    if set(output.functions) != set(source.functions):
        raise BugError(f"{source.name}.c has {sorted(output.functions)}, not {sorted(source.functions)}")
    used: set[int] = set()
    for name, instructions in output.functions.items():
        indices = {immediate for _, immediate in map_references(instructions)}
        if not indices or not indices <= set(range(len(source.maps))):
            raise BugError(f"the BPF program {name} refers to maps {sorted(indices)} of {len(source.maps)}")
        used |= indices
    if len(used) < len(source.maps):
        raise BugError(f"the BPF programs of {source.name}.c refer to maps {sorted(used)} of {len(source.maps)}")
    return {name: CompiledProgram(code, source.maps) for name, code in output.functions.items()}
