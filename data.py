"""Problems: data sets by alias, hub id or file, the prompt templates, and the order in which a run draws problems."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from processes import rank, say  # before tiny imports transformers, which it prepares
import tiny
from answers import gold_answer, last_boxed

# name: the prompt's text; or the turns of the model's own chat template, (system, user), and perhaps the beginning of
# the response, which then belongs to the prompt
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
TEMPLATES = {
    "none": "{problem}",
    "plain": "{problem}\nPlease reason step by step, and put your final answer within \\boxed{}.\n",
    "chat": (None, "{problem}"),
    "cot": (None, "{problem} Let's think step by step and output the final answer within \\boxed{}."),
    "qwen-math": ("Please reason step by step, and put your final answer within \\boxed{}.", "{problem}"),
    "sober": (None, _SOBER + "\n\n{problem}"),  # arXiv 2504.07086
    "r1": _R1 + "\nUser: {problem}\nAssistant: <think>",  # arXiv 2501.12948, as arXiv 2503.20783 has it
    "python": (None, "{problem}", "Let's solve this using Python."),  # a forced prefix, arXiv 2506.10947
}
DATA = {  # alias: path, name and split of datasets.load_dataset
    "numina-math": ("ScaleML-RLHF/numina_math",),
    "math": ("DigitalLearningGmbH/MATH-lighteval",),
    "gsm8k": ("openai/gsm8k", "main"),
    "deepscaler": ("agentica-org/DeepScaleR-Preview-Dataset",),
    "dapo-math": ("BytedTsinghua-SIA/DAPO-Math-17k",),
    # benchmarks
    "math500": ("HuggingFaceH4/MATH-500", None, "test"),
    "minerva": ("knoveleng/Minerva-Math",),
    "olympiadbench": ("knoveleng/OlympiadBench",),
    "aime24": ("HuggingFaceH4/aime_2024",),
    "aime25": ("yentinglin/aime_2025",),
    "amc23": ("knoveleng/AMC-23",),
    "gsm8k-test": ("openai/gsm8k", "main", "test"),
}


def render(problem: str, template: str, tokenizer) -> str:
    """The prompt's text: the problem in a template of TEMPLATES, or in any text with {problem}."""
    template = TEMPLATES.get(template, template)
    if isinstance(template, str):
        return template.replace("{problem}", problem)
    turns = [dict(role=role, content=text.replace("{problem}", problem))
             for role, text in zip(("system", "user"), template) if text is not None]  # fmt: skip
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) + "".join(template[2:])


def encode(problem: str, template: str, tokenizer, after: str = "") -> dict:
    """A problem's prompt, and after it a given beginning of the response: its text, and prompt, its token ids."""
    special = isinstance(TEMPLATES.get(template, ""), str)  # a chat template writes its own special tokens
    text = render(problem, template, tokenizer)
    ids = tokenizer(text, add_special_tokens=special)["input_ids"]
    ids = ids + tokenizer(after, add_special_tokens=False)["input_ids"] if after else ids
    return dict(problem=problem, text=text + after, prompt=np.array(ids, dtype=np.int64), after=after)


def read_rows(name: str):
    """(place, row) of every record of a data set. Raises OSError or ValueError, which say what is wrong where."""
    if name in ("tiny", "tiny-test", "tiny-hard"):
        split = name.partition("-")[2] or "train"
        yield from enumerate(tiny.problems(split, 10_000 if split == "train" else 1_000))
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

        kind = Path(name).suffix[1:] if name.endswith((".csv", ".parquet")) else ""
        try:
            path, config, part = (*DATA.get(name, (kind or name,)), None, None)[:3]
            source = datasets.load_dataset(path, config, data_files=name if kind else None, split=part or "train")
        except Exception as error:  # the library has many kinds
            raise ValueError(f"data {name}: {str(error).splitlines()[0]} ({type(error).__name__})") from None
        yield from enumerate(source, 1)


def load_data(name: str, tokenizer, cfg, limit: int = 0) -> list[dict]:
    """Problems as dicts with problem, answer (gold), text (the prompt) and prompt (its token ids); limit 0: all.

    Rows without a usable answer and rows whose prompt is over cfg.max_prompt_tokens are dropped and counted. Raises
    OSError or ValueError: one line that says what is wrong where."""
    problems, dropped, longest = [], Counter(), cfg.max_prompt_tokens
    if cfg.template not in TEMPLATES and "{problem}" not in cfg.template:
        raise ValueError(f"template {cfg.template!r}: give one of {', '.join(TEMPLATES)}, or a text with {{problem}}")
    if name.endswith((".jsonl", ".csv", ".parquet")) and not Path(name).is_file():
        raise ValueError(f"data {name}: no such file; check the path")
    for place, row in tqdm(read_rows(name), desc=f"reading {name}", delay=5, leave=False, disable=rank() > 0):
        row = row if isinstance(row, dict) else {}
        if isinstance(row.get("reward_model"), dict):  # as in the files that verl reads
            row = row["reward_model"] | row
        problem = next((k for k in ("problem", "question", "prompt") if k in row), None)
        answer = next((k for k in ("answer", "final_answer", "ground_truth", "solution") if k in row), None)
        if problem is None or answer is None:
            raise ValueError(f"data {name}: row {place} has the columns {sorted(row)}; it needs problem (or question, "
                             "prompt) and answer (or final_answer, ground_truth, solution)")  # fmt: skip
        worked, problem = answer == "solution", row[problem]
        if isinstance(problem, list) and problem and isinstance(problem[-1], dict):  # the turns of a chat
            problem = problem[-1].get("content")
        problem, answer = str(problem or ""), row[answer]
        if worked and last_boxed(str(answer)) is None and "####" not in str(answer):
            answer = None  # a proof, or prose: it names no answer
        answer = gold_answer(answer, row.get("unit")) if problem else ""
        encoded = encode(problem, cfg.template, tokenizer, getattr(cfg, "prefix", ""))
        if answer and len(encoded["prompt"]) <= longest:
            problems.append(encoded | dict(answer=answer))
        else:
            dropped[f"with a prompt over {longest} tokens" if answer else "without a problem or a usable answer"] += 1
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
