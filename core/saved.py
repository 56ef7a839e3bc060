"""Saved responses: the rows of an evaluation's .jsonl file, and how they are read again."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np

from core.answers import extract, gold_answer
from core.rows import open_rows

# Our columns of a saved response. If a column of the data has one of these names, it is saved in `row`.
OURS = "problem_id problem gold after turns response extracted correct tokens finish end seed sample row".split()


def about_problem(problem: dict, number: int, check=None) -> dict:
    """The columns of a saved response that describe its problem, number `number` of the benchmark.

    With a check of the user's own, all columns of the data are saved too: the check may need them again."""
    words = dict(problem_id=number, problem=problem["problem"], gold=problem.get("answer"))
    words |= dict(after=problem.get("after", "")) | (dict(turns=problem["turns"]) if problem.get("turns") else {})
    if not check:
        return words
    columns = problem.get("row", {})
    words["row"] = {name: x for name, x in columns.items() if name in OURS}
    return {name: x for name, x in columns.items() if name not in OURS} | words


def problem_of(saved: dict) -> dict:
    """The problem of a saved response, as a check needs it. The inverse of about_problem(); also for others' files."""
    if "finish" not in saved:  # not ours: all columns are the user's
        return dict(row=saved, problem=saved["problem"], answer=saved.get("answer"))
    columns = {name: x for name, x in saved.items() if name not in OURS} | saved.get("row", {})
    return dict(row=columns, problem=saved["problem"], answer=saved["gold"], after=saved["after"],
                turns=saved.get("turns", ()))


def rows_of(rollouts, seed: int = 0, first: int = 0) -> list[dict]:
    """Graded rollouts -> the rows that an evaluation saves, one per response. The first problem has number `first`.

    `end` is saved only if a response ended with another token than the tokenizer's end token. Perplexities need it."""
    rows = []
    for row, text in enumerate(rollouts.texts):
        i, j = divmod(row, rollouts.n)
        last, finished = int(rollouts.responses[row][0][-1]), rollouts.finished[row]
        rows.append(about_problem(rollouts.problems[i], first + i, rollouts.check) | dict(
            seed=seed, sample=j, response=text, extracted=extract(text), correct=bool(rollouts.correct[i, j]),
            tokens=int(rollouts.lengths[i, j]), finish="stop" if finished else "length",
            **dict(end=last) if finished and last != rollouts.usual_end else {}))
    return rows


def to_rows(saved: dict[str, np.ndarray]) -> list[dict]:
    """Columns [P, n] -> rows {column: value}. The samples of a problem stay together."""
    return [dict(zip(saved, values)) for values in zip(*[column.flat for column in saved.values()])]


COLUMNS = [name for name in OURS if name != "row"] + ["source"]


def read_responses(file) -> dict[str, np.ndarray]:
    """A .jsonl file of saved responses -> {column of COLUMNS: its values [P, n]}. Samples are in the order of seeds.

    Two kinds of rows can be read. The first has `finish`: rows_of() made it. The second has problem, answer, and
    response or a list `responses`; if it is graded, also correct, or a list peer_score. All its other columns are the
    user's. A value that a row lacks is None. source is the row itself.
    Raises ValueError: what is wrong where."""
    problems, place = {}, 0  # {problem: its samples}; the line that is being read
    try:
        for place, row in enumerate(open_rows(str(file)), 1):  # noqa: B007
            texts = row["responses"] if "responses" in row else [row["response"]]
            grades = row.get("peer_score", [row.get("correct")] * len(texts))
            if len(grades) != len(texts):
                raise ValueError(f"{file}: row {place} has {len(texts)} responses, but {len(grades)} grades")
            shared = dict(seed=0, after="", turns=(), extracted=None, tokens=None, finish=None, end=None)
            shared |= row if "finish" in row else dict(problem=row["problem"])
            shared |= dict(gold=gold_answer(row["gold"] if "gold" in row else row["answer"]), source=row)
            samples = problems.setdefault(row.get("problem_id", row["problem"]), [])
            samples += [dict(sample=i) | shared | dict(response=str(text), correct=grades[i])
                        for i, text in enumerate(texts)]
    except (KeyError, TypeError, AttributeError, IndexError):
        need = "problem, gold or answer, and response or a list of responses"
        raise ValueError(f"{file}: row {place} needs {need}") from None
    if not problems:
        raise ValueError(f"{file}: no saved response in it")
    sizes = {name: len(samples) for name, samples in problems.items()}
    usual = Counter(sizes.values()).most_common(1)[0][0]
    for name, size in sizes.items():
        if size != usual:
            raise ValueError(f"{file}: all problems need the same number of responses, but {name!r} has {size}, others "
                             f"{usual}")
    for i, samples in enumerate(problems.values()):
        samples.sort(key=lambda row: (row["seed"], row["sample"]))
        for row in samples:
            row["problem_id"] = i
    rows = [row for samples in problems.values() for row in samples]
    column = lambda name: np.fromiter((row[name] for row in rows), dtype=object).reshape(len(problems), -1)
    return {name: column(name) for name in COLUMNS}


def saved_lines(file, problems: list[dict], samples: int, check) -> list[bytes]:
    """The complete lines of an evaluation's file, in the order of seed, problem, sample. Raises ValueError if a line
    answers another problem than today's."""
    lines = [line for line in open(file, "rb") if line.endswith(b"\n")]
    today = [json.loads(json.dumps(about_problem(p, i, check), default=str)) for i, p in enumerate(problems)]
    for number, line in enumerate(lines):
        row, expected = json.loads(line), today[number // samples % len(problems)]
        for name in sorted(expected, key=lambda name: name == "problem_id"):  # last: the other columns say more
            old, value = row.get(name) if isinstance(row, dict) else row, expected[name]
            if old != value:
                raise ValueError(f"{file}: row {number + 1} answers another problem: its {name} is {str(old)[:60]!r}, "
                                 f"today's is {str(value)[:60]!r}; give another --out, or remove that file")
    return lines


def label(name: str, names: list[str]) -> str:
    """The name of a benchmark in the output folder. A file loses its ending. If two files would get the same name,
    their parent folders are added."""

    def parts(name):
        path = Path(name.removesuffix(".gz"))
        return path.with_suffix("").absolute().parts if Path(name).is_file() else (re.sub("[/:]+", "-", name),)

    for size in range(1, len(parts(name)) + 1):
        if not any(parts(name)[-size:] == parts(other)[-size:] for other in names if other != name):
            return "-".join(parts(name)[-size:])
    return re.sub("[/:.]+", "-", name).strip("-")  # two files that differ only in their ending keep it
