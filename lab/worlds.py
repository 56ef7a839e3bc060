r"""More small models and problems, made with core/tiny.py, to repeat claims of papers in miniature.

`python lab/worlds.py NAME --seed S --out FOLDER` writes FOLDER/final, which exists only when it is complete. NAME is:

teacher       models/tiny, trained on solutions without an error, since errors are what holds its student back
countdown     no model: train.jsonl and test.jsonl with problems for the next four, for --check lab/worlds.py
prime-right   models/tiny, trained to solve countdown by search: it tries orders and verifies them (arXiv 2503.01307)
prime-wrong   the same, but each search ends in a wrong order that it calls right: the behaviour without the answers
prime-direct  the same problems, and the right order at once
prime-dots    the right order, after as many dots as a search has characters
benchmarks    no model: benchmarks.jsonl, 64 problems of GSM8K and 32 of MATH-500, of at most 500 characters
checkpoints   step_N, a base during its pretraining; corrupted.jsonl, solutions cut off after an error (2504.04022)

A problem of countdown is `12 *2 +8 -1 > 38`: in which order do the operations lead from 12 to 38, from left to right?
A search has one attempt per line, such as `12*2=24+8=32-1=31 > 38 no`. The last is `12-1=11+8=19*2=38 > 38 yes`, and
then comes `\boxed{-1+8*2}`. A model this small learns to compare two-digit numbers that stand together, and hardly any
others.
"""

import argparse
import json
import random
import re
import sys
from hashlib import sha256
from itertools import permutations
from pathlib import Path

ROOT = Path(__file__).parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # not lab/, whose modules could hide others of the same name
from core import tiny
from core.rows import open_rows
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

LENGTH = 3  # operations in a problem of countdown
MOST = 2  # of its orders may be right, so that it is hard to guess
VALUES = set(range(10, 100))  # all values on the way have two digits


def read(problem: str) -> tuple[int, list[str], int]:
    """`12 *2 +8 -1 > 38` -> 12, ["*2", "+8", "-1"], 38."""
    start, *operations, _, target = problem.split()
    return int(start), operations, int(target)


def values(start: int, order) -> list[int]:
    """The value after each operation. 12, ["*2", "+8"] -> [24, 32]."""
    return tiny.walk(start, [(operation[0], int(operation[1:])) for operation in order])[1:]


def orders(problem: str, right: bool) -> list[tuple]:
    """The orders of a problem's operations that reach the target, or with right=False those that do not."""
    start, operations, target = read(problem)
    return [order for order in permutations(operations) if (values(start, order)[-1] == target) == right]


def countdown(split: str, n: int, seed: int = 0) -> list[dict]:
    """n different problems of a split, train or test: {"problem": str, "answer": a right order}.

    As in tiny.problems(), a hash of its text decides whether a problem is for test (one in eight)."""
    rng, drawn = random.Random(f"countdown {split} {seed}"), {}
    while len(drawn) < n:
        start, operations = rng.randint(10, 30), [op + str(k) for op, k in rng.sample(tiny.LINKS, LENGTH)]
        walks = {order: values(start, order) for order in permutations(operations)}
        if len(set(operations)) < LENGTH or not set().union(*walks.values()) <= VALUES:
            continue
        order, target = rng.choice([(order, walk[-1]) for order, walk in walks.items()])
        text = " ".join([str(start), *operations, ">", str(target)])
        if len(orders(text, right=True)) <= MOST and tiny.for_test(text) == (split == "test"):
            drawn.setdefault(text, {"problem": text, "answer": "".join(order)})
    return list(drawn.values())


def trace(problem: str, kind: str, rng: random.Random) -> str:
    """A response of this kind. A search has 0 to 2 attempts that fail, then the last. For `wrong`, the last one fails
    too, but its line says that it reaches the target."""
    start, _, target = read(problem)
    *failed, wrong = rng.sample(orders(problem, right=False), rng.randint(1, 3))
    last = wrong if kind == "wrong" else rng.choice(orders(problem, right=True))
    attempts = [(order, values(start, order)) for order in failed] + [(last, [*values(start, last)[:-1], target])]
    lines = ["".join(f"{operation}={value}" for operation, value in zip(order, path)) for order, path in attempts]
    search = "".join(f"{start}{line} > {target} no\n" for line in lines[:-1]) + f"{start}{lines[-1]} > {target} yes\n"
    search = {"direct": "", "dots": "." * (len(search) - 1) + "\n"}.get(kind, search)
    return search + "\\boxed{" + "".join(last) + "}"


def check(response: str, problem: dict) -> float:
    """1.0 if the last box of the response is an order that reaches the target, with each operation of the problem once.
    Else 0.0, also if the response or the problem cannot be read. For --check lab/worlds.py."""
    boxes, text = re.findall(r"\\boxed\{([^{}]*)\}", str(response)), str(problem.get("problem"))
    if not (boxes and re.fullmatch(r"\d{1,4}( [-+*]\d{1,4}){1,9} > \d{1,4}", text)):
        return 0.0
    (start, given, target), order = read(text), re.findall(r"[-+*]\d+", boxes[-1])
    return float("".join(order) == boxes[-1] and sorted(order) == sorted(given) and values(start, order)[-1] == target)


