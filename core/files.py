"""Local files: rows of many formats, each read when it is asked for; locks; what can be written, and a full disk."""

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
from array import array
from pathlib import Path

from tqdm import tqdm

from core.processes import bar_style, rank

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")  # of local files, in lower or upper case; .gz may follow


def ending(name: str) -> str:
    """What the name of a file ends in, .gz aside."""
    return Path(name.lower().removesuffix(".gz")).suffix


def open_file(name: str):
    """A local file of one of the ENDINGS, to read bytes from; a .gz file unpacked into a temporary one."""
    if ending(name) not in ENDINGS:
        raise ValueError(f"a local file must end in one of {', '.join(ENDINGS)}, which says how it is read")
    if not Path(name).is_file():
        raise ValueError("no such file; check the path")
    if not name.lower().endswith(".gz"):
        return open(name, "rb")
    unpacked = tempfile.TemporaryFile()
    with gzip.open(name) as file:
        shutil.copyfileobj(file, unpacked)
    unpacked.seek(0)
    return unpacked


def scan(file, kind: str, header=None):
    """(place in bytes, row) of every record from where an open file stands. kind: what its name ends in. A cell of a
    .csv or .tsv file is text, just as it stands there; header: its columns, if they are not the first record."""
    at = file.tell()
    if kind in (".csv", ".tsv"):

        def lines():
            nonlocal at
            for line in file:
                at += len(line)
                yield line.decode("utf-8-sig")

        csv.field_size_limit(2**31 - 1)
        reader = csv.reader(lines(), delimiter="\t" if kind == ".tsv" else ",", strict=True)
        header = header or next(reader, [])
        while True:
            start, cells = at, next(reader, None)
            if cells is None:
                return
            cells += [None] * (len(header) - len(cells))
            if any(cells):
                yield start, dict(zip(header, cells)) | ({None: 0} if len(cells) > len(header) else {})
    for number, line in enumerate(file, 1):
        start, at = at, at + len(line)
        try:
            if line.strip():
                yield start, json.loads(line)
        except ValueError as error:
            raise ValueError(f"row {number} is not JSON ({error}); mend or remove it") from None


class Records:
    """The rows of a local file of lines (all ENDINGS but .parquet): len() of them, and [i] to read one. Only where they
    begin stays in memory, and key(row) of each, in `keys`. Raises OSError or ValueError, which say what is wrong."""

    def __init__(self, name: str, key):
        self.kind, self.header, self.all = ending(name), None, None
        self.starts, self.keys = array("q"), array("q")
        try:
            self.file = open_file(name)
            if self.kind == ".json" and self.file.read(100).lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"[":
                self.file.seek(0)
                self.all = json.load(self.file)
                self.keys.extend(map(key, self.all))
                return
            size = self.file.seek(0, os.SEEK_END)
            self.file.seek(0)
            with tqdm(total=size, desc=f"reading {name}", disable=rank() > 0, **bar_style()) as bar:
                for start, row in scan(self.file, self.kind):
                    self.starts.append(start)
                    self.keys.append(key(row))
                    self.header = self.header or list(row)
                    bar.update(start - bar.n)
        except UnicodeDecodeError as error:
            raise ValueError(f"not in UTF-8 ({error}); save it in UTF-8") from None
        except (EOFError, zlib.error, csv.Error) as error:
            raise ValueError(str(error)) from None

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int):
        if self.all is not None:
            return self.all[i]
        self.file.seek(self.starts[i])
        return next(scan(self.file, self.kind, self.header))[1]


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
