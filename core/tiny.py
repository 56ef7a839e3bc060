r"""The built-in world: arithmetic problems, a tokenizer, and base models small enough to train by RL on a laptop.

RL with verifiable rewards sharpens what a base model already knows. So a toy base must know something worth sharpening.
These bases are pretrained from nothing, on synthetic solutions of nested integer arithmetic such as `(7+5)*3-8`.
They know their arithmetic, but they make mistakes, because their corpus does: each step of a solution is wrong with a
set probability, and the solution goes on from the wrong value. Some solutions only guess, some never box their answer,
some notice a mistake and correct it ("wait"). See the table STYLES.
The bases differ in one number, how often a step of the python style is wrong. In `tiny` that is less often than in the
steps style, as in Qwen2.5-Math. In `tiny-badcode` it is more often, as in OLMo-2-SFT.

`python -m core.tiny` builds models/tiny again, in minutes. `--model tiny-badcode` builds the other.
"""

import argparse
import copy
import hashlib
import json
import math
import operator
import random
import re
import time
from collections import namedtuple
from itertools import accumulate, cycle
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from core.files import write_whole
from core.processes import bad_input, fail
from core.stats import pass_at_k

BASES = ("tiny", "tiny-badcode")
# share: part of the corpus in this style. error: probability that a step is wrong (direct: that the guess is wrong).
# Both have one entry per base, in the order of BASES. The example solves (7+5)*3 without an error.
Style = namedtuple("Style", "name share error example")
STYLES = (
    Style("python", (0.50, 0.50), (0.12, 0.33), "python\n7+5 #12\n12*3 #36\n\\boxed{36}"),
    Style("steps", (0.18, 0.18), (0.17, 0.17), "7+5=12\n12*3=36\n\\boxed{36}"),
    Style("direct", (0.12, 0.12), (0.80, 0.80), "\\boxed{36}"),
    Style("nobox", (0.08, 0.08), (0.17, 0.17), "7+5=12\n12*3=36"),
    Style("wait", (0.12, 0.12), (0.17, 0.17), "7+5=12\n12*3=38 wait 36\n\\boxed{36}"),
)

# ------------------------------------------------------------------------------ problems and solutions
OPERATIONS = {"train": (2, 5), "test": (2, 5), "hard": (6, 6), "wide": (2, 8), "wide-test": (2, 8)}  # fewest, most
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
for_test = lambda text: hashlib.sha256(text.encode()).digest()[0] % 8 == 0  # one problem in eight is for test splits
LARGEST = 99  # all intermediate values lie in 0..LARGEST: few enough facts for a tiny model to know
LINKS = [(op, k) for op in "+-" for k in range(1, 10)] + 3 * [("*", 2), ("*", 3)]  # 3: or products would be rare


def walk(value: int, chain: list[tuple[str, int]]) -> list[int]:
    """The values along a chain of (operator, operand), the start included."""
    return list(accumulate(chain, lambda v, link: OPERATORS[link[0]](v, link[1]), initial=value))


def parse(problem: str) -> tuple[int, list[tuple[str, int]]]:
    """`(7+5)*3` -> 7, [("+", 5), ("*", 3)]. Parentheses open on the left only, so reading order is solving order."""
    start, *rest = re.findall(r"[-+*]|\d+", problem)
    return int(start), [(op, int(k)) for op, k in zip(rest[::2], rest[1::2])]


def problems(split: str, n: int, seed: int = 0) -> list[dict]:
    """n different problems of a split, each {"problem": str, "answer": str}. A larger n only adds to the end.
    Train and test splits never overlap, for any n and seed: see for_test().
    Raises ValueError for an unknown split or n outside 1..100000."""
    if split not in OPERATIONS or not 1 <= n <= 100_000:
        raise ValueError(f"no {n} problems of split {split!r}: splits are {', '.join(OPERATIONS)}; n is 1 to 100000")
    rng, drawn = random.Random(f"{split} {seed}"), {}
    while len(drawn) < n:
        text = str(value := rng.randint(2, 20))
        for _ in range(rng.randint(*OPERATIONS[split])):
            op, k = rng.choice([(op, k) for op, k in LINKS if 0 <= OPERATORS[op](value, k) <= LARGEST])
            is_product_of_sum = op == "*" and re.search(r"[-+]\d$", text)  # only then are parentheses needed
            text = f"({text}){op}{k}" if is_product_of_sum else f"{text}{op}{k}"
            value = OPERATORS[op](value, k)
        if split == "hard" or for_test(text) == split.endswith("test"):
            drawn.setdefault(text, {"problem": text, "answer": str(value)})
    return list(drawn.values())