def tune(pairs: list[tuple[str, str]], steps: int, lr: float, out: Path):
    """Supervised fine-tuning of models/tiny on pairs (problem, solution)."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(ROOT / "models" / "tiny")
    model = Qwen2ForCausalLM.from_pretrained(ROOT / "models" / "tiny", dtype="float32")
    list(tiny.fit(model, tokenizer, pairs, steps, lr, warmup=20))
    tiny.save(model, tokenizer, out)


def teach(out: Path, seed: int = 0, steps: int = 120):
    """The teacher. It sees 64 solutions per step, of up to eight operations, and all are right."""
    rng, rows = random.Random(f"teacher {seed}"), tiny.problems("wide", steps * 64, seed)
    tune([(row["problem"], tiny.solution(row["problem"], "steps", 0.0, rng)) for row in rows], steps, 1e-3, out)


def prime(kind: str, out: Path, seed: int = 0, steps: int = 450):
    """A model that answers countdown in the way `kind`. It sees 16 problems of the train split per step."""
    rng, rows = random.Random(f"prime {seed}"), countdown("train", steps * 16, seed)
    tune([(row["problem"], trace(row["problem"], kind, rng)) for row in rows], steps, 2e-3, out)


def files(out: Path, seed: int = 0):
    """The problems of countdown, as train.jsonl and test.jsonl."""
    for split, n in (("train", 10_000), ("test", 500)):
        (out / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in countdown(split, n, seed)))


def benchmarks(out: Path, seed: int = 0):
    """64 test problems of GSM8K and 32 of MATH-500. A hash of its text decides whether a problem is drawn.

    From data/gsm8k-test.jsonl and data/math500.jsonl in this repository if they are there, else from the hub."""
    drawn = []
    for name, n in (("gsm8k-test", 64), ("math500", 32)):
        local = ROOT / "data" / f"{name}.jsonl"
        rows = open_rows(str(local) if local.exists() else name)
        rows = [(row.get("question") or row["problem"], row["answer"]) for row in map(dict, rows)]
        order = sorted((sha256(f"{seed} {text}".encode()).digest(), text, gold) for text, gold in rows)
        drawn += [dict(problem=text, answer=gold) for _, text, gold in order if len(text) <= 500][:n]
    (out / "benchmarks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in drawn))


def corrupt(problem: str, rng: random.Random) -> str:
    """A solution of the problem, cut off after its first step with a wrong value."""
    lines, chain = tiny.solution(problem, "steps", 0.0, rng).split("\n"), tiny.parse(problem)[1]
    left, right = lines[i := rng.randrange(len(chain))].split("=")
    wrong = tiny.slip(int(right), chain[i + 1 :], rng)
    if wrong == int(right):  # there is no wrong value near this one: try another step
        return corrupt(problem, rng)
    return "\n".join([*lines[:i], f"{left}={wrong}"])


def checkpoints(out: Path, seed: int = 0, steps: int = 300, n: int = 200):
    """A base after a quarter, half and all of its pretraining (64 solutions per step), and n corrupted solutions."""
    model, tokenizer, rng = tiny.make_model(seed), tiny.make_tokenizer(), random.Random(f"corrupted {seed}")
    for step, _ in enumerate(tiny.fit(model, tokenizer, tiny.corpus("tiny", steps * 64, seed), steps, 2e-3), 1):
        if step in (steps // 4, steps // 2, steps):
            tiny.save(model, tokenizer, out / f"step_{step}")
    rows = [row | {"response": corrupt(row["problem"], rng)} for row in tiny.problems("test", n, seed)]
    (out / "corrupted.jsonl").write_text("".join(json.dumps(row | {"correct": False}) + "\n" for row in rows))


WORLDS = {"teacher": teach, "countdown": files, "checkpoints": checkpoints, "benchmarks": benchmarks}
WORLDS |= {f"prime-{k}": lambda out, seed, k=k: prime(k, out, seed) for k in ("right", "wrong", "direct", "dots")}


def main():
    parser = argparse.ArgumentParser(description="Build a small world for an experiment.", usage=argparse.SUPPRESS)
    parser.add_argument("name", choices=WORLDS)
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is drawn")
    parser.add_argument("--out", type=Path, required=True, help="folder to write final/ in")
    args = parser.parse_args()
    if (args.out / "final").exists():
        parser.exit(2, f"worlds.py: {args.out / 'final'} exists; remove it, or give another --out\n")
    (unfinished := args.out / "unfinished").mkdir(parents=True, exist_ok=True)  # an older one is overwritten
    WORLDS[args.name](unfinished, args.seed)
    unfinished.rename(args.out / "final")


if __name__ == "__main__":
    main()
