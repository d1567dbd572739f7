"""`headrace keys new`: a key, and the line of the keys file that lets it in."""

import argparse
import os
import secrets
import sys
from pathlib import Path

from engine.errors import ConfigError
from server.config.keys_file import check_name, load_keys_file
from server.edge.auth import digest_of

KEY_PREFIX = "hr-"
KEY_BYTES = 32
HEAD = "# Who may use this server: headrace serve --keys FILE. It holds no key, only what keys are known by.\nkeys:\n"


def add_keys_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand; its handler is in the namespace's `handler`."""
    keys = subparsers.add_parser("keys", help="make API keys", description="Make API keys.")
    commands = keys.add_subparsers(title="commands", metavar="COMMAND", required=True)
    new = commands.add_parser(
        "new",
        help="make a key",
        description="Make a key. It is printed once, on standard output; the file has only its SHA-256.",
    )
    new.add_argument("name", metavar="NAME", help="what the key is called in the log and in the file")
    new.add_argument("--file", type=Path, metavar="FILE", help="add it to this file, which is made if it is not there")
    new.set_defaults(handler=_new)


def _new(options: argparse.Namespace) -> int:
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    entry = f"  - name: {check_name(options.name)!r}\n    sha256: {digest_of(key).hex()!r}\n"
    if options.file is None:
        print(key)
        print(f"For the file of --keys, under keys:\n{entry}", end="", file=sys.stderr)
    else:
        add_entry(options.file, entry)
        print(key)
        print(f"{options.name} may use the models now; {options.file} can say more of it", file=sys.stderr)
    return 0


def add_entry(path: Path, entry: str) -> None:
    """Put an entry behind the others, all at once, so that a server never reads half of it. Raises `ConfigError`."""
    path = path.resolve()
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        text, mode = HEAD, 0o600
        if path.exists():
            load_keys_file(path)
            text, mode = path.read_text(encoding="utf-8-sig"), path.stat().st_mode & 0o777
            text = text.replace("keys: []", "keys:", 1) + ("" if text.endswith("\n") else "\n")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            file.write(text + entry)
        load_keys_file(new)
        os.replace(new, path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    except ConfigError as error:
        hint = "put the key there by hand: headrace keys new NAME, without --file, prints the lines"
        raise ConfigError(error.message.replace(new.name, path.name), hint=error.hint or hint) from error
    finally:
        new.unlink(missing_ok=True)
