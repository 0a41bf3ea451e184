"""`sidestep replay`: sends the requests of an HTTP Archive to a server, and shows where its answers differ."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from sidestep.aio.named_file import read_named
from sidestep.cli.command import Command, FilePath
from sidestep.cli.filtering import filter_of, filter_options
from sidestep.cli.options import output_option
from sidestep.cli.output import json_line
from sidestep.cli.request_text import StatusType, duration
from sidestep.config.durations import parse_duration
from sidestep.config.filters import check_exact_value, check_name
from sidestep.laptop.replay.message import Incoming
from sidestep.laptop.replay.recorded import Recorded, hidden_fields, recorded
from sidestep.laptop.replay.sending import send_all
from sidestep.laptop.replay.target import Target, parse_target
from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.text import harmless
from sidestep.policy.matching import compile_filter
from sidestep.policy.route import Matches
from sidestep.protocols import har

DIFFERENT = 1
"""Exit code when `--compare` has found a difference, or a request got no answer."""
LONGEST = 3600.0
"""Seconds."""


class NumbersType(click.ParamType[tuple[int, int]]):
    """`N` or `N-M`: entries of a file, the first one is 1."""

    name = "N[-M]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """As click.ParamType.convert."""
        if isinstance(value, tuple):
            return value
        first, dash, last = str(value).partition("-")
        numbers = (first, last if dash else first)
        if not all(text.isascii() and text.isdigit() and len(text) <= 9 for text in numbers):
            self.fail(f"{value!r}: a number, or a range such as 3-7", param, ctx)
        low, high = (int(text) for text in numbers)
        if not 1 <= low <= high:
            self.fail(f"{value!r}: entries are counted from 1, and a range goes upwards", param, ctx)
        return low, high


@dataclass(slots=True)
class _Totals:
    sent: int = 0
    failed: int = 0
    different: int = 0
    unsent: int = 0


@click.command(cls=Command, short_help="Send recorded requests again, and compare the answers.")
@click.argument("file", type=FilePath())
@click.option("--to", "to", required=True, metavar="URL", help="Server to send to: http://HOST:PORT or https://…")
@click.option(
    "--only", "only", type=NumbersType(), multiple=True, metavar="N[-M]", help="Only these requests of the file."
)
@filter_options
@click.option(
    "--http-status",
    "statuses",
    type=StatusType(),
    multiple=True,
    metavar="STATUS",
    help="Only requests that were answered so when they were recorded: 404, 5xx, none.",
)
@click.option("--compare", is_flag=True, help="Show where answers differ from the recorded ones; exit code 1 if any.")
@click.option(
    "--set-header", "headers_to_set", multiple=True, metavar="NAME=VALUE", help="Send this field in place of the own."
)
@click.option(
    "--version-of-http",
    "version",
    type=click.Choice(["recorded", "1.1", "2"]),
    default="recorded",
    show_default=True,
    help="Send in this version of HTTP.",
)
@click.option("--timeout", default="10s", show_default=True, metavar="TIME", help="For each request.")
@click.option("--ca", type=FilePath(), metavar="FILE", help="Verify the server against this CA (PEM).")
@click.option("--insecure", is_flag=True, help="Do not verify the server's certificate.")
@output_option
def replay(
    file: Path,
    to: str,
    only: tuple[tuple[int, int], ...],
    statuses: tuple[str, ...],
    compare: bool,
    headers_to_set: tuple[str, ...],
    version: str,
    timeout: str,
    ca: Path | None,
    insecure: bool,
    output: str,
    **filters: Any,
) -> int:
    """Send the requests of FILE, an HTTP Archive (HAR 1.2), to a server, one after the other.

    FILE is what `sidestep flows --save` or `sidestep wiretap --save` has written, or a browser or mitmproxy. Requests
    are sent in their version of HTTP, with their Host. A request whose body was not recorded is not sent. Fields whose
    values were redacted are left out; --set-header gives them a value.

    --compare shows which answers differ in status, header fields or body from the recorded ones. Dates and other fields
    that change each time do not count.

    \b
      sidestep replay orders.har --to http://127.0.0.1:8080 --compare
      sidestep replay orders.har --to https://127.0.0.1:8443 --insecure --only 3-7
      sidestep replay orders.har --to http://127.0.0.1:8080 --http-status 5xx --set-header "authorization=Bearer x"
    """
    try:
        matches = compile_filter(filter_of(filters))
        target = parse_target(to, ca=ca, insecure=insecure)
        seconds = parse_duration(timeout, minimum=0.1, maximum=LONGEST, subject="--timeout")
        replaced = _replaced(headers_to_set)
    except (ConfigurationError, RefusedError) as error:
        raise click.UsageError(str(error)) from error
    entries = har.decode(read_named(file, subject="FILE", limit=har.MAX_FILE), subject=str(file))
    chosen = [
        recorded(number, entry, replaced)
        for number, entry in enumerate(entries, start=1)
        if _is_meant(number, entry, only, statuses) and _matches(entry, matches)
    ]
    if not chosen:
        raise RefusedError(f"none of the {len(entries)} requests in {file} is meant")
    h2 = {"recorded": None, "1.1": False, "2": True}[version]
    totals = asyncio.run(_send(chosen, target, seconds, h2=h2, compare=compare, in_json=output == "json"))
    if output == "text":
        for line in _summary(chosen, totals, compare=compare):
            click.echo(harmless(line))
    return DIFFERENT if totals.failed or totals.different else 0


async def _send(
    chosen: Sequence[Recorded], target: Target, seconds: float, *, h2: bool | None, compare: bool, in_json: bool
) -> _Totals:
    totals = _Totals()
    async with aclosing(send_all(chosen, target, seconds=seconds, h2=h2, compare=compare)) as replayed:
        async for each in replayed:
            if each.recorded.request is None:
                totals.unsent += 1
            else:
                totals.sent += 1
            totals.failed += each.failed
            totals.different += bool(each.found)
            line = (_json if in_json else _line)(each.recorded, each.answer, each.found, each.problem)
            if in_json or each.problem or each.found or not compare:
                click.echo(line)
    return totals


def _line(each: Recorded, answer: Incoming | None, found: list[str], problem: str) -> str:
    request = each.entry.request
    what = f"{each.number}  {request.method} {request.url}"
    if answer is None:
        return harmless(f"{what}  {'not sent' if each.request is None else 'failed'}: {problem}")
    text = f"{what}  {answer.status}, {duration(answer.seconds) or '0.0 ms'}, {len(answer.body)} B"
    return harmless("; ".join([text, *found]) if not found else f"{text}  differs: {'; '.join(found)}")


def _json(each: Recorded, answer: Incoming | None, found: list[str], problem: str) -> str:
    request = each.entry.request
    return json_line(
        {
            "number": each.number,
            "method": request.method,
            "url": request.url,
            "sent": each.request is not None,
            "problem": problem,
            "recorded_status": 0 if each.entry.response is None else each.entry.response.status,
            "status": 0 if answer is None else answer.status,
            "seconds": 0.0 if answer is None else answer.seconds,
            "size": 0 if answer is None else len(answer.body),
            "trailers": []
            if answer is None
            else [(name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.trailers],
            "differences": found,
        }
    )


def _summary(chosen: Sequence[Recorded], totals: _Totals, *, compare: bool) -> Iterable[str]:
    if hidden := hidden_fields(chosen):
        yield hidden
    text = f"{totals.sent} of {len(chosen)} requests sent"
    if totals.failed:
        text += f", {totals.failed} without an answer"
    yield text + "."
    if compare:
        yield f"{totals.different} of {totals.sent - totals.failed} answers differ."


def _is_meant(number: int, entry: har.Entry, only: tuple[tuple[int, int], ...], statuses: tuple[str, ...]) -> bool:
    if only and not any(low <= number <= high for low, high in only):
        return False
    status = 0 if entry.response is None else entry.response.status
    told = str(status) if status else "none"
    return not statuses or told in statuses or (status > 0 and f"{told[0]}xx" in statuses)


def _matches(entry: har.Entry, matches: Matches) -> bool:
    _, _, rest = entry.request.url.partition("://")
    path = ("/" + rest.partition("/")[2]).partition("?")[0].partition("#")[0]
    fields = [(_bytes(field.name.lower()), _bytes(field.value)) for field in entry.request.headers]
    return matches(_bytes(entry.request.method), _bytes(path), fields)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _replaced(headers: tuple[str, ...]) -> dict[bytes, bytes]:
    replaced = {}
    for header in headers:
        name, equals, value = header.partition("=")
        if not equals:
            raise ConfigurationError("write NAME=VALUE", subject="--set-header", value=header[:100])
        check_name(name.lower())
        check_exact_value(value, subject="--set-header")
        replaced[name.lower().encode()] = value.encode()
    return replaced
