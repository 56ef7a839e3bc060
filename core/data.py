"""Problems: data sets by alias, hub id or file; prompt templates; the order in which a run draws problems."""

import difflib
import functools
import random
import zlib
from collections import Counter
from datetime import date
from numbers import Number
from pathlib import Path

import jinja2
import numpy as np
from tqdm import tqdm

import tiny
from core import hub
from core.answers import gold_answer, last_boxed
from core.files import ENDINGS, ending, read_file
from core.processes import rank, say

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
_EASY = [  # worked examples, for a model that without them would hardly ever fill the box
    ("user", "What is 14 + 9?"), ("assistant", "14 + 9 = 23\n\\boxed{23}"),
    ("user", "Tom has 30 pens and gives 12 away. How many are left?"),
    ("assistant", "30 - 12 = 18\n\\boxed{18}"),
    ("user", "A box holds 6 eggs. How many eggs are in 7 boxes?"),
    ("assistant", "7 * 6 = 42\n\\boxed{42}"),
]  # fmt: skip
# name: the text of the prompt; or turns for the model's own chat template, each a role and a text. Where the last turn
# is the assistant's, it is the beginning of the response, which then belongs to the prompt.
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
}  # fmt: skip
# alias: path, name and split of datasets.load_dataset; the built-in problems have a split alone. NAME-test is what a
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

# ------------------------------------------------------------------------------------------------ easy problems
# The ways to ask for a sum, difference, product or quotient of a and b: the first in two of three problems, the others
# with two names, {x} and {y}, and {things}.
EASY = {
    "+": (
        "What is {a} + {b}?",
        "{x} has {a} {things} and buys {b} more. How many {things} does {x} have now?",
        "{x} has {a} {things} and {y} has {b}. How many {things} do they have together?",
        "There are {a} {things} on a table and {b} in a bag. How many {things} are there in all?",
    ),
    "-": (
        "What is {a} - {b}?",
        "{x} has {a} {things} and gives {b} of them to {y}. How many {things} are left?",
        "{x} has {a} {things} and {y} has {b}. How many more {things} does {x} have than {y}?",
        "A shop had {a} {things} and sold {b}. How many {things} does it still have?",
    ),
    "*": (
        "What is {a} * {b}?",
        "{x} buys {a} boxes with {b} {things} in each. How many {things} does {x} buy?",
        "{x} collects {b} {things} every day. How many {things} does {x} have after {a} days?",
        "There are {a} children and each has {b} {things}. How many {things} do they have together?",
    ),
    "/": (
        "What is {a} / {b}?",
        "{x} shares {a} {things} equally among {b} friends. How many {things} does each friend get?",
        "{x} packs {a} {things} into bags of {b}. How many bags does {x} need?",
        "{a} {things} stand in {b} equal rows. How many {things} are in a row?",
    ),
}
NAMES = "Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Liam Mia Noah Paul Rosa Sam Tina Victor".split()
THINGS = "apples books cards coins cups eggs flowers marbles pens shells stamps stickers".split()


def easy_problems(split: str, n: int) -> list[dict]:
    """n different problems of one step, {"problem": str, "answer": str}, in whole numbers from 2 to 60. A hash of its
    text decides whether a problem may be in easy-test (one in eight) or in easy."""
    rng, drawn = random.Random(split), {}
    while len(drawn) < n:
        op, a, b = rng.choice(list(EASY)), rng.randint(2, 30), rng.randint(2, 30)
        if op in "*/":
            a, b = rng.randint(2, 12), rng.randint(2, 12)
        low, high = (a, a + b) if op in "+-" else (a, a * b)
        if op in "-/":  # the inverse of a sum or product
            a, low, high = high, high, low
        if max(low, high) > 60:
            continue
        (x, y), things = rng.sample(NAMES, 2), rng.choice(THINGS)
        plain, *stories = EASY[op]
        text = rng.choice([plain, plain, rng.choice(stories)]).format(a=a, b=b, x=x, y=y, things=things)
        if tiny.for_test(text) == split.endswith("test"):
            drawn.setdefault(text, dict(problem=text, answer=str(high)))
    return list(drawn.values())


