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

# Of local files, in lower or upper case; .gz may follow, except behind .parquet.
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def ending(name: str) -> str:
    """What the name of a file ends in, .gz aside."""
    return Path(name.lower().removesuffix(".gz")).suffix


def open_file(name: str):
    """A local file of one of the ENDINGS, to read bytes from; a .gz file unpacked into a temporary one."""
    if ending(name) not in ENDINGS:
        raise ValueError(f"a local file must end in one of {', '.join(ENDINGS)}, and the ending tells its format")
    if not Path(name).is_file():
        raise ValueError("no such file; check the path")
    if not name.lower().endswith(".gz"):
        return open(name, "rb")
    unpacked = tempfile.TemporaryFile()
    with gzip.open(name) as file:
        shutil.copyfileobj(file, unpacked)
    unpacked.seek(0)
    return unpacked


def scan_table(file, delimiter: str):
    """Yields (offset in bytes, cells) from the file's current position; blank lines are skipped. Cells stay text."""
    at = file.tell()

    def lines():
        nonlocal at
        for line in file:
            at += len(line)
            yield line.decode("utf-8-sig")

    csv.field_size_limit(2**31 - 1)
    start = at
    for cells in csv.reader(lines(), delimiter=delimiter, strict=True):
        if any(cells):
            yield start, cells
        start = at


def scan_lines(file):
    """Yields (offset in bytes, row) from the file's current position, a line of JSON each; blank lines are skipped."""
    at, number = file.tell(), 0
    for line in file:
        start, at, text = at, at + len(line), line.strip()
        if text:
            number += 1
            try:
                yield start, json.loads(text)
            except ValueError as error:
                raise ValueError(f"row {number} is not JSON ({error}); mend or remove it") from None


class Records:
    """The rows of a local file (all ENDINGS but .parquet): anything with len() and [i]. Lines stay on the disk, and
    only where each begins is kept; a .json file that is one list is kept whole. keys: key(row) of each row, such as a
    hash. Raises OSError or ValueError: what is wrong."""

    def __init__(self, name: str, key):
        self.delimiter = {".csv": ",", ".tsv": "\t"}.get(ending(name))
        self.starts, self.keys, self.header, self.all = array("q"), array("q"), None, None
        try:
            self.file = open_file(name)
            if ending(name) == ".json" and self.file.read(100).lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"[":
                self.file.seek(0)
                self.all = json.load(self.file)
                self.keys.extend(map(key, self.all))
                return
            size = self.file.seek(0, os.SEEK_END)
            with tqdm(total=size, desc=f"reading {name}", disable=rank() > 0, **bar_style()) as bar:
                for start, row in self.scan(0):
                    if self.delimiter and self.header is None:
                        self.header = row
                        continue
                    self.starts.append(start)
                    self.keys.append(key(self.named(row)))
                    bar.update(start - bar.n)
        except UnicodeDecodeError as error:
            raise ValueError(f"not in UTF-8 ({error}); save it in UTF-8") from None
        except (EOFError, zlib.error, csv.Error) as error:
            raise ValueError(str(error)) from None

    def scan(self, start: int):
        self.file.seek(start)
        return scan_table(self.file, self.delimiter) if self.delimiter else scan_lines(self.file)

    def named(self, row):
        """The cells of a table as {column: cell}. Of columns with the same name the first counts; the key None marks a
        row with more cells than the header."""
        if not self.delimiter:
            return row
        cells = row + [None] * (len(self.header) - len(row))
        more = {None: cells[len(self.header) :]} if len(row) > len(self.header) else {}
        return dict(zip(self.header[::-1], cells[len(self.header) - 1 :: -1])) | more

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int):
        return self.named(next(self.scan(self.starts[i]))[1]) if self.all is None else self.all[i]


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
