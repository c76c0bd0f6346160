"""Files that are there whole or not at all, and stay when the machine stops.

Not here: the ledger's disk (``search.ledger.disk``), whose every effect a test can cut.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_durably(path: Path, content: bytes) -> None:
    """Give the file this content, or leave it as it was; durable when the call returns.

    Several processes may write the same file at once: each has a temporary file of its own beside it.

    Raises:
        OSError: if it can't be written; no temporary file is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