def slip(value: int, chain: list[tuple[str, int]], rng: random.Random) -> int:
    """A wrong value near the right one, from which the chain stays in 0..LARGEST. If there is none, the right one."""
    near = [value + d for d in (-10, -2, -1, 1, 2, 10)]
    return rng.choice([v for v in near if all(0 <= w <= LARGEST for w in walk(v, chain))] or [value])


def solution(problem: str, name: str, error: float, rng: random.Random) -> str:
    """A solution in the style `name`. Each step is wrong with probability `error`."""
    value, chain = parse(problem)
    if name == "direct":
        answer = walk(value, chain)[-1]
        return f"\\boxed{{{slip(answer, [], rng) if rng.random() < error else answer}}}"
    lines = ["python"] if name == "python" else []
    noticed = rng.randrange(len(chain)) if name == "wait" else None
    for i, (op, k) in enumerate(chain):
        line = f"{value}{op}{k}" + (" #" if name == "python" else "=")
        right, rest = OPERATORS[op](value, k), chain[i + 1 :]
        value = slip(right, rest, rng) if rng.random() < error else right
        lines.append(f"{line}{slip(right, rest, rng)} wait {value}" if i == noticed else f"{line}{value}")
    return "\n".join(lines if name == "nobox" else [*lines, f"\\boxed{{{value}}}"])


def style(text: str) -> str:
    """The name of the style that a response is written in."""
    signs = {"python": "python" in text, "nobox": "\\boxed{" not in text, "wait": "wait" in text}
    signs |= {"direct": text.startswith("\\boxed{"), "steps": True}
    return next(name for name, there in signs.items() if there)


def corpus(base: str, n: int, seed: int = 0) -> list[tuple[str, str]]:
    """n pairs (problem, solution) for a base. Problems: train. Styles and errors: the base's column of STYLES."""
    column, rng = BASES.index(base), random.Random(f"corpus {seed}")
    texts = cycle(row["problem"] for row in problems("train", min(n, 40_000), seed))
    styles = rng.choices(STYLES, [row.share[column] for row in STYLES], k=n)
    return [(text, solution(text, row.name, row.error[column], rng)) for row, text in zip(styles, texts)]


# ------------------------------------------------------------------------------ easy problems for a small real model
# Stories about the sum, difference, product or quotient of a and b. {x} and {y} are two names.
STORIES = (
    ("+", "{x} has {a} {things} and buys {b} more. How many {things} does {x} have now?"),
    ("+", "{x} has {a} {things} and {y} has {b}. How many {things} do they have together?"),
    ("+", "There are {a} {things} on a table and {b} in a bag. How many {things} are there in all?"),
    ("-", "{x} has {a} {things} and gives {b} of them to {y}. How many {things} are left?"),
    ("-", "{x} has {a} {things} and {y} has {b}. How many more {things} does {x} have than {y}?"),
    ("-", "A shop had {a} {things} and sold {b}. How many {things} does it still have?"),
    ("*", "{x} buys {a} boxes with {b} {things} in each. How many {things} does {x} buy?"),
    ("*", "{x} collects {b} {things} every day. How many {things} does {x} have after {a} days?"),
    ("*", "There are {a} children and each has {b} {things}. How many {things} do they have together?"),
    ("/", "{x} shares {a} {things} equally among {b} friends. How many {things} does each friend get?"),
    ("/", "{x} packs {a} {things} into bags of {b}. How many bags does {x} need?"),
    ("/", "{a} {things} stand in {b} equal rows. How many {things} are in a row?"),
)
NAMES = "Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Liam Mia Noah Paul Rosa Sam Tina Victor".split()
THINGS = "apples books cards coins cups eggs flowers marbles pens shells stamps stickers".split()


