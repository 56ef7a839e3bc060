"""Read, write and lock files, and notice a full disk. Without torch, so that plot.py and show.py start fast."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
import zlib
from pathlib import Path


def read_lines(file) -> list[tuple[int, dict]]:
    """(line number, row) for each row of a .jsonl file. NaN and Infinity become None.

    A broken last line is left out: the process was killed while it wrote that line.
    Raises OSError, or ValueError (file and line) if any other line is not a JSON object."""
    lines, rows = Path(file).read_text(encoding="utf-8", errors="replace").split("\n"), []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                row = json.loads(line, parse_constant=lambda name: None)
                if not isinstance(row, dict):
                    raise ValueError("not an object")
                rows.append((number, row))
        except ValueError:
            if number < len(lines):
                raise ValueError(f"{file}, line {number}: not a JSON object; mend or remove the line") from None
    return rows


def read_steps(file) -> dict[int, dict]:
    """{step: its row} of a metrics.jsonl. If a step is there twice, the later row counts."""
    rows = {}
    for number, row in read_lines(file):
        if not isinstance(row.get("step"), int):
            raise ValueError(f"{file}, line {number}: no step in it; mend or remove the line")
        rows[row["step"]] = row
    if not rows:
        raise ValueError(f"{file}: no complete step in it; let the run do a step first")
    return rows


def write_whole(file, text: str):
    """Write the whole text, or leave the old file as it was."""
    partial = Path(file).with_name(Path(file).name + ".tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def checksum(name) -> int:
    """CRC-32 of a file."""
    value = 0
    with open(name, "rb") as file:
        while piece := file.read(2**24):
            value = zlib.crc32(piece, value)
    return value


_held = []  # the open files that this process has locked


def lock(file: Path):
    """Lock a file until this process ends. Raises ValueError if another process has locked it.

    The system releases the lock when the process dies, so no lock is left behind, on any host that shares the disk.
    The lock survives a renaming of the file. On a file system without locks (some clusters) nothing is locked."""
    handle = open(file, "a")
    for mine in [old for old in _held if os.path.sameopenfile(old.fileno(), handle.fileno())]:  # it may lock again
        _held.remove(mine)
        mine.close()
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another process is writing to {file}; wait until it ends, or give another --out") from None
    except OSError:
        pass
    _held.append(handle)


def try_folder(folder: Path):
    """Raises OSError if no file can be written to the folder. The folder may be missing, and then is afterwards too."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    for path in missing:
        path.rmdir()


def causes(error) -> list:
    """The error and all errors that led to it, also those that `from None` hides."""
    found, more = [], [error]
    while more:
        error = more.pop()
        if error is not None and error not in found:  # errors can lead to each other in a ring
            found.append(error)
            more += [error.__context__, error.__cause__]  # the cause is the next to be looked at
    return found


def disk_is_full(error) -> bool:
    """Whether the error, or one that led to it, says that the disk is full."""
    full = errno.ENOSPC, errno.EDQUOT
    return any(getattr(link, "errno", 0) in full or "No space left on device" in str(link) for link in causes(error))


@contextlib.contextmanager
def room_on_disk(folder: Path):
    """Write large files to a folder inside this block. If the block fails, the folder is deleted.

    Some libraries hide that the disk is full. If it is, the error becomes OSError ENOSPC."""
    try:
        yield
    except BaseException as error:  # torch's CheckpointException is not an Exception
        full = disk_is_full(error) or shutil.disk_usage(folder.parent).free < 2**26  # 64 MB
        shutil.rmtree(folder, ignore_errors=True)
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise
