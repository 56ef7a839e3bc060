"""From rows to problems: templates, prompts, gold answers, and the order in which a run draws the problems."""

import functools
import zlib
from collections import Counter
from datetime import date
from numbers import Number
from pathlib import Path

import jinja2
import numpy as np
from tqdm import tqdm

from core.answers import gold_answer, last_boxed
from core.files import checksum
from core.processes import bar_style, gather, rank, say, world
from core.rows import PROBLEM, distinct, open_rows, problem_cell, release_tables

_SOBER = (
    "Solve the following math problem efficiently and clearly.  The last line of your response should be of the "
    "following format: 'Therefore, the final answer is: $\\boxed{ANSWER}$. I hope it is correct' (without quotes) "
    "where ANSWER is just the final number or expression that solves the problem. Think step by step before answering."
)
_R1 = (
    "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The Assistant "
    "first thinks about the reasoning process in the mind and then provides the User with the answer. The reasoning "
    "process is enclosed within <think> </think> and answer is enclosed within <answer> </answer> tags, respectively, "
    "i.e., <think> reasoning process here </think> <answer> answer here </answer>."
)
_EASY = [  # worked examples, so that a small model fills the box
    ("user", "What is 14 + 9?"), ("assistant", "14 + 9 = 23\n\\boxed{23}"),
    ("user", "Tom has 30 pens and gives 12 away. How many are left?"),
    ("assistant", "30 - 12 = 18\n\\boxed{18}"),
    ("user", "A box holds 6 eggs. How many eggs are in 7 boxes?"),
    ("assistant", "7 * 6 = 42\n\\boxed{42}"),
]
# A template is a text, or (role, text) turns for the model's own chat template.
# If the assistant has the last turn, every response begins with that text.
TEMPLATES = {
    "none": "{problem}",
    "plain": "{problem}\nPlease reason step by step, and put your final answer within \\boxed{}.\n",
    "chat": [("user", "{problem}")],
    "cot": [("user", "{problem} Let's think step by step and output the final answer within \\boxed{}.")],
    "easy": [*_EASY, ("user", "{problem}")],
    "qwen-math": [("system", "Please reason step by step, and put your final answer within \\boxed{}."),
                  ("user", "{problem}")],
    "sober": [("user", _SOBER + "\n\n{problem}")],  # arXiv 2504.07086
    "r1": _R1 + "\nUser: {problem}\nAssistant: <think>",  # arXiv 2501.12948, as arXiv 2503.20783 has it
    "python": [("user", "{problem}"), ("assistant", "Let's solve this using Python.")],  # forced: arXiv 2506.10947
}
# Some chat templates write today's date, and the prompt would change every day. So the date is fixed.
# Llama 3 reads date_string, others call strftime_now().
FIXED_DATE = dict(date_string="26 Jul 2024", strftime_now=date(2024, 7, 26).strftime)


def render(problem: str, template: str, tokenizer, turns=()) -> str:
    """The text of the prompt. template: a name in TEMPLATES, or any text with {problem}.

    turns: the chat before the problem, dicts with role and content. Its system turn joins the template's system turn.
    The other turns stand right before the problem. In a template that is a text, all are paragraphs."""
    template = TEMPLATES.get(template, template)
    if isinstance(template, str):
        return template.replace("{problem}", "\n\n".join([turn["content"] for turn in turns] + [problem]))
    own = [dict(role=role, content=text.replace("{problem}", problem)) for role, text in template]
    start = own.pop()["content"] if own[-1]["role"] == "assistant" else ""
    system = [turn["content"] for turn in [*turns, *own] if turn["role"] == "system"]
    talk = [turn for turn in [*own[:-1], *turns, own[-1]] if turn["role"] != "system"]
    if system:
        talk = [dict(role="system", content="\n\n".join(system)), *talk]
    try:
        return tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True, **FIXED_DATE) + start
    except (ValueError, TypeError, jinja2.TemplateError) as error:
        reason = error if tokenizer.chat_template else "there is none"
        raise ValueError(f"turns that the chat template of {tokenizer.name_or_path} can't write ({reason}); use "
                         "--template plain, or a text with {problem}") from None


@functools.lru_cache(8)
def begin_tokens(tokenizer) -> list[int]:
    """The special tokens that a tokenizer puts before a text.

    Without those after it: an end token would tell the model that the text is over."""
    text, whole = (tokenizer("1", add_special_tokens=special)["input_ids"] for special in (False, True))
    return next((whole[:i] for i in range(len(whole)) if whole[i : i + len(text)] == text), [])


