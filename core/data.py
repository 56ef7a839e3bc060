"""Problems: data sets by alias, hub id or file; prompt templates; the order in which a run draws problems."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

import tiny
from core.answers import gold_answer, last_boxed
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
    "numina-math": ("ScaleML-RLHF/numina_math", None, "train"),
    "math": ("DigitalLearningGmbH/MATH-lighteval", None, "train"),
    "gsm8k": ("openai/gsm8k", "main", "train"),
    "deepscaler": ("agentica-org/DeepScaleR-Preview-Dataset", None, "train"),
    "dapo-math": ("BytedTsinghua-SIA/DAPO-Math-17k", None, "train"),
    # benchmarks
    "gsm8k-test": ("openai/gsm8k", "main", "test"),
    "math500": ("HuggingFaceH4/MATH-500", None, "test"),
    "minerva": ("knoveleng/Minerva-Math", None, "train"),
    "olympiadbench": ("knoveleng/OlympiadBench", None, "train"),
    "aime24": ("HuggingFaceH4/aime_2024", None, "train"),
    "aime25": ("yentinglin/aime_2025", None, "train"),
    "amc23": ("knoveleng/AMC-23", None, "train"),
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


def render(problem: str, template: str, tokenizer) -> str:
    """The prompt's text: the problem in a template of TEMPLATES, or in any text with {problem}."""
    template = TEMPLATES.get(template, template)
    if isinstance(template, str):
        return template.replace("{problem}", problem)
    turns = [dict(role=role, content=text.replace("{problem}", problem)) for role, text in template]
    start = turns.pop()["content"] if turns[-1]["role"] == "assistant" else ""
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) + start


def encode(problem: str, template: str, tokenizer, after: str = "") -> dict:
    """A problem's prompt, and after it a given beginning of the response: its text, and prompt, its token ids."""
    special = isinstance(TEMPLATES.get(template, ""), str)  # a chat template writes its own special tokens
    text = render(problem, template, tokenizer)
    ids = tokenizer(text, add_special_tokens=special)["input_ids"]
    ids = ids + tokenizer(after, add_special_tokens=False)["input_ids"] if after else ids
    return dict(problem=problem, text=text + after, prompt=np.array(ids, dtype=np.int64), after=after)


def read_rows(name: str):
    """(place, row) of every record of a data set. Raises OSError or ValueError, which say what is wrong where."""
    path, config, split = DATA.get(name, (name, None, "train"))
    if path is None:
        make = easy_problems if split.startswith("easy") else tiny.problems
        yield from enumerate(make(split, BUILT_IN[split]))
    elif name.endswith(".jsonl"):
        with open(name, "rb") as file:
            for place, line in enumerate(file, 1):
                try:
                    row = json.loads(line) if line.strip() else None
                except ValueError as error:
                    raise ValueError(f"data {name}: row {place} is not JSON ({error}); mend or remove it") from None
                if line.strip():
                    yield place, row
    else:
        import datasets  # here, because the import takes a second

        file = dict(data_files=name) if name.endswith((".csv", ".parquet")) else {}
        try:
            source = datasets.load_dataset(Path(name).suffix[1:] if file else path, config, split=split, **file)
        except Exception as error:  # the library has many kinds
            what = f"{path} could not be downloaded: " if name in DATA and not Path(path).exists() else ""
            reason = f"{str(error).splitlines()[0]} ({type(error).__name__})"
            raise ValueError(f"data {name}: {what}{reason}") from None
        yield from enumerate(source, 1)


# The columns that may hold the problem and the gold answer; of several, the first counts.
PROBLEM = ("problem", "question", "prompt")
ANSWER = ("answer", "final_answer", "ground_truth", "solution")


def problem_of(row: dict) -> str:
    """The text of the problem in a row that has one of the columns PROBLEM; "" if it is empty."""
    problem = row[next(name for name in PROBLEM if name in row)]
    if isinstance(problem, list) and problem and isinstance(problem[-1], dict):  # the turns of a chat
        problem = problem[-1].get("content")
    return str(problem or "")


def answer_of(row: dict) -> str:
    """The gold answer in a row that has one of the columns ANSWER; "" if it names none."""
    column = next(name for name in ANSWER if name in row)
    text = str(row[column])
    if column == "solution" and last_boxed(text) is None and "####" not in text:
        return ""  # a proof, or prose
    return gold_answer(row[column], row.get("unit"))


def load_data(name: str, tokenizer, cfg, limit: int = 0, graded: bool = True) -> list[dict]:
    """Problems as dicts: all columns of the row, and problem, answer (gold), text (the prompt) and prompt (its token
    ids). limit 0: all. graded False: a check of the user's own does the grading, so a row needs no answer, and one that
    it has is left as it is.

    Rows without a usable answer and rows whose prompt is over cfg.max_prompt_tokens are dropped and counted. Raises
    OSError or ValueError: one line that says what is wrong where."""
    problems, dropped, longest = [], Counter(), cfg.max_prompt_tokens
    if cfg.template not in TEMPLATES and "{problem}" not in cfg.template:
        raise ValueError(f"template {cfg.template!r}: give one of {', '.join(TEMPLATES)}, or a text with {{problem}}")
    if name.endswith((".jsonl", ".csv", ".parquet")) and not Path(name).is_file():
        raise ValueError(f"data {name}: no such file; check the path")
    for place, row in tqdm(read_rows(name), f"reading {name}", delay=5, leave=False, disable=rank() > 0 or None):
        row = row if isinstance(row, dict) else {}
        if isinstance(row.get("reward_model"), dict):  # as in the files that verl reads
            row = row["reward_model"] | row
        if not set(PROBLEM) & set(row) or graded and not set(ANSWER) & set(row):
            raise ValueError(f"data {name}: row {place} has the columns {sorted(row)}; it needs problem (or question, "
                             "prompt) and answer (or final_answer, ground_truth, solution)")  # fmt: skip
        problem, answer = problem_of(row), answer_of(row) if graded else row.get("answer")
        if not problem or graded and not answer:
            dropped["without a problem or a usable answer"] += 1
            continue
        encoded = encode(problem, cfg.template, tokenizer, getattr(cfg, "prefix", ""))
        if len(encoded["prompt"]) > longest:
            dropped[f"with a prompt over {longest} tokens"] += 1
            continue
        problems.append(row | encoded | dict(answer=answer))
        if len(problems) == limit > 0:
            break
    if not problems:
        raise ValueError(f"data {name}: no usable problem in it ({dropped.total()} rows dropped)")
    for reason, count in dropped.items():
        say(f"{name}: dropped {count:,} rows {reason}")
    return problems


def draw(problems: list[dict], first: int, count: int, seed: int) -> list[dict]:
    """Problems number first ... first + count - 1 of the endless training order: a seeded permutation per epoch."""
    chosen = []
    for number in range(first, first + count):
        epoch, i = divmod(number, len(problems))
        if not chosen or i == 0:
            order = np.random.default_rng([seed, epoch]).permutation(len(problems))
        chosen.append(problems[order[i]])
    return chosen