def render(problem: str, template: str, tokenizer, turns=()) -> str:
    """The prompt's text: the problem in a template of TEMPLATES, or in any text with {problem}.

    turns: what was said before the problem, dicts with role and content. Their system turn joins the template's, the
    others come right before the problem. In a template that is a text they are paragraphs before the problem."""
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
        # Some chat templates write today's date into the prompt, which would change it from day to day.
        return tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True, **TODAY) + start
    except (ValueError, jinja2.TemplateError) as error:
        reason = error if tokenizer.chat_template else "there is none"
        raise ValueError(f"turns that the chat template of {tokenizer.name_or_path} can't write ({reason}); --template "
                         "plain, or any text with {problem}, needs none") from None


# The date that Llama writes where nobody gives one; other templates ask strftime_now().
TODAY = dict(date_string="26 Jul 2024", strftime_now=date(2024, 7, 26).strftime)


@functools.lru_cache(8)
def begin_tokens(tokenizer) -> list[int]:
    """The special tokens that a tokenizer puts before a text. What it may put behind one, an end token, has no place in
    a prompt: the model would take the prompt for a finished text."""
    text, whole = (tokenizer("1", add_special_tokens=special)["input_ids"] for special in (False, True))
    return next((whole[:i] for i in range(len(whole)) if whole[i : i + len(text)] == text), [])


def encode(problem: str, template: str, tokenizer, after: str = "", turns=()) -> dict:
    """A problem's prompt, and after it a given beginning of the response: its text, and prompt, its token ids. turns:
    see render(). Raises ValueError for half a character (a lone surrogate), which no tokenizer can read."""
    text = render(problem, template, tokenizer, turns)
    try:
        (text + after).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a character, {error.object[error.start]!a}; mend or remove the row") from None
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if isinstance(TEMPLATES.get(template, ""), str):  # a chat template writes its own special tokens
        begin = begin_tokens(tokenizer)
        ids = ids if ids[: len(begin)] == begin else begin + ids
        while ids and ids[-1] == tokenizer.eos_token_id:
            ids = ids[:-1]
    ids = ids + tokenizer(after, add_special_tokens=False)["input_ids"] if after else ids
    return dict(problem=problem, text=text + after, prompt=np.array(ids, dtype=np.int64), after=after, turns=turns)


# ------------------------------------------------------------------------------------------------ rows
def read_hub(name: str, split: str):
    """(place, row) of every record of a data set on the hub, or in a local folder that is laid out as there."""
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
        source = datasets.load_dataset(path, config, split=own or split)
    except Exception as error:  # the library has many kinds
        offers = hub.choices(path) if isinstance(error, ValueError) and name not in DATA else []
        hint = f"; give one of {', '.join(offers)}" if offers else ""
        raise ValueError(("" if Path(path).is_dir() else f"{path} could not be downloaded: ")
                         + hub.why(error, path, "dataset") + hint) from None
    yield from enumerate(source, 1)


def read_rows(name: str, split: str = "train"):
    """(place, row) of every record of a data set: an alias, a local file, or a hub id, of which `split` is read if the
    id names none. Raises ValueError: one line that says what is wrong where."""
    if DATA.get(name, ("hub",))[0] is None:
        split = DATA[name][2]
        make = easy_problems if split.startswith("easy") else tiny.problems
        yield from enumerate(make(split, BUILT_IN[split]))
        return
    is_file = name not in DATA and (ending(name) in ENDINGS or Path(name).is_file())
    try:
        yield from read_file(name) if is_file else read_hub(name, split)
    except (OSError, ValueError) as error:
        raise ValueError(f"data {name}: {str(error).splitlines()[0]}") from None


# The columns that may hold the problem and the gold answer; of several, the first counts.
PROBLEM = ("problem", "question", "prompt")
ANSWER = ("answer", "final_answer", "ground_truth", "solution")


def plain(value) -> str:
    """The text of a cell that holds text or a number; "" if it is missing (null, NaN). Raises ValueError for others."""
    if value is None or value != value:
        return ""
    if not isinstance(value, str | Number):
        raise ValueError(f"a {type(value).__name__} where text or a number is needed")
    return str(value)


