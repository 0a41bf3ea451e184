"""Packets between the node daemon and the zygote of the inspectors: MessagePack, one per packet."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

from sidestep.protocols.waf_messages import Number, Text


class Loaded(msgspec.Struct, array_like=True, tag="loaded"):
    """The zygote has loaded the rules: which engine, what each rule finds, which version of the Core Rule Set.

    `left_out` are rules that the engine cannot apply.
    """

    seq: Number
    version: int
    engine: Text
    names: Annotated[dict[int, str], msgspec.Meta(max_length=4096)]
    crs: Text = ""
    left_out: Annotated[tuple[Number, ...], msgspec.Meta(max_length=4096)] = ()


class Spawn(msgspec.Struct, array_like=True, tag="spawn"):
    """Fork an inspector for the socket that comes with this; `memory` is in bytes."""

    seq: Number
    uid: Number
    memory: int


class Spawned(msgspec.Struct, array_like=True, tag="spawned"):
    """An inspector, whose pidfd comes with this; or why there is none."""

    seq: Number
    pid: Number = 0
    error: Text | None = None


ToZygote: TypeAlias = Spawn
FromZygote: TypeAlias = Loaded | Spawned
