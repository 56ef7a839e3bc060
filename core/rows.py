"""The rows of data sets: aliases, local files, the hub. Most stay on the disk until a row is asked for."""

import csv
import ctypes
import difflib
import glob
import gzip
import itertools
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

from core import hub, tiny
from core.processes import bar_style, rank

# alias: path, config and split for datasets.load_dataset(). Built-in problems have only a split.
# eval.py --bench NAME uses NAME-test where there is one.
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
# How many problems a built-in split has.
BUILT_IN = {"train": 10_000, "test": 1_000, "hard": 1_000, "wide": 10_000, "wide-test": 1_000,
            "easy": 2_000, "easy-test": 500}
PROBLEM = ("problem", "question", "prompt")  # the columns for the problem; the first that is there counts


def problem_cell(row):
    """What the row has in its problem column; None without such a column."""
    return next((row[name] for name in PROBLEM if name in row), None) if isinstance(row, dict) else None


def problem_hash(row) -> int:
    return hash(repr(problem_cell(row)))


# ------------------------------------------------------------------------------------------------ local files
# in small or capital letters; .gz may follow, but not after .parquet
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def ending(name: str) -> str:
    """The ending of a file's name; .gz does not count."""
    return Path(name.lower().removesuffix(".gz")).suffix


def open_file(name: str):
    """Open a local file for reading bytes. A .gz file is unpacked into a temporary file."""
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


class Records:
    """The rows of a local table or of JSON lines, with len() and [i]. keys: a hash of each row's problem.

    Memory has only the place where each row begins. Raises OSError or ValueError: what is wrong."""

    def __init__(self, name: str, file):
        self.file, self.delimiter = file, {".csv": ",", ".tsv": "\t"}.get(ending(name))
        self.starts, self.keys, self.header = array("q"), array("q"), None
        csv.field_size_limit(2**31 - 1)
        size = file.seek(0, os.SEEK_END)
        with tqdm(total=size, desc=f"reading {name}", disable=rank() > 0, **bar_style()) as bar:
            for start, cells in self.scan(0):
                if self.delimiter and self.header is None:
                    self.header = cells
                    continue
                self.starts.append(start)
                self.keys.append(problem_hash(self.parse(cells)))
                bar.update(start - bar.n)

    def scan(self, start: int):
        """Yields (offset in bytes, cells or line) from an offset on. Blank lines are skipped."""
        self.file.seek(start)
        rows = map(bytes.strip, self.file)
        if self.delimiter:
            lines = (line.decode("utf-8-sig") for line in self.file)
            rows = csv.reader(lines, delimiter=self.delimiter, strict=True)
        for row in rows:
            if any(row):
                yield start, row
            start = self.file.tell()

    def parse(self, row):
        """A line of JSON, or {column: cell} with cells as text. If two columns have the same name, the first counts.

        A missing cell is None. A row with more cells than the header has the key None."""
        if self.delimiter:
            named = {}
            for column, cell in itertools.zip_longest(self.header, row):
                named.setdefault(column, cell)
            return named
        try:
            return json.loads(row)
        except ValueError as error:
            raise ValueError(f"row {len(self.starts)} is not JSON ({error}); mend or remove it") from None

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int):
        return self.parse(next(self.scan(self.starts[i]))[1])


def open_records(name: str):
    """The rows of a local file that is not .parquet. A .json file that is one list is read whole."""
    try:
        file = open_file(name)
        if ending(name) == ".json" and file.read(100).lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"[":
            file.seek(0)
            return json.load(file)
        return Records(name, file)
    except UnicodeDecodeError as error:
        raise ValueError(f"not in UTF-8 ({error}); save it in UTF-8") from None
    except (EOFError, zlib.error, csv.Error) as error:
        raise ValueError(str(error)) from None