def encode(problem: str, template: str, tokenizer, after: str = "", turns=()) -> dict:
    """The prompt of a problem, a dict with text, prompt (token ids [int64]), problem, after and turns.

    after: a text with which every response begins. It is part of text and prompt. turns: see render().
    Raises ValueError for half a character (a lone surrogate), which no tokenizer can read."""
    text = render(problem, template, tokenizer, turns)
    try:
        (text + after).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a character, {error.object[error.start]!a}; mend or remove the row") from None
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if isinstance(TEMPLATES.get(template, ""), str):  # a chat template writes its own special tokens
        begin = begin_tokens(tokenizer)
        if ids[: len(begin)] != begin:
            ids = begin + ids
        while ids and ids[-1] == tokenizer.eos_token_id:
            ids = ids[:-1]
    if after:
        ids = ids + tokenizer(after, add_special_tokens=False)["input_ids"]
    return dict(problem=problem, text=text + after, prompt=np.array(ids, dtype=np.int64), after=after, turns=turns)


# ------------------------------------------------------------------------------------------------ problems
ANSWER = ("answer", "final_answer", "ground_truth", "solution")  # columns for the gold answer; the first counts


def plain(value) -> str:
    """A cell with text or a number, as text. A missing cell (null, NaN) is "". Raises ValueError for anything else."""
    if value is None or value != value:
        return ""
    if not isinstance(value, str | Number):
        raise ValueError(f"a {type(value).__name__} where text or a number is needed")
    return str(value)


def conversation(turns: list) -> tuple[str, list[dict], str]:
    """A chat -> (problem, turns before the problem, beginning of the response).

    The problem is the last turn of the user. After it, the assistant may begin the response. Parts of text are joined.
    Raises ValueError for any other chat."""
    talk = []
    for turn in turns:
        parts = turn.get("content") if isinstance(turn, dict) else None
        parts = [parts] if isinstance(parts, str) else parts
        texts = [part.get("text") if isinstance(part, dict) else part for part in parts or [None]]
        if not all(isinstance(text, str) for text in texts) or not isinstance(turn.get("role"), str):
            raise ValueError("a chat turn without a role, or with something other than text as its content")
        talk.append(dict(role=turn["role"], content="".join(texts)))
    start = talk.pop()["content"] if talk and talk[-1]["role"] == "assistant" else ""
    if not talk or talk[-1]["role"] != "user":
        raise ValueError("a chat that ends neither with the user's turn nor with the assistant's answer to it")
    return talk.pop()["content"], talk, start


def answer_of(row: dict) -> str:
    """The gold answer of a row that has a column of ANSWER, or "" if there is none in it."""
    column = next(name for name in ANSWER if name in row)
    parts = row[column] if isinstance(row[column], list) else [row[column]]
    texts = [text for text in map(plain, parts) if text]
    if column == "solution" and texts and last_boxed(texts[0]) is None and "####" not in texts[0]:
        return ""  # a proof, or prose
    return gold_answer(texts, row.get("unit"))


def problem_from(row, cfg, tokenizer, graded: bool) -> dict | str:
    """A problem (see Problems), or the reason why the row is dropped. Raises ValueError: what is wrong in the row."""
    if not isinstance(row, dict):
        raise ValueError("no columns; each row must be a JSON object")
    if None in row:  # see rows.Records.parse()
        raise ValueError("more cells than the header")
    if isinstance(row.get("reward_model"), dict):  # verl's files
        row = row["reward_model"] | row
    if not set(PROBLEM) & set(row) or graded and not set(ANSWER) & set(row):
        answers = " and answer (or final_answer, ground_truth, solution)" if graded else ""
        raise ValueError(f"the columns {sorted(row)}; it needs problem (or question, prompt){answers}")
    problem, turns, start = problem_cell(row), [], ""
    if isinstance(problem, list):
        problem, turns, start = conversation(problem)
    problem, answer = plain(problem), answer_of(row) if graded else row.get("answer")
    if not problem or graded and not answer:
        return "without a problem or a usable answer"
    if getattr(cfg, "system", ""):
        turns = [dict(role="system", content=cfg.system), *turns]
    encoded = encode(problem, cfg.template, tokenizer, start + getattr(cfg, "prefix", ""), turns)
    if len(encoded["prompt"]) > cfg.max_prompt_tokens:
        return f"with a prompt over {cfg.max_prompt_tokens} tokens"
    return row | encoded | dict(answer=answer, row=row)


def check_template(cfg, tokenizer):
    """Raises ValueError if a prompt would lack the problem or the system turn, or can't be written."""
    if cfg.template not in TEMPLATES and "{problem}" not in cfg.template:
        raise ValueError(f"template {cfg.template!r}: give one of {', '.join(TEMPLATES)}, or a text with {{problem}}")
    system = getattr(cfg, "system", "")
    try:
        text = render("7+35", cfg.template, tokenizer, [dict(role="system", content=system)] if system else [])
    except ValueError as error:
        raise ValueError(f"template {cfg.template!r} has {str(error).splitlines()[0]}") from None
    for part in ("7+35", system.strip()):
        if part not in text:
            raise ValueError(f"template {cfg.template!r} has turns that the chat template of {tokenizer.name_or_path} "
                             f"leaves out, such as {part[:40]!r}; use --template plain, or a text with {{problem}}")


