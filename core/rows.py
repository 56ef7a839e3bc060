"""Rows of data sets: by alias, hub id or file. They stay on the disk, and each is read when it is asked for."""

import ctypes
import difflib
import functools
import glob
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

import tiny
from core import hub
from core.easy import easy_problems
from core.files import ENDINGS, Records, ending, open_file
from core.processes import bar_style, rank

# alias: path, config and split of datasets.load_dataset; the built-in problems have a split alone. NAME-test is what a
# benchmark called NAME means.
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


# The columns that may hold the problem; of several, the first counts.
PROBLEM = ("problem", "question", "prompt")


def cell(row):
    """The problem in a row, as it stands there; None if there is no such column."""
    return next((row[name] for name in PROBLEM if name in row), None) if isinstance(row, dict) else None


def open_hub(name: str, split: str):
    """The rows of a data set on the hub, or in a local folder that is laid out as there."""
    import datasets  # here, because the import takes a second

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
    from pyarrow.dataset import ParquetFragmentScanOptions

    open_file(name).close()  # is it there
    piece_by_piece = ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True)  # else all of it at once
    try:
        return datasets.load_dataset("parquet", data_files=glob.escape(name), split="train",
                                     fragment_scan_options=piece_by_piece)
    except Exception as error:
        raise ValueError(hub.why(error, name, "dataset")) from None


def open_rows(name: str, split: str = "train"):
    """The rows of a data set, which has len() and [i]: of an alias, a local file, or a hub id, of which `split` is read
    if the id names none. They stay on the disk: a table of `datasets` is mapped into memory, of other files Records
    keeps where each row begins. Raises ValueError: one line that says what is wrong where."""
    if DATA.get(name, ("hub",))[0] is None:
        split = DATA[name][2]
        return (easy_problems if split.startswith("easy") else tiny.problems)(split, BUILT_IN[split])
    try:
        if name in DATA or ending(name) not in ENDINGS and not Path(name).is_file():
            return open_hub(name, split)
        return open_parquet(name) if ending(name) == ".parquet" else Records(name, lambda row: hash(repr(cell(row))))
    except (OSError, ValueError) as error:
        raise ValueError(f"data {name}: {str(error).splitlines()[0]}") from None


def hashes(column) -> np.ndarray:
    """A 64-bit hash of each value in an Arrow array of text, numbers, or lists and structs of them, such as chats."""
    import pandas
    import pyarrow.compute as arrow

    if hasattr(column.type, "fields"):  # a struct
        parts = [hashes(arrow.struct_field(column, i)) for i in range(column.type.num_fields)]
        return functools.reduce(lambda a, b: a * PRIME ^ b, parts)
    if not hasattr(column.type, "value_field"):
        return pandas.util.hash_array(column.to_pandas().to_numpy(object), categorize=False)
    ends = np.cumsum(arrow.fill_null(arrow.list_value_length(column), 0).to_numpy(zero_copy_only=False))
    starts = np.concatenate([[0], ends[:-1]]).astype(int)
    places = np.arange(ends[-1] if len(ends) else 0) - np.repeat(starts, ends - starts)
    values = hashes(column.flatten())
    values = (values ^ values >> np.uint64(32)) * (2 * places.astype(np.uint64) + PRIME)  # each counts by its place
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values)])
    return sums[ends] - sums[starts]


PRIME = np.uint64(0x9E3779B97F4A7C15)


def let_go():
    """On Linux: give back the memory into which tables have been read. The system keeps the files in its own memory,
    but what is mapped of them counts as this process's: a gigabyte after a thousand rows, as each drags in others."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        for line in open("/proc/self/maps"):
            if line.rstrip().endswith(".arrow"):
                start, end = (int(x, 16) for x in line.split()[0].split("-"))
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), 4)  # MADV_DONTNEED


def distinct(rows) -> np.ndarray:
    """The numbers of the rows whose problem no row before them has: some data sets hold each a hundred times."""
    if isinstance(rows, list):  # built in
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
                let_go()
        keys = np.concatenate(keys)
    return np.sort(np.unique(keys, return_index=True)[1])