def easy_problems(split: str, n: int) -> list[dict]:
    """n different problems of one step, {"problem": str, "answer": str}, in whole numbers from 2 to 60.
    split: easy or easy-test. They never overlap: see for_test()."""
    rng, drawn = random.Random(split), {}
    while len(drawn) < n:
        op, a, b = rng.choice("+-*/"), rng.randint(2, 30), rng.randint(2, 30)
        if op in "*/":
            a, b = rng.randint(2, 12), rng.randint(2, 12)
        whole = a + b if op in "+-" else a * b
        if whole > 60:
            continue
        a, answer = (a, whole) if op in "+*" else (whole, a)
        (x, y), things = rng.sample(NAMES, 2), rng.choice(THINGS)
        plain, stories = f"What is {{a}} {op} {{b}}?", [story for sign, story in STORIES if sign == op]
        text = rng.choice([plain, plain, rng.choice(stories)]).format(a=a, b=b, x=x, y=y, things=things)
        if for_test(text) == split.endswith("test"):
            drawn.setdefault(text, {"problem": text, "answer": str(answer)})
    return list(drawn.values())


# ------------------------------------------------------------------------------ tokenizer, pretraining, report
PAD, USER, ASSISTANT, END = SPECIAL = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role in ('user', 'assistant') %}<|{{ m.role }}|>{% endif %}{{ m.content }}"
    "{% if m.role == 'assistant' %}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    r"""256 bytes, `\boxed{` and 4 special tokens. Text comes back exactly, but AutoTokenizer applies Qwen2's NFC."""
    core = Tokenizer(models.BPE({s: i for i, s in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_tokens([AddedToken("\\boxed{", special=False, normalized=False)])
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, chat_template=CHAT_TEMPLATE, pad_token=PAD, eos_token=END, padding_side="left",
        model_input_names=["input_ids", "attention_mask"], clean_up_tokenization_spaces=False, model_max_length=2048)


def response_loss(model: Qwen2ForCausalLM, tokenizer, pairs: list[tuple[str, str]]) -> torch.Tensor:
    """Next-token loss of the responses of (problem, solution) pairs, summed over their tokens (nats)."""
    texts = [USER + problem + ASSISTANT + text + END for problem, text in pairs]
    ids = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right").input_ids  # so no mask is needed
    in_response = (ids == tokenizer.convert_tokens_to_ids(ASSISTANT)).cumsum(dim=1)[:, :-1] == 1
    labels = ids[:, 1:].where(in_response & (ids[:, 1:] != tokenizer.pad_token_id), -100)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


def fit(model: Qwen2ForCausalLM, tokenizer, pairs: list[tuple[str, str]], steps: int, lr: float, warmup: int = 50):
    """Train on pairs (problem, solution), an equal share per step. Yields each step's loss, in nats per token."""
    adam, size = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01), len(pairs) // steps
    for i in (bar := tqdm(range(steps), desc="train")):
        adam.param_groups[0]["lr"] = lr * min(1, (i + 1) / warmup) * (0.51 + 0.49 * math.cos(math.pi * i / steps))
        batch = sorted(pairs[i * size : (i + 1) * size], key=lambda pair: len(pair[0] + pair[1]))
        tokens, total = sum(len(tokenizer.encode(text + END)) for _, text in batch), 0.0
        for j in range(0, size, 32):  # chunks of similar length need little padding; their gradients add up
            (loss := response_loss(model, tokenizer, batch[j : j + 32]) / tokens).backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        bar.set_postfix(loss=f"{total:.3f}")
        yield total


def save(model: Qwen2ForCausalLM, tokenizer, folder):
    """Write the model in float16, and the tokenizer. The model itself is not changed: its training can go on."""
    copy.deepcopy(model).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = Path(folder) / "tokenizer_config.json"  # write the class name that transformers 4 (vLLM) knows as well
    settings.write_text(settings.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))


def make_model(seed: int = 0) -> Qwen2ForCausalLM:
    """A model that knows nothing yet, for the tokens of make_tokenizer()."""
    torch.manual_seed(seed)
    shape = dict(hidden_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
                 intermediate_size=384, max_position_embeddings=2048, tie_word_embeddings=True)
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=261, pad_token_id=257, eos_token_id=260, **shape))


