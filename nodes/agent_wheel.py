"""The agent as a wheel that hosts install from their coordinator: the code that this coordinator speaks to.

Made in memory from the installed package, the same bytes in every process (fixed times, sorted names), so
that its hash can be told beforehand: pip refuses a file whose hash is not the one in the URL's fragment
(``#sha256=``). The form is the binary distribution format's (PEP 427, core metadata 2.1).
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from django.conf import settings

from worker_agent import contract

NAME: Final = "gputorrent_agent"
PACKAGE: Final = Path(contract.__file__).parent
_WHEN: Final = (2026, 1, 1, 0, 0, 0)
_SHIPPED: Final = (".py", ".md")


class Wheel(NamedTuple):
    """A file that pip installs. `sha256` in hex."""

    filename: str
    content: bytes
    sha256: str


@cache
def wheel() -> Wheel:
    """The wheel of this coordinator's agent. Its version names its contents, so that pip replaces an older
    one. Raises `OSError` where the package's files or its requirements are not to be had."""
    files = {
        f"worker_agent/{path.relative_to(PACKAGE).as_posix()}": path.read_bytes()
        for path in sorted(PACKAGE.rglob("*"))
        if path.suffix in _SHIPPED and "__pycache__" not in path.parts
    }
    needs = _lines("agent.txt")
    engine = [line for line in _lines("engine-cuda.txt") if line.startswith("vllm")]
    mark = hashlib.sha256(repr((sorted(files.items()), needs, engine)).encode()).hexdigest()[:12]
    version = f"{_version(files)}+{mark}"
    folder = f"{NAME}-{version}.dist-info"
    metadata = [
        "Metadata-Version: 2.1",
        "Name: gputorrent-agent",
        f"Version: {version}",
        "Summary: Joins a GPU host to a GPU Torrent coordinator",
        "Requires-Python: >=3.11",
        *(f"Requires-Dist: {line}" for line in needs),
        "Provides-Extra: engine",
        *(f'Requires-Dist: {line} ; extra == "engine"' for line in engine),
    ]
    files[f"{folder}/METADATA"] = ("\n".join(metadata) + "\n").encode()
    tags = "Wheel-Version: 1.0\nGenerator: gputorrent\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{folder}/WHEEL"] = tags.encode()
    record = [f"{name},sha256={_recorded(data)},{len(data)}" for name, data in sorted(files.items())]
    files[f"{folder}/RECORD"] = ("\n".join([*record, f"{folder}/RECORD,,"]) + "\n").encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, _WHEN)
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    content = packed.getvalue()
    return Wheel(f"{NAME}-{version}-py3-none-any.whl", content, hashlib.sha256(content).hexdigest())


def _version(files: dict[str, bytes]) -> str:
    line = next(line for line in files["worker_agent/__init__.py"].decode().splitlines() if "version" in line)
    return line.partition('"')[2].partition('"')[0]


def _lines(name: str) -> list[str]:
    """The requirements in a file of ours, without comments."""
    text = (settings.BASE_DIR / "requirements" / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def _recorded(data: bytes) -> str:
    """A hash as a wheel's RECORD has it: URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
