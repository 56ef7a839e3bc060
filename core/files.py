"""Files: checksums, locks, what can be written, and a full disk. No torch in here: plot.py and show.py start fast."""

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
    """(line number, row) for each row of a .jsonl file.

    A broken last line is left out: a process was killed while it wrote it. NaN and Infinity become None.
    Raises OSError, or for any other line that is no JSON object ValueError, which names file and line."""
    lines, rows = Path(file).read_text(encoding="utf-8", errors="replace").split("\n"), []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                row = json.loads(line, parse_constant=lambda name: None)
                if not isinstance(row, dict):
                    raise ValueError("no object")
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
    """Write a file whole, or leave the old one as it was: under another name first, then renamed."""
    partial = Path(file).with_name(Path(file).name + ".tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def checksum(name) -> int:
    """Of the bytes of a file: CRC-32."""
    value = 0
    with open(name, "rb") as file:
        while piece := file.read(2**24):
            value = zlib.crc32(piece, value)
    return value


# ------------------------------------------------------------------------------------------------ locks
_held = []  # the files that this process has locked, open


def lock(file: Path):
    """Lock a file for this process, until it ends. Raises ValueError if another process has locked it.

    The system releases the lock when the process dies, on any host that shares the disk: no lock goes stale. Renaming
    the file keeps the lock. A file system without locks (some clusters) is not protected."""
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


# ------------------------------------------------------------------------------------------------ what can be written
def try_folder(folder: Path):
    """Raises OSError if no file can be written into a folder, which need not exist. Leaves no trace."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    for path in missing:
        path.rmdir()


def disk_is_full(error) -> bool:
    """Whether an error, or one that led to it, says that there is no room on the disk."""
    seen = []  # a chain of errors can be a ring
    while error is not None and error not in seen:
        seen.append(error)
        if getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def room_on_disk(folder: Path):
    """Around writing large files. If it fails, the folder is deleted. If the disk is full by then, OSError ENOSPC is
    raised, because some libraries report another error."""
    try:
        yield
    except BaseException as error:  # as CheckpointException is, of torch
        full = disk_is_full(error) or shutil.disk_usage(folder.parent).free < 2**26  # 64 MB
        shutil.rmtree(folder, ignore_errors=True)
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise
