"""Local files: rows of many formats, read one by one; locks; what can be written, and a full disk."""

import contextlib
import csv
import errno
import fcntl
import gzip
import json
import os
import shutil
import tempfile
import zlib
from pathlib import Path

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")  # of local files, in lower or upper case; .gz may follow


def ending(name: str) -> str:
    """What the name of a file ends in, .gz aside."""
    return Path(name.lower().removesuffix(".gz")).suffix


def read_file(name: str):
    """(place, row) of every record of a local file. A cell of a .csv or .tsv file is text, just as it stands there.
    Raises OSError or ValueError, which say what is wrong."""
    if ending(name) not in ENDINGS:
        raise ValueError(f"a local file must end in one of {', '.join(ENDINGS)}, which says how it is read")
    if not Path(name).is_file():
        raise ValueError("no such file; check the path")
    try:
        yield from _records(name, ending(name), gzip.open if name.lower().endswith(".gz") else open)
    except UnicodeDecodeError as error:
        raise ValueError(f"not in UTF-8 ({error}); save it in UTF-8") from None
    except (EOFError, zlib.error, csv.Error) as error:
        raise ValueError(str(error)) from None


def _records(name, kind, unzip):
    """See read_file()."""
    if kind == ".parquet":
        import pyarrow.parquet  # here, because few need it

        batches = pyarrow.parquet.ParquetFile(name).iter_batches()
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
    elif kind in (".csv", ".tsv"):
        csv.field_size_limit(2**31 - 1)
        with unzip(name, "rt", encoding="utf-8-sig", newline="") as file:
            yield from enumerate(csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ",", strict=True), 1)
    else:
        with unzip(name, "rb") as file:
            is_list = kind == ".json" and file.read(100).lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"["
            file.seek(0)
            if is_list:
                yield from enumerate(json.load(file), 1)
                return
            for place, line in enumerate(file, 1):
                try:
                    row = json.loads(line) if line.strip() else None
                except ValueError as error:
                    raise ValueError(f"row {place} is not JSON ({error}); mend or remove it") from None
                if line.strip():
                    yield place, row


# ------------------------------------------------------------------------------------------------ locks
_held = []  # the files that this process has locked, open


def lock(file: Path):
    """Lock a file for this process, until it ends. Raises ValueError if another process has locked it.

    The system lets go of the lock when the process dies, whatever it died of, also on another host that shares the
    disk: there is no such thing as a stale lock. A file that is renamed stays locked. A file system without locks, as
    some clusters have, goes unprotected."""
    handle = open(file, "a")
    for mine in [old for old in _held if os.path.sameopenfile(old.fileno(), handle.fileno())]:  # of an earlier run
        _held.remove(mine)
        mine.close()
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another process is writing to {file}; wait for its end, or give another --out") from None
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
    while error is not None:
        if getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def room_on_disk(folder: Path):
    """An error inside, while a large file is written into the folder, is OSError ENOSPC if the disk is now full: some
    libraries say something else. What is there of the folder is deleted."""
    try:
        yield
    except BaseException as error:  # as CheckpointException is, of torch
        full = disk_is_full(error) or shutil.disk_usage(folder.parent).free < 2**26
        shutil.rmtree(folder, ignore_errors=True)
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise
