"""Rows of data sets, by alias, hub id or file. Most stay on the disk until a row is asked for."""

import csv
import ctypes
import difflib
import functools
import glob
import gzip
import json
import os
import shutil
import sys
import tempfile
import zlib
from array import array
from pathlib import Path

import numpy as np
from tqdm import tqdm

from core import tiny
from core import hub
from core.processes import bar_style, rank

# alias: path, config and split for datasets.load_dataset(); built-in problems have only a split. eval.py --bench NAME
# uses NAME-test where there is one.
DATA = {
    "tiny": (None, None, "train"),
    "tiny-test": (None, None, "test"),
    "tiny-hard": (None, None, "hard"),
    "tiny-wide": (None, None, "wide"),
    "tiny-wide-test": (None, None, "wide-test"),
    "easy": (None, None, "easy"),
    "easy-test": (None, None, "easy-test"),
    # for training
    "numina-math": ("ScaleML-RLHF/numina_math", "default", "train"),  # 455,000 rows with numbers as answers
    "numina-cot": ("AI-MO/NuminaMath-CoT", "default", "train"),  # all 860,000
    "math": ("DigitalLearningGmbH/MATH-lighteval", "default", "train"),
    "gsm8k": ("openai/gsm8k", "main", "train"),
    "deepscaler": ("agentica-org/DeepScaleR-Preview-Dataset", "default", "train"),
    "dapo-math": ("BytedTsinghua-SIA/DAPO-Math-17k", "default", "train"),
    # benchmarks
    "gsm8k-test": ("openai/gsm8k", "main", "test"),
    "math500": ("HuggingFaceH4/MATH-500", "default", "test"),
    "minerva": ("knoveleng/Minerva-Math", "default", "train"),
    "olympiadbench": ("knoveleng/OlympiadBench", "default", "train"),
    "aime24": ("HuggingFaceH4/aime_2024", "default", "train"),
    "aime25": ("yentinglin/aime_2025", "default", "train"),
    "amc23": ("knoveleng/AMC-23", "default", "train"),
}
BUILT_IN = {"train": 10_000, "test": 1_000, "hard": 1_000, "wide": 10_000, "wide-test": 1_000,
            "easy": 2_000, "easy-test": 500}  # problems of a split  # fmt: skip


# ------------------------------------------------------------------------------------------------ local files
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


# ------------------------------------------------------------------------------------------------ rows of a data set
# The columns that may hold the problem; of several, the first counts.
PROBLEM = ("problem", "question", "prompt")


def problem_cell(row):
    """The value in the row's problem column, unchanged; None if it has no such column."""
    return next((row[name] for name in PROBLEM if name in row), None) if isinstance(row, dict) else None


def open_hub(name: str, split: str):
    """The rows of a data set on the hub, or in a local folder that is laid out as there."""
    import datasets  # here, because the import takes a second

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what is wrong is said once, below
    path, config, own = DATA[name] if name in DATA else hub.split_name(name)
    if not Path(path).is_dir():
        if "/" not in path:
            near = difflib.get_close_matches(path, [known for known in DATA if not known.endswith("-test")], 1)
            hint = f"did you mean {near[0]}?" if near else f"give a file, a hub id or one of {', '.join(DATA)}"
            raise ValueError(f"neither a file nor a known name; {hint}")
        hub.look_for_hub()
        if datasets.config.HF_HUB_OFFLINE:
            config = config or "default"  # offline the library would take whichever is cached
    try:
        return datasets.load_dataset(path, config, split=own or split)
    except Exception as error:  # the library has many kinds
        offers = hub.choices(path) if isinstance(error, ValueError) and name not in DATA else []
        hint = f"; give one of {', '.join(offers)}" if offers else ""
        raise ValueError(("" if Path(path).is_dir() else f"{path} could not be downloaded: ")
                         + hub.why(error, path, "dataset") + hint) from None


