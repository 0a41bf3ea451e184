"""Entry point of the command line: the commands, and the place where errors become one line and an exit code.

Exit codes: 0 done, 1 refused or failed, 2 usage. The text of a `SidestepError` is printed as it is. Any other exception
that arrives here is reported as a bug. `SIDESTEP_DEBUG=1` adds the traceback.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import click

from sidestep import __version__
from sidestep.cli.importing import uncollected
from sidestep.cli.standard_streams import open_standard_streams, silence_stdout
from sidestep.model.errors import SidestepError
from sidestep.model.text import harmless

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
COMPLETING = "_SIDESTEP_COMPLETE"
"""Environment variable by which click knows that words are to be completed."""

_UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


COMMANDS = {
    "capture": ("sidestep.cli.capture:capture", "Write decrypted traffic of a workload as packets."),
    "completion": ("sidestep.cli.completion_script:completion", "Print what completes words in a shell."),
    "connect": ("sidestep.cli.connect:connect", "Connect to what a workload's pod can reach."),
    "doctor": ("sidestep.cli.doctor:doctor", "Check this machine and its access to a cluster."),
    "env": ("sidestep.cli.env:env", "Print the variables of a workload's container."),
    "files": ("sidestep.cli.files:files", "Copy files of a workload's container."),
    "flows": ("sidestep.cli.flows:flows", "Show the requests of a workload as they come."),
    "inspect": ("sidestep.cli.inspect:inspect", "Show alerts and requests of a workload as they come."),
    "intercept": ("sidestep.cli.intercept:intercept", "Divert matching requests to a handler on this machine."),
    "leave": ("sidestep.cli.leave:leave", "End an intercept, a wiretap, flows, a capture or another session."),
    "list": ("sidestep.cli.listing:list_command", "Show workloads, ports, certificates, sessions, problems."),
    "node": ("sidestep.cli.node:node", "Run the node daemon (as root)."),
    "policy": ("sidestep.cli.policy:policy", "Check inspection policies, and except alerts from them."),
    "replay": ("sidestep.cli.replay:replay", "Send recorded requests again, and compare the answers."),
    "status": ("sidestep.cli.status:status", "Show the node daemon, target pods, sessions, problems."),
    "ui": ("sidestep.cli.ui:ui", "Show the requests of workloads on a page in a browser."),
    "up": ("sidestep.cli.up:up", "Run the sessions and handlers of a file."),
    "wiretap": ("sidestep.cli.intercept:wiretap", "Copy matching requests to a handler on this machine."),
}
"""Where each command is, and its short help, which is shown without importing it."""


class Commands(click.Group):
    """The commands of `COMMANDS`, each imported when it is needed.

    A node daemon needs no client, and clients do not need the pod proxy's engines: it takes 6 MiB less. `sidestep
    --help` imports no command, and completing words imports none either (`cli.words`).
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As Group.list_commands: by name."""
        return sorted({*COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """As Group.get_command."""
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            module, _, attribute = COMMANDS[cmd_name][0].partition(":")
            with uncollected():
                self.add_command(getattr(importlib.import_module(module), attribute))
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As Group.format_commands, from the table."""
        loaded = {name: command.get_short_help_str() for name, command in self.commands.items()}
        rows = [(name, COMMANDS[name][1] if name in COMMANDS else loaded[name]) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="sidestep")
def sidestep() -> None:
    """Take the requests meant for one Kubernetes workload to a process on your machine.

    Only those that match a filter, TLS or not; all others are answered by the workload as if nothing was there.

    \b
    Start a node daemon on a directory of manifests (as root):
      sidestep node --manifests ./manifests
    Divert your own requests to the TLS server on port 9443 of this machine, until Ctrl-C:
      sidestep intercept orders -n shop --port 9443:https --http-header x-dev=ada
    Copy requests instead, or just see them:
      sidestep wiretap orders -n shop --port 9000:https --http-method POST
      sidestep flows orders -n shop
    Have the variables of the pod, too:
      sidestep intercept orders -n shop --port 8080:http --http-header x-dev=ada --env -- python app.py
    Write decrypted traffic as packets:
      sidestep capture orders -n shop -w heads.pcapng --for 60s
    Check inspection policies, and try them on captured requests:
      sidestep policy check policies.yaml --replay today.pcapng
      sidestep policy except 2c6db743-1
    See what there is, and what is wrong:
      sidestep list
      sidestep status
      sidestep doctor
    """


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code. Never raises."""
    try:
        group: click.Group = sidestep
        if COMPLETING in os.environ:
            from sidestep.cli.words import completed_commands

            group = completed_commands()
        elif _asks_for_help(arguments):
            from sidestep.cli.words import helping_commands

            group = helping_commands()
        result = group.main(args=list(arguments), prog_name="sidestep", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        print_error(error.format_message())
        return USAGE
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "sidestep"
        print_error(f"{where}: {_one_line(error.format_message())} (try {where} --help)")
        return USAGE
    except click.ClickException as error:
        print_error(f"sidestep: {_one_line(error.format_message())}")
        return FAILED
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except SidestepError as error:
        print_error(f"sidestep: {_one_line(str(error))}")
        _debug()
        return FAILED
    except (BrokenPipeError, SystemExit):  # click exits when standard output was closed by its reader
        silence_stdout()
        return DONE
    except UnicodeEncodeError as error:
        print_error(f"sidestep: {_one_line(repr(error.object))[:200]} is not valid UTF-8 (try sidestep --help)")
        return USAGE
    except OSError as error:
        if error.errno not in _UNWRITABLE or error.filename is not None:
            return _bug(error)
        silence_stdout()
        print_error(f"sidestep: cannot write to standard output: {error.strerror}")
        return FAILED
    except Exception as error:  # noqa: BLE001 - last resort: users see a traceback only with SIDESTEP_DEBUG
        return _bug(error)
    return result if isinstance(result, int) else DONE


def _asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether this is a command and --help, nothing more: that is answered without what the command needs to run."""
    *words, last = arguments or [""]
    return last in {"-h", "--help"} and bool(words) and words[0] in COMMANDS and not any(w[:1] == "-" for w in words)


def main() -> None:
    """Entry point of the console script."""
    open_standard_streams()
    sys.exit(run(sys.argv[1:]))


def print_error(line: str) -> None:
    """Print one line to standard error, if it is still open."""
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


def _bug(error: Exception) -> int:
    print_error(f"sidestep: internal error, please report it: {_one_line(repr(error))} (SIDESTEP_DEBUG=1 says more)")
    _debug()
    return FAILED


def _one_line(text: str) -> str:
    return harmless(" ".join(text.split()))


def _debug() -> None:
    if os.environ.get("SIDESTEP_DEBUG") == "1":
        traceback.print_exc()