def sample(folder, data: list[dict], n: int, greedy=False) -> list[tuple[str, int, bool]]:
    """n <= 1024 responses to each problem, at temperature 1 or greedy, as (text, number of tokens, right).
    The shortest problem comes first. The n responses to a problem are next to each other."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    how = {} if greedy else {"do_sample": True, "top_k": 0}
    torch.manual_seed(0)
    responses = []
    data = sorted(data, key=lambda row: len(row["problem"]))  # prompts of similar length need little padding
    for j in tqdm(range(0, len(data), 1024 // n), desc="sample"):
        rows = data[j : j + 1024 // n]
        prompts = tokenizer([USER + row["problem"] + ASSISTANT for row in rows], return_tensors="pt", padding=True)
        width = prompts.input_ids.shape[1]
        output = model.generate(**prompts, **how, num_return_sequences=n, max_new_tokens=80)[:, width:]
        for i, text in enumerate(tokenizer.batch_decode(output, skip_special_tokens=True)):
            right = re.findall(r"\\boxed\{(\d+)\}", text)[-1:] == [rows[i // n]["answer"]]
            responses.append((text, int((output[i] != tokenizer.pad_token_id).sum()), right))
    return responses


def build(out, name: str = "tiny", steps: int = 1000, seed: int = 0, n_test: int = 200, n_samples: int = 64) -> dict:
    """Pretrain the base `name` from nothing, 128 solutions per step. Save it, its tokenizer and report.json in `out`.

    Returns the report: losses in nats per token, and what the base can do, from n_samples responses to each of n_test
    problems (2 or more). Raises ValueError for a bad name or steps < 1."""
    if name not in BASES or steps < 1:
        raise ValueError(f"cannot build {name!r} in {steps} steps: models are {', '.join(BASES)}; steps is 1 or more")
    Path(out).mkdir(parents=True, exist_ok=True)  # an unusable folder fails now, not after the training
    start, model, tokenizer = time.time(), make_model(seed), make_tokenizer()
    losses = list(fit(model, tokenizer, corpus(name, steps * 128, seed), steps, lr=2e-3))
    save(model, tokenizer, out)
    report = {"model": name, "parameters": model.num_parameters(), "seed": seed, "steps": steps}
    report |= {"first loss": losses[0], "final loss": sum(losses[-50:]) / len(losses[-50:])}
    accuracy = lambda own: sum(right for *_, right in own) / max(1, len(own))
    test = problems("test", n_test)
    responses = sample(out, test, n_samples)
    right = torch.tensor([right for *_, right in responses]).view(n_test, n_samples).sum(1)
    curve = pass_at_k(right, n_samples).mean(0).tolist()
    report |= {f"pass@{k}": curve[k - 1] for k in (1, 4, 16, 64) if k <= n_samples}
    report["greedy"] = accuracy(sample(out, test, 1, greedy=True))
    report["hard pass@1"] = accuracy(sample(out, problems("hard", n_test // 2), 8))
    report["boxed"] = sum("\\boxed{" in text for text, *_ in responses) / len(responses)
    report["response tokens"] = sum(length for _, length, _ in responses) / len(responses)
    for row in STYLES:
        own = [response for response in responses if style(response[0]) == row.name]
        report[f"style {row.name}"] = {"share": len(own) / len(responses), "accuracy": accuracy(own)}
    report["seconds"] = time.time() - start
    write_whole(Path(out) / "report.json", json.dumps(report, indent=2) + "\n")
    return report


def main():
    parser = argparse.ArgumentParser(description="Rebuild a base of the built-in world.", usage=argparse.SUPPRESS)
    parser.add_argument("--model", default="tiny", help="which base: " + " or ".join(BASES))
    parser.add_argument("--out", help="folder to write (default: models/MODEL)")
    parser.add_argument("--steps", type=int, default=1000, help="training steps, 128 solutions each")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and the corpus")
    parser.error = fail
    args = parser.parse_args()
    with bad_input():
        report = build(args.out or Path(__file__).parents[1] / "models" / args.model, args.model, args.steps, args.seed)
    for key, value in report.items():
        cells = value.values() if isinstance(value, dict) else [value]
        print(f"{key:18}", *(f"{cell:10.4g}" if isinstance(cell, float) else f"{cell:>10}" for cell in cells))


if __name__ == "__main__":
    main()