FEW = 10_000  # so many problems stay in memory. In a larger data set each rank makes its share of a step's problems


class Problems:
    """The problems of a data set. [i] makes problem i, or is None if its row can't be used.

    A problem is the row with these columns added:
        problem, answer (gold), text (the prompt), prompt (its token ids), after and turns (see encode())
        row      the row itself
    A row without a usable answer or with a long prompt (cfg.max_prompt_tokens) can't be used; `dropped` counts these.

    graded: False for the user's own check. Then no answer is needed, and the column `answer` stays as it is.
    split: for a hub id without a split. repeats: keep all copies of a problem, not only the first.
    Raises ValueError, one line: what is wrong where."""

    def __init__(self, name: str, tokenizer, cfg, graded: bool = True, split: str = "train", repeats: bool = False):
        check_template(cfg, tokenizer)
        self.name, self.tokenizer, self.cfg, self.graded = name, tokenizer, cfg, graded
        self.rows, self.made, self.dropped, self.read = open_rows(name, split), {}, Counter(), 0
        self.numbers = np.arange(len(self.rows)) if repeats else distinct(self.rows)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[j] for j in range(len(self))[i]]
        if i in self.made:
            return self.made[i]
        place = int(self.numbers[i])
        try:
            problem = problem_from(self.rows[place], self.cfg, self.tokenizer, self.graded)
        except ValueError as error:
            raise ValueError(f"data {self.name}: row {place + 1} has {str(error).splitlines()[0]}") from None
        self.read += 1
        if self.read % 64 == 0:
            release_tables(self.rows)
        if isinstance(problem, str):
            self.dropped[problem] += 1
            problem = None
        if len(self) <= FEW:
            self.made[i] = problem
        return problem

    def first(self, count: int, within: int | None = None) -> list[dict]:
        """The first `count` usable problems among the first `within`. Prints how many rows were dropped."""
        looked, found = min(within or len(self), len(self)), []
        for i in tqdm(range(looked), f"reading {self.name}", disable=rank() > 0, **bar_style()):
            problem = self[i]
            if problem:
                found.append(problem)
            if len(found) == count:
                break
        where = f" among its first {looked:,} different problems" if looked < len(self) else ""
        if not found:
            why = "".join(f"; {reason}: {dropped:,}" for reason, dropped in self.dropped.items())
            raise ValueError(f"data {self.name}: no usable problem{where or ' in it'} "
                             f"({self.dropped.total():,} rows dropped{why})")
        for reason, dropped in self.dropped.items():
            say(f"{self.name}: dropped {dropped:,} rows {reason}{where}")
        return found


def load_data(name: str, tokenizer, cfg, limit: int = 0, graded: bool = True, split: str = "train") -> list[dict]:
    """All usable problems of a data set, or the first `limit`, with repetitions. See Problems."""
    problems = Problems(name, tokenizer, cfg, graded, split, repeats=True)
    return problems.first(limit or len(problems))


def fingerprint(problems: Problems) -> list[int]:
    """[number of problems, checksum]. A resumed run must see the same two numbers.

    The checksum covers a local file whole, and only a few rows of any other data set."""
    if Path(problems.name).is_file():
        return [len(problems), checksum(problems.name)]
    rows = [problems.rows[int(i)] for i in problems.numbers[:: max(1, len(problems) // 16)]]
    return [len(problems), zlib.crc32(repr(rows).encode("utf-8", "replace"))]


# ------------------------------------------------------------------------------------------------ order
def epoch_order(problems, seed: int, epoch: int) -> np.ndarray:
    """The order of all problems in this epoch: their indices, permuted."""
    return np.random.default_rng([seed, epoch]).permutation(len(problems))


def take(problems, first: int, count: int, seed: int) -> tuple[list[dict], int]:
    """(the next `count` usable problems, the place after them) in the training order, from place `first` on.

    The training order is endless: one epoch_order() after the other."""
    found, place = [], first
    while len(found) < count:
        if not found and place - first > 2 * len(problems):
            raise ValueError(f"data {problems.name}: no row of it can be used")
        missing = count - len(found)
        epoch, start = divmod(place, len(problems))
        last = (place + missing - 1) // len(problems)
        order = np.concatenate([epoch_order(problems, seed, each) for each in range(epoch, last + 1)])
        chosen = order[start : start + missing].tolist()
        place += missing
        if isinstance(problems, Problems) and len(problems) > FEW:
            more = gather([problems[i] for i in chosen[rank() :: world()]], missing)
        else:
            more = [problems[i] for i in chosen]
        found += [problem for problem in more if problem]
    return found, place


def draw(problems, first: int, count: int, seed: int) -> list[dict]:
    """The problems of take(), without the place."""
    return take(problems, first, count, seed)[0]
