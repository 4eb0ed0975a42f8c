"""``python -m gputorrent``: see --help, or `make help`."""

from __future__ import annotations

import argparse
import os
import sys

from gputorrent.launcher import Options, run


def options(arguments: list[str], environment: dict[str, str]) -> Options:
    """Read the command line; PORT, HOST, WORKERS and MODEL from the environment where it says nothing."""
    parser = argparse.ArgumentParser(prog="python -m gputorrent", allow_abbrev=False)
    parser.add_argument("command", choices=["demo", "smoke", "up", "engine"])
    parser.add_argument("--host", default=environment.get("HOST", ""), help="address to listen on")
    parser.add_argument("--port", default=environment.get("PORT", ""), help="port to listen on")
    parser.add_argument("--workers", default=environment.get("WORKERS", "") or "1", help="web processes")
    parser.add_argument("--model", default=environment.get("MODEL", ""), help="what the demo serves")
    given = parser.parse_args(arguments)
    return Options(
        command=given.command,
        host=given.host,
        port=_whole(parser, "PORT", given.port, 1, 65535) if given.port else None,
        web_processes=_whole(parser, "WORKERS", given.workers, 1, 64),
        model=given.model,
    )


def _whole(parser: argparse.ArgumentParser, name: str, text: str, least: int, most: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        parser.exit(2, f"{name}={text}: give a whole number from {least} to {most}\n")
    return number


if __name__ == "__main__":
    sys.exit(run(options(sys.argv[1:], dict(os.environ)), dict(os.environ)))