def conversation(turns: list) -> tuple[str, list[dict], str]:
    """(problem, turns before it, beginning of the response) in the turns of a chat, which end with the user's or with
    the beginning of the assistant's. Content in parts is joined. Raises ValueError for anything else."""
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
    """The gold answer in a row that has one of the columns ANSWER; "" if it names none."""
    column = next(name for name in ANSWER if name in row)
    parts = row[column] if isinstance(row[column], list) else [row[column]]
    texts = [text for text in map(plain, parts) if text]
    if column == "solution" and texts and last_boxed(texts[0]) is None and "####" not in texts[0]:
        return ""  # a proof, or prose
    return gold_answer(texts, row.get("unit"))


def problem_from(row, cfg, tokenizer, graded: bool) -> dict | str:
    """A row as a problem, see load_data(); or in words why it is left out. Raises ValueError, which says
    what is wrong with what the row has."""
    if not isinstance(row, dict):
        row = {}
    if None in row:  # so the csv module says it
        raise ValueError("more cells than the header")
    if isinstance(row.get("reward_model"), dict):  # as in the files that verl reads
        row = row["reward_model"] | row
    if not set(PROBLEM) & set(row) or graded and not set(ANSWER) & set(row):
        raise ValueError(f"the columns {sorted(row)}; it needs problem (or question, prompt) and answer (or "
                         "final_answer, ground_truth, solution)")
    problem, turns, start = row[next(name for name in PROBLEM if name in row)], [], ""
    if isinstance(problem, list):
        problem, turns, start = conversation(problem)
    problem, answer = plain(problem), answer_of(row) if graded else row.get("answer")
    if not problem or graded and not answer:
        return "without a problem or a usable answer"
    encoded = encode(problem, cfg.template, tokenizer, start + getattr(cfg, "prefix", ""), turns)
    if len(encoded["prompt"]) > cfg.max_prompt_tokens:
        return f"with a prompt over {cfg.max_prompt_tokens} tokens"
    return row | encoded | dict(answer=answer, row=row)


def load_data(name: str, tokenizer, cfg, limit: int = 0, graded: bool = True, split: str = "train") -> list[dict]:
    """Problems as dicts: all columns of the row, over them problem, answer (gold), text (the prompt), prompt (its token
    ids), after and turns, see encode(), and row, the columns as they are. limit 0: all. graded False: a check of the
    user's own does the grading, so a row needs no answer, and one that it has is left as it is. split: of a hub id that
    names none.

    Rows without a usable answer and rows whose prompt is over cfg.max_prompt_tokens are dropped and counted. Raises
    ValueError: one line that says what is wrong where."""
    problems, dropped = [], Counter()
    if cfg.template not in TEMPLATES and "{problem}" not in cfg.template:
        raise ValueError(f"template {cfg.template!r}: give one of {', '.join(TEMPLATES)}, or a text with {{problem}}")
    try:
        render("1", cfg.template, tokenizer)
    except ValueError as error:
        raise ValueError(f"template {cfg.template!r} has {str(error).splitlines()[0]}") from None
    rows = read_rows(name, split)
    for place, row in tqdm(rows, f"reading {name}", delay=5, leave=False, disable=rank() > 0 or None):
        try:
            problem = problem_from(row, cfg, tokenizer, graded)
        except ValueError as error:
            raise ValueError(f"data {name}: row {place} has {str(error).splitlines()[0]}") from None
        if isinstance(problem, str):
            dropped[problem] += 1
            continue
        problems.append(problem)
        if len(problems) == limit > 0:
            break
    if not problems:
        raise ValueError(f"data {name}: no usable problem in it ({dropped.total()} rows dropped)")
    for reason, count in dropped.items():
        say(f"{name}: dropped {count:,} rows {reason}")
    return problems


def fingerprint(problems: list[dict]) -> list[int]:
    """Tells a set of problems from another one: how many there are, and a checksum of sixteen of the prompts."""
    some = problems[:: max(1, len(problems) // 16)]
    return [len(problems), zlib.crc32(repr([problem["text"] for problem in some]).encode("utf-8", "replace"))]


def draw(problems: list[dict], first: int, count: int, seed: int) -> list[dict]:
    """Problems number first ... first + count - 1 of the endless training order: a seeded permutation per epoch."""
    chosen = []
    for number in range(first, first + count):
        epoch, i = divmod(number, len(problems))
        if not chosen or i == 0:
            order = np.random.default_rng([seed, epoch]).permutation(len(problems))
        chosen.append(problems[order[i]])
    return chosen
