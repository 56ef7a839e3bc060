r"""More small models and problems, for repeating the claims of papers in miniature, by the means of tiny.py:
`python lab/worlds.py NAME --seed S --out FOLDER` writes FOLDER/final, which is complete as soon as it exists. NAME:
teacher      models/tiny, trained on solutions without an error: what its student lacks is care
countdown    no model, but train.jsonl and test.jsonl with the problems of the next four, for --check lab/worlds.py
prime-right  models/tiny, shown how to solve countdown by trying orders and verifying them (arXiv 2503.01307)
prime-wrong  the same searches, but each ends in a wrong order that seems right: the behaviour without the answers
prime-direct the right order at once; prime-dots: the right order after as many dots as a search has characters
checkpoints  step_N, a base during its pretraining, and corrupted.jsonl, solutions cut off after an error: 2504.04022
A problem of countdown, `12 *2 +8 -1 > 38`, asks for an order of the operations that leads from 12 to 38, from left to
right. A search has an attempt a line, such as `12*2=24+8=32-1=31 > 38 no`, at last `12-1=11+8=19*2=38 > 38 yes`, then
`\boxed{-1+8*2}`. So small a model learns to compare numbers of two digits that stand together, hardly any others.
"""

import argparse
import json
import random
import re
import sys
from itertools import permutations
from pathlib import Path

ROOT = Path(__file__).parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # not lab/, whose modules could hide others of the same name
from core import tiny
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

LENGTH, MOST, VALUES = 3, 2, set(range(10, 100))  # countdown: operations; right orders at most; all values on the way


def read(problem: str) -> tuple[int, list[str], int]:
    """`12 *2 +8 -1 > 38` -> 12, ["*2", "+8", "-1"], 38."""
    start, *operations, _, target = problem.split()
    return int(start), operations, int(target)


def values(start: int, order) -> list[int]:
    """The values that the operations lead to, one after the other, without the start."""
    return tiny.walk(start, [(operation[0], int(operation[1:])) for operation in order])[1:]


def orders(problem: str, right: bool) -> list[tuple]:
    """The orders of a problem's operations that reach its target, or those that do not."""
    start, operations, target = read(problem)
    return [order for order in permutations(operations) if (values(start, order)[-1] == target) == right]


def countdown(split: str, n: int, seed: int = 0) -> list[dict]:
    """n different problems, {"problem": str, "answer": a right order}. At most MOST orders are right; none leaves
    VALUES. As in tiny.problems(), a hash of its text decides whether a problem is for test, one in eight."""
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
    """A response. A search has 0-2 failing attempts before its last; for `wrong` that fails too, but seems right."""
    start, _, target = read(problem)
    *failed, wrong = rng.sample(orders(problem, right=False), rng.randint(1, 3))
    last = wrong if kind == "wrong" else rng.choice(orders(problem, right=True))
    attempts = [(order, values(start, order)) for order in failed] + [(last, [*values(start, last)[:-1], target])]
    lines = ["".join(f"{operation}={value}" for operation, value in zip(order, path)) for order, path in attempts]
    search = "".join(f"{start}{line} > {target} no\n" for line in lines[:-1]) + f"{start}{lines[-1]} > {target} yes\n"
    search = {"direct": "", "dots": "." * (len(search) - 1) + "\n"}.get(kind, search)
    return search + "\\boxed{" + "".join(last) + "}"


def check(response: str, problem: dict) -> float:
    """1.0 if the last box of the response holds the problem's operations, each once, in an order that reaches the
    target; else 0.0, also for whatever cannot be read. For --check lab/worlds.py."""
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
    """The teacher. A step has 64 solutions of up to eight operations."""
    rng, rows = random.Random(f"teacher {seed}"), tiny.problems("wide", steps * 64, seed)
    tune([(row["problem"], tiny.solution(row["problem"], "steps", 0.0, rng)) for row in rows], steps, 1e-3, out)


def prime(kind: str, out: Path, seed: int = 0, steps: int = 450):
    """A model that answers countdown in the way `kind`, learned from problems of train.jsonl, 16 a step."""
    rng, rows = random.Random(f"prime {seed}"), countdown("train", steps * 16, seed)
    tune([(row["problem"], trace(row["problem"], kind, rng)) for row in rows], steps, 2e-3, out)


def files(out: Path, seed: int = 0):
    """The problems of countdown."""
    for split, n in (("train", 10_000), ("test", 500)):
        (out / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in countdown(split, n, seed)))


def corrupt(problem: str, rng: random.Random) -> str:
    """A solution of the problem, cut off after one step whose value is wrong."""
    lines, chain = tiny.solution(problem, "steps", 0.0, rng).split("\n"), tiny.parse(problem)[1]
    left, right = lines[i := rng.randrange(len(chain))].split("=")
    wrong = tiny.slip(int(right), chain[i + 1 :], rng)  # the right value itself, if no value near it would do
    return "\n".join([*lines[:i], f"{left}={wrong}"]) if wrong != int(right) else corrupt(problem, rng)


def checkpoints(out: Path, seed: int = 0, steps: int = 300, n: int = 200):
    """A base after a quarter, half and all of a pretraining with 64 solutions a step, and n corrupted solutions."""
    model, tokenizer, rng = tiny.make_model(seed), tiny.make_tokenizer(), random.Random(f"corrupted {seed}")
    for step, _ in enumerate(tiny.fit(model, tokenizer, tiny.corpus("tiny", steps * 64, seed), steps, 2e-3), 1):
        if step in (steps // 4, steps // 2, steps):
            tiny.save(model, tokenizer, out / f"step_{step}")
    rows = [row | {"response": corrupt(row["problem"], rng)} for row in tiny.problems("test", n, seed)]
    (out / "corrupted.jsonl").write_text("".join(json.dumps(row | {"correct": False}) + "\n" for row in rows))


WORLDS = {"teacher": teach, "countdown": files, "checkpoints": checkpoints}
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
