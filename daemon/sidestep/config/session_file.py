"""`sidestep.yaml`: the sessions of a project, and the handlers that they need, as `sidestep up` reads it.

`schema` is the JSON schema of the file, which docs/sidestep.schema.json holds for editors. What options of `sidestep
intercept` check (ports, filters, names) is checked by them.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from sidestep.config import yaml_documents
from sidestep.config.schema_fault import fault_of
from sidestep.model.errors import ConfigurationError

MAX_FILE = 256 * 1024
"""Bytes of a file."""
MAX_ENTRIES = 32
"""Intercepts, wiretaps, or handlers of a file."""

Word = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
Words = Annotated[tuple[Word, ...], msgspec.Meta(max_length=32)]


class _Fields(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    pass


class HandlerEntry(_Fields, frozen=True):
    """A command that is started with the sessions, and ended with them."""

    command: Annotated[tuple[Word, ...], msgspec.Meta(min_length=1, max_length=256)]
    directory: str = ""
    """Where it runs, relative to the file; the file's folder by default."""
    environment: dict[str, str] = {}


class WiretapEntry(_Fields, frozen=True):
    """A wiretap: fields as the options of `sidestep wiretap`."""

    workload: Word
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | Word
    """The handler's port, or with the workload's port: `9443:https`."""
    name: str = ""
    namespace: str = ""
    pod: str = ""
    address: Word = "127.0.0.1"
    plaintext: bool = False
    handler_ca: str = ""
    headers: Words = ()
    """`NAME=VALUE`, `NAME=~REGEX` or `NAME`, as `--http-header`."""
    methods: Words = ()
    path_equal: Words = ()
    path_prefix: Words = ()
    path_regex: Words = ()


class InterceptEntry(WiretapEntry, frozen=True):
    """An intercept: fields as the options of `sidestep intercept`."""

    divert_probes: bool = False
    reset_existing: bool = False


class SessionFile(_Fields, frozen=True):
    """A whole file."""

    namespace: str = ""
    """Of sessions that name none."""
    intercepts: Annotated[tuple[InterceptEntry, ...], msgspec.Meta(max_length=MAX_ENTRIES)] = ()
    wiretaps: Annotated[tuple[WiretapEntry, ...], msgspec.Meta(max_length=MAX_ENTRIES)] = ()
    handlers: Annotated[dict[str, HandlerEntry], msgspec.Meta(max_length=MAX_ENTRIES)] = {}


def schema() -> dict[str, Any]:
    """Return the JSON schema of a file."""
    found = msgspec.json.schema(SessionFile)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "sidestep.yaml", **found}


def read_session_file(text: str) -> SessionFile:
    """Read a file: one YAML document. Raises ConfigurationError with the line or the field."""
    try:
        documents = list(yaml_documents.split(text))
        if len(documents) != 1:
            raise ConfigurationError(f"has {len(documents)} documents, and is one")
        found = msgspec.convert(yaml_documents.load(documents[0]), SessionFile)
    except yaml_documents.YamlError as error:
        raise ConfigurationError(f"line {error.line}: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigurationError(fault_of(error)) from error
    if not found.intercepts and not found.wiretaps:
        raise ConfigurationError("has neither intercepts nor wiretaps")
    return found
