"""The `headrace` command: its subcommands, its version, and what becomes of their errors."""

import argparse
import os
import re
import sys
from collections.abc import Sequence

from engine.errors import HeadraceError
from server.commands.banner import Console
from server.commands.batch import add_batch_parser
from server.commands.bench import add_bench_parser
from server.commands.keys import add_keys_parser
from server.commands.models import add_models_parser
from server.commands.remote import add_remote_parsers
from server.commands.serve_command import add_serve_parser
from server.commit import version_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code. 1 for what the operator can mend, 2 for wrong usage."""
    console = Console()
    options = build_parser().parse_args(_joined(sys.argv[1:] if arguments is None else arguments))
    try:
        code: int = options.handler(options)
    except HeadraceError as error:
        console.error(error)
        return 1
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        # What reads the output has seen enough; Python must not complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


_LIKE_NUMBERS = re.compile(r"-\d(?!\d*\.?\d*$)")
"""What begins as a negative number and goes on as something else. No option is called so."""


def _joined(words: Sequence[str]) -> list[str]:
    """The words of a command line, `--gpu -1xh200` as `--gpu=-1xh200`.

    argparse would take the second for an option, and say of the first only that it has no value.
    """
    joined: list[str] = []
    for word in words:
        if _LIKE_NUMBERS.match(word) and joined and re.fullmatch("--[a-z-]*[a-z]", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="headrace", description="A self-hosted, OpenAI-compatible chat-completion server."
    )
    parser.add_argument(
        "--version", action=_VersionAction, help="print the version, with its commit where that is known"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_serve_parser(commands)
    add_models_parser(commands)
    add_batch_parser(commands)
    add_keys_parser(commands)
    add_remote_parsers(commands)
    add_bench_parser(commands)
    return parser


class _VersionAction(argparse.Action):
    """Prints the version and ends: only whoever asks waits for git."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(version_line())
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