def open_parquet(name: str):
    """The rows of a local .parquet file."""
    import datasets
    import pyarrow.parquet
    from pyarrow.dataset import ParquetFragmentScanOptions

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if name.lower().endswith(".gz"):
        raise ValueError("a .parquet file is compressed within; unpack the .gz first")
    open_file(name).close()  # is it there
    if not pyarrow.parquet.read_metadata(name).num_rows:
        raise ValueError("there are no rows in it")
    piece_by_piece = ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True)  # else all of it at once
    try:
        return datasets.load_dataset("parquet", data_files=glob.escape(name), split="train",
                                     fragment_scan_options=piece_by_piece)
    except Exception as error:
        raise ValueError(hub.why(error, name, "dataset")) from None


def problem_hash(row) -> int:
    return hash(repr(problem_cell(row)))


def open_rows(name: str, split: str = "train"):
    """The rows of an alias, a local file or a hub id: anything with len() and [i]. split: for a hub id that names none.
    Raises ValueError: one line, what is wrong where."""
    if name in DATA and DATA[name][0] is None:  # built in
        split = DATA[name][2]
        return (tiny.easy_problems if split.startswith("easy") else tiny.problems)(split, BUILT_IN[split])
    is_file = name not in DATA and (ending(name) in ENDINGS or Path(name).is_file())
    try:
        if not is_file:
            return open_hub(name, split)
        return open_parquet(name) if ending(name) == ".parquet" else Records(name, problem_hash)
    except (OSError, ValueError) as error:
        raise ValueError(f"data {name}: {str(error).splitlines()[0]}") from None


MIX = np.uint64(0x9E3779B97F4A7C15)  # odd, with well-mixed bits: 2**64 / the golden ratio


def hashes(column) -> np.ndarray:
    """A 64-bit hash of each value in an Arrow array of text, numbers, or lists and structs of them, such as chats."""
    import pandas
    import pyarrow.compute as arrow

    if hasattr(column.type, "fields"):  # a struct
        parts = [hashes(arrow.struct_field(column, i)) for i in range(column.type.num_fields)]
        return functools.reduce(lambda a, b: a * MIX ^ b, parts)
    if not hasattr(column.type, "value_field"):
        return pandas.util.hash_array(column.to_pandas().to_numpy(object), categorize=False)
    ends = np.cumsum(arrow.fill_null(arrow.list_value_length(column), 0).to_numpy(zero_copy_only=False))
    starts = np.concatenate([[0], ends[:-1]]).astype(int)
    places = np.arange(ends[-1] if len(ends) else 0) - np.repeat(starts, ends - starts)
    values = hashes(column.flatten())
    values = (values ^ values >> np.uint64(32)) * (2 * places.astype(np.uint64) + MIX)  # [1, 2] is not [2, 1]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values)])
    return sums[ends] - sums[starts]


def release_tables(rows):
    """On Linux, if the rows are a mapped table: drop its pages from this process. Each row that is read maps its
    neighbours too, which adds up to a gigabyte after a thousand rows. The system's file cache still has them."""
    if sys.platform == "linux" and hasattr(rows, "column_names"):
        libc = ctypes.CDLL(None)
        for line in open("/proc/self/maps"):
            if line.rstrip().endswith(".arrow"):
                start, end = (int(x, 16) for x in line.split()[0].split("-"))
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), 4)  # MADV_DONTNEED


def distinct(rows) -> np.ndarray:
    """Row numbers of the first occurrence of each problem; some data sets repeat each a hundred times."""
    if isinstance(rows, list) or not len(rows):  # built in, or none at all
        return np.arange(len(rows))
    if isinstance(rows, Records):
        keys = np.array(rows.keys)
    else:
        names = [name for name in PROBLEM if name in rows.column_names]
        if not names:
            return np.arange(len(rows))
        parts = [x[i : i + 10_000] for x in rows.data.column(names[0]).chunks for i in range(0, len(x), 10_000)]
        parts = tqdm(parts, "looking for repeated problems", disable=rank() > 0, **bar_style())
        keys = []
        for part in parts:
            keys.append(hashes(part))
            if len(keys) % 8 == 0:
                release_tables(rows)
        keys = np.concatenate(keys)
    return np.sort(np.unique(keys, return_index=True)[1])
