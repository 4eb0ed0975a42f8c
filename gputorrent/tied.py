"""Run a command that does not outlive the process that started it.

A small program rather than a `preexec_fn`: that would run Python between fork and exec, in a copy of a
process whose other threads may hold locks. On Linux the kernel sends the chosen signal when the parent
dies, whatever killed it. Elsewhere the command simply runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def tied(
    command: Sequence[str | os.PathLike[str]],
    on_death: signal.Signals = signal.SIGTERM,
    account: tuple[int, int] | None = None,
) -> list[str]:
    """The command line that runs `command` bound to this process, which gets `on_death` when we die.

    With `account` (user and group id) it gives up root first. The kernel watches the *thread* that started
    the child: start it from one that lives as long as the process does.
    """
    me = os.path.abspath(__file__)
    uid, gid = account or (-1, -1)
    arguments = [str(os.getpid()), str(int(on_death)), str(uid), str(gid)]
    return [sys.executable, "-I", "-S", me, *arguments, *(os.fspath(part) for part in command)]


def main(arguments: list[str]) -> None:
    """Bind this process to its parent, then become the command. Ends the process if that fails."""
    parent, on_death, uid, gid = map(int, arguments[:4])
    command = arguments[4:]
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        # After the change of user, which would clear it.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, on_death, 0, 0, 0)
        if os.getppid() != parent:  # it died before the kernel was told
            raise SystemExit(1)
    try:
        os.execvp(command[0], command)  # noqa: S606 - that is its purpose
    except OSError as e:
        sys.stderr.write(f"cannot start {command[0]}: {e.strerror}\n")
        raise SystemExit(127) from None


if __name__ == "__main__":
    main(sys.argv[1:])
