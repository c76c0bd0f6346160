"""Durable effects on a POSIX disk, the lock of the one writer, and reading that follows no link.

References: Pillai et al., All File Systems Are Not Created Equal, OSDI 2014 (why the file and then its folder are
synced); Rebello et al., Can Applications Recover from fsync Failures?, USENIX ATC 2020 (why a failed sync is final).
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import socket
import stat
from collections.abc import Iterable
from pathlib import Path

from sparsefront.errors import LedgerError


class Disk:
    """Every durable effect of a ledger, one method each, so that a test can end the process at the k-th one.

    A subclass may count, delay or refuse effects; it must not reorder them.
    """

    def write(self, path: Path, chunks: Iterable[bytes]) -> None:
        """Create `path` with the concatenated `chunks` and sync it; a failure leaves no file behind."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            try:
                for chunk in chunks:
                    left = memoryview(chunk)
                    while left:
                        left = left[os.write(fd, left) :]
                os.fsync(fd)
            finally:
                os.close(fd)
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise

    def rename(self, source: Path, target: Path) -> None:
        """Give `source` the name `target` in one step; durable after `sync_folder` of the target's folder."""
        source.replace(target)

    def sync_folder(self, folder: Path) -> None:
        """Make the names in `folder` durable."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def unlink(self, path: Path) -> None:
        """Remove the name `path` (a link is removed, not what it points to); nothing happens if it is gone."""
        path.unlink(missing_ok=True)

    def make_folder(self, folder: Path) -> None:
        """Create `folder` in its existing parent, and make its name durable; an existing folder is left alone."""
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        self.sync_folder(folder.parent)


def write_atomically(disk: Disk, path: Path, chunks: Iterable[bytes], *, temporary: Path) -> None:
    """Write `path` durably so that it holds either its old or its new content whenever the machine stops.

    Args:
        disk: where the effects go.
        path: final name, in an existing folder.
        chunks: content.
        temporary: name on the same file system to write under first; must not exist.
    """
    disk.write(temporary, chunks)
    disk.rename(temporary, path)
    disk.sync_folder(path.parent)


def read_plain(path: Path) -> bytes:
    """Content of a regular file; a link or anything else in its place is refused.

    Raises:
        FileNotFoundError: if there is nothing of that name.
        LedgerError: if it is not a regular file.
    """
    # Looked at before it is opened: opening a FIFO would wait for ever.
    require_plain(path, path.lstat())
    with io.FileIO(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as file:
        return file.readall()


def require_plain(path: Path, status: os.stat_result) -> None:
    """Refuse `path` unless its own status (not that of a link's target) is that of a regular file."""
    if not stat.S_ISREG(status.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a regular file"
        raise LedgerError(
            f"{path} is {what}: a ledger consists of regular files and follows no links; "
            "put the original file back in its place"
        )


def require_folder(path: Path) -> None:
    """Refuse `path` unless it is a folder itself, not a link to one."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        raise LedgerError(
            f"{path} is missing: a ledger consists of study.json, ledger/ and blobs/; restore the folder from a copy"
        ) from None
    if not stat.S_ISDIR(mode):
        what = "a symbolic link" if stat.S_ISLNK(mode) else "not a folder"
        raise LedgerError(
            f"{path} is {what}: a ledger follows no links inside its folder; put the original folder back in its place"
        )


def lock(folder: Path) -> io.FileIO:
    """Take the lock of the one writer; it is held until the returned file is closed or the process ends.

    The lock is advisory (flock) and also holds between machines on file systems that share it (NFS since Linux 2.6.12).

    Raises:
        LedgerError: if another process, or another ledger of this process, holds it.
    """
    path = folder / "lock"
    with contextlib.suppress(FileNotFoundError):
        require_plain(path, path.lstat())
    file = io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644), "r+")
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = file.read(200).decode("utf-8", "replace").strip()
        file.close()
        raise LedgerError(
            f"{folder} is being written by another driver ({holder or 'unknown process'}): a ledger has one writer "
            "at a time; wait for it to end, or read beside it"
        ) from None
    # For the message above only: what counts is the lock, which ends with the process.
    file.truncate(0)
    file.write(f"pid {os.getpid()} on {socket.gethostname()}".encode())
    return file
