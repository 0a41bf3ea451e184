"""Escapes text from untrusted sources for a terminal, a status or an Event.

A terminal obeys control characters, and characters that change the direction or place of text deceive the reader
(Unicode's categories Cc and Cf; Trojan Source). Annotations, resource names in claims, answers of peers and of API
servers can hold both. Whoever shows such text passes it through here once, where it leaves Sidestep.
"""

from __future__ import annotations

MAX_SHOWN = 2048
"""Characters of one text that are shown."""


def harmless(text: str, limit: int = MAX_SHOWN) -> str:
    """The text with escapes in the place of control characters and of what Unicode does not call printable."""
    cut = text if len(text) <= limit else text[:limit] + "…"
    if cut.isprintable():
        return cut
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "backslashreplace").decode("ascii")
        for character in cut
    )


def harmless_json(document: str) -> str:
    """A JSON document of one line that means the same, with JSON's own escapes for what is not printable.

    JSON (RFC 8259, section 7) asks for escapes below U+0020 only: U+009B, which terminals take for an escape sequence's
    beginning, may stand in a string as it is.
    """
    if document.isprintable():
        return document
    return "".join(character if character.isprintable() else _json_escape(character) for character in document)


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[index]:02x}{units[index + 1]:02x}" for index in range(0, len(units), 2))
