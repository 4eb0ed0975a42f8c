"""What the browser tests need besides .venv: ``python -m tests.browser.environment`` fetches it.

Chromium comes from Debian's packages, where we may install them, since a browser wants libraries of the
system. axe-core, which looks for what keeps people out, comes from npm as
requirements/browser/package-lock.json pins it and lies in
.cache/browser. apt's and npm's settings decide where packages come from.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time

from gputorrent import environments
from gputorrent.environments import EnvironmentFailure
from gputorrent.progress import say
from tests.browser import chromium

SOURCE = environments.ROOT / "requirements" / "browser"
FOLDER = environments.ROOT / ".cache" / "browser"
AXE = FOLDER / "node_modules" / "axe-core" / "axe.min.js"
PACKAGES = ("chromium", "fonts-dejavu-core")
"""The browser, and letters for what the pages bring no font for."""
TRIES = 3


def missing_axe() -> str:
    """Why pages cannot be checked for accessibility here; empty if they can."""
    return "" if _stamp() == _fingerprint() and AXE.exists() else "axe-core is not there: make browser"


def required() -> bool:
    """Whether something missing is a failure."""
    return os.environ.get(chromium.REQUIRED, "") not in {"", "0"}


def _fingerprint() -> str:
    return hashlib.sha256((SOURCE / "package-lock.json").read_bytes()).hexdigest()


def _stamp() -> str:
    try:
        return (FOLDER / environments.STAMP).read_text("ascii").strip()
    except OSError:
        return ""


def ensure_axe() -> bool:
    """Install axe-core as locked. True if something was done. Raises EnvironmentFailure."""
    with environments.being_made(FOLDER):
        if not missing_axe():
            return False
        if shutil.which("npm") is None:
            install("npm", ["npm"])
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SOURCE / name, FOLDER / name)
        _run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], "npm could not install axe-core")
        environments.write_stamp(FOLDER, _fingerprint())
    return True


def ensure_chromium() -> bool:
    """Install the browser. True if something was done. Raises EnvironmentFailure."""
    if chromium.find():
        return False
    install("Chromium", PACKAGES)
    if not chromium.find():
        raise EnvironmentFailure("Debian's chromium is installed, but there is no program of that name")
    return True


def install(what: str, packages: list[str] | tuple[str, ...]) -> None:
    """Install packages of Debian. Raises EnvironmentFailure with the remedy where we cannot."""
    remedy = f"as root: apt-get install {' '.join(packages)}"
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise EnvironmentFailure(f"no {what} here, and only root can install it ({remedy})")
    say(f"installing {what} (a few hundred MB on a bare machine) ...")
    _run(["apt-get", "-q", "update"], "apt-get update failed")
    command = ["apt-get", "-q", "install", "-y", "--no-install-recommends", *packages]
    _run(command, f"{what} could not be installed; {remedy}")


def _run(command: list[str], failure: str) -> None:
    """Run it, again if the network failed it. Raises EnvironmentFailure with what it said."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for left in reversed(range(TRIES)):
        folder = FOLDER if FOLDER.exists() else environments.ROOT
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        if left:
            say(f"{' '.join(command[:3])} failed; once more in 5 s")
            time.sleep(5)
    raise EnvironmentFailure(failure, (done.stdout + done.stderr)[-4000:])


def main() -> int:
    for what, ensure in (("Chromium", ensure_chromium), ("axe-core", ensure_axe)):
        began = time.monotonic()
        try:
            if ensure():
                say(f"{what}: ready in {time.monotonic() - began:.0f} s")
        except EnvironmentFailure as e:
            sys.stderr.write(f"{e.output}\n{e}\n" if e.output else f"{e}\n")
            return 1
        except KeyboardInterrupt:
            sys.stderr.write("\ninterrupted; the next start begins this step anew\n")
            return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