def open_parquet(name: str):
    """The rows of a local .parquet file."""
    import datasets  # here, because the import takes a second
    import pyarrow.parquet
    from pyarrow.dataset import ParquetFragmentScanOptions

    if name.lower().endswith(".gz"):
        raise ValueError("a .parquet file is compressed within; unpack the .gz first")
    open_file(name).close()  # is it there?
    if not pyarrow.parquet.read_metadata(name).num_rows:
        raise ValueError("there are no rows in it")
    piece_by_piece = ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True)  # else all of it at once
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # our own error says what is wrong
    try:
        return datasets.load_dataset("parquet", data_files=glob.escape(name), split="train",
                                     fragment_scan_options=piece_by_piece)
    except Exception as error:
        raise ValueError(hub.why(error, name, "dataset")) from None


# ------------------------------------------------------------------------------------------------ all data sets
def open_hub(name: str, split: str):
    """The rows of a data set on the hub, or in a local folder with the same layout."""
    import datasets  # here, because the import takes a second

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # our own error says what is wrong
    path, config, own = DATA[name] if name in DATA else hub.split_name(name)
    is_folder = Path(path).is_dir()
    if not is_folder and "/" not in path:
        near = difflib.get_close_matches(path, [known for known in DATA if not known.endswith("-test")], 1)
        hint = f"did you mean {near[0]}?" if near else f"give a file, a hub id or one of {', '.join(DATA)}"
        raise ValueError(f"neither a file nor a known name; {hint}")
    if not is_folder:
        hub.look_for_hub()
        if datasets.config.HF_HUB_OFFLINE:
            config = config or "default"  # without a name the library would load any config that is cached
    try:
        return datasets.load_dataset(path, config, split=own or split)
    except Exception as error:  # the library has many kinds
        offers = hub.choices(path) if isinstance(error, ValueError) and name not in DATA else []
        hint = f"; give one of {', '.join(offers)}" if offers else ""
        where = "" if is_folder else f"{path} could not be downloaded: "
        raise ValueError(where + hub.why(error, path, "dataset") + hint) from None


def open_rows(name: str, split: str = "train"):
    """The rows of an alias, a local file or a hub id, with len() and [i]. split: for a hub id without a split.

    Raises ValueError, one line: what is wrong where."""
    if name in DATA and DATA[name][0] is None:  # built in
        split = DATA[name][2]
        make = tiny.easy_problems if split.startswith("easy") else tiny.problems
        return make(split, BUILT_IN[split])
    try:
        if name in DATA or ending(name) not in ENDINGS and not Path(name).is_file():
            return open_hub(name, split)
        return open_parquet(name) if ending(name) == ".parquet" else open_records(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"data {name}: {str(error).splitlines()[0]}") from None


def release_tables(rows):
    """On Linux: drop the pages of a mapped table from this process. The system's file cache keeps them.

    Each row that is read also maps its neighbours. Without this, a thousand rows can add up to a gigabyte."""
    if sys.platform == "linux" and hasattr(rows, "column_names"):
        libc = ctypes.CDLL(None)
        for line in open("/proc/self/maps"):
            if line.rstrip().endswith(".arrow"):
                start, end = (int(x, 16) for x in line.split()[0].split("-"))
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), 4)  # MADV_DONTNEED


def distinct(rows) -> np.ndarray:
    """Row numbers of the first occurrence of each problem. Some data sets repeat each problem a hundred times."""
    if isinstance(rows, Records):
        keys = rows.keys
    elif isinstance(rows, list):
        keys = [problem_hash(row) for row in rows]
    else:
        names = [name for name in PROBLEM if name in rows.column_names]
        if not names:
            return np.arange(len(rows))
        keys = array("q")
        parts = [x[i : i + 10_000] for x in rows.data.column(names[0]).chunks for i in range(0, len(x), 10_000)]
        for part in tqdm(parts, "looking for repeated problems", disable=rank() > 0, **bar_style()):
            keys.extend(hash(repr(cell)) for cell in part.to_pylist())
            release_tables(rows)
    return np.sort(np.unique(np.array(keys, dtype=np.int64), return_index=True)[1])
