"""Grading, and what is rewarded: small functions from rollouts to rewards [P, n], combined by & and !.

Being right is one reward. The others are the spurious and the label-free rewards of the papers. The metric `accuracy`
is the share of right answers, whatever is rewarded.
"""

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import torch

import core.verify as grading
from core.data import epoch_order
from core.files import read_lines, write_whole
from core.processes import all_reduce, gather, rank, say, with_bar, world
from core.rollout import Rollouts, generate
from core.streams import uniforms
from core.verify import extract, last_boxed, normalise, right, verify_all


# ------------------------------------------------------------------------------------------------ grading
def decode(responses: list[tuple], tokenizer) -> list[str]:
    """The texts of responses, on every rank. Each rank decodes its share."""
    own = [ids for ids, *_ in responses[rank() :: world()]]
    return gather(tokenizer.batch_decode(own, skip_special_tokens=True), len(responses))


def apply_check(check, text: str, problem: dict) -> tuple[float, str]:
    """(score, error) of one response by the user's own check. Without an error it is "", with one the score is 0.

    The check sees the row of the data as it is, but `problem` is always text. It sees nothing that we added."""
    columns = problem.get("row", problem) | {name: problem.get(name) for name in ("problem", "answer")}
    try:
        value = float(check(text, columns))
        return (value, "") if math.isfinite(value) else (0.0, f"it returned {value}")
    except (Exception, SystemExit) as error:  # somebody else's code can raise anything
        return 0.0, f"it raised {type(error).__name__}: {error}"


reported = set()  # checks whose first error has been printed


def score(texts: list[str], problems: list[dict], check=None) -> tuple[torch.Tensor, int]:
    """(scores [len(texts)], how often the check failed), on every rank. Each rank scores its share.

    Without a check, the score is 1 for a verified answer and 0 for others."""
    share = slice(rank(), None, world())
    if check is None:
        pairs = list(zip(texts, (problem["answer"] for problem in problems)))
        return torch.tensor(gather(verify_all(pairs[share]), len(texts))).float(), 0
    results = gather([apply_check(check, *pair) for pair in list(zip(texts, problems))[share]], len(texts))
    failed = [error for _, error in results if error]
    if failed and check not in reported:
        reported.add(check)
        say(f"warning: the check failed, which counts as 0: {failed[0]} (further errors are counted: check_errors)")
    return torch.tensor([value for value, _ in results]), len(failed)


def grade(rollouts: Rollouts, tokenizer, check=None):
    """Decode and score every response. Adds texts (P x n strings), scores, correct (1 for right, else 0) and boxed
    (1 for a response with a box), each [P, n]."""
    rollouts.texts, rollouts.check, before = decode(rollouts.responses, tokenizer), check, grading.timeouts
    rollouts.usual_end = getattr(tokenizer, "eos_token_id", None)
    problems = [problem for problem in rollouts.problems for _ in range(rollouts.n)]
    scores, rollouts.check_errors = score(rollouts.texts, problems, check)
    rollouts.scores = scores.view(-1, rollouts.n)
    rollouts.correct = right(rollouts.scores).float()
    rollouts.timeouts = int(all_reduce(torch.tensor(grading.timeouts - before)))
    rollouts.boxed = by_text(lambda text: last_boxed(text) is not None, rollouts)


def examine(sampler, tokenizer, problems: list[dict], n: int, seed: int, cfg, first: int = 0, check=None) -> Rollouts:
    """Graded rollouts of an evaluation. Training with the same seed uses other random streams."""
    how = dict(max_new_tokens=cfg.max_new_tokens, temperature=cfg.temperature, top_p=getattr(cfg, "top_p", 1.0))
    rollouts = generate(sampler, problems, n, seed + 2**40, first=first, **how)
    grade(rollouts, tokenizer, check)
    return rollouts


# ------------------------------------------------------------------------------------------------ rewards
def by_text(rule, rollouts: Rollouts) -> torch.Tensor:
    """[P, n]: 1 where a rule holds for the text of a response, else 0."""
    return torch.tensor([float(bool(rule(text))) for text in rollouts.texts]).view(-1, rollouts.n)


def repeats(text: str, least: int = 10, most: int = 256, times: int = 10) -> bool:
    """Whether a piece of `least` to `most` characters stands in the text `times` or more times in a row."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    for size in range(least, min(most, len(codes) // times) + 1):
        breaks = np.flatnonzero(codes[:-size] != codes[size:])  # between two breaks, a piece of this size repeats
        if np.diff(np.concatenate([[-1], breaks, [len(codes) - size]])).max() > size * (times - 1):
            return True
    return False


def vote(texts: list[str]) -> str:
    """The most frequent final answer of some responses, as the first of them wrote it. Of equally frequent ones the
    first counts. "" if no response has an answer."""
    answers = [answer for text in texts if (answer := extract(text)) and answer.strip()]
    if not answers:
        return ""
    winner, _ = Counter(map(normalise, answers)).most_common(1)[0]
    return next(answer for answer in answers if normalise(answer) == winner)


def label_is_right(labels: list[str], problems: list[dict], check) -> torch.Tensor:
    """[P] bool: whether each label is the right answer to its problem."""
    return right(score([f"\\boxed{{{label}}}" for label in labels], problems, check)[0])


def matches(rollouts: Rollouts, labels: list[str]) -> torch.Tensor:
    """[P, n]: 1 where a response's answer is the label of its prompt, else 0."""
    rollouts.labels = labels
    rollouts.label_accuracy = label_is_right(labels, rollouts.problems, rollouts.check).float().mean().item()
    as_gold = [dict(answer=label) for label in labels for _ in range(rollouts.n)]
    return score(rollouts.texts, as_gold)[0].view(-1, rollouts.n)


def majority(rollouts: Rollouts, value) -> torch.Tensor:
    """Test-time RL (arXiv 2504.16084): the label is what most of the prompt's own responses say."""
    n = rollouts.n
    return matches(rollouts, [vote(rollouts.texts[i : i + n]) for i in range(0, len(rollouts.texts), n)])


def fixed(rollouts: Rollouts, value) -> torch.Tensor:
    """The label is the problem's own: see label_problems(). For `incorrect` every label is a wrong one."""
    return matches(rollouts, [p["label"] for p in rollouts.problems])


def chance(rollouts: Rollouts, value: str) -> torch.Tensor:
    """Bernoulli(value) per response, from its random stream, far behind the numbers that its tokens use."""
    return torch.from_numpy(uniforms(rollouts.keys, 2**40) < float(value)).float().view(-1, rollouts.n)


# name: function of (rollouts, what follows the colon) -> rewards [P, n]. The rules are those of arXiv 2506.10947.
REWARDS = {
    "ground_truth": lambda rollouts, value: rollouts.scores.clone(),  # 1 for right, 0 for wrong; or what --check gives
    "majority": majority,
    "majority_fixed": fixed,
    "incorrect": fixed,
    "format": lambda rollouts, value: by_text(lambda text: (last_boxed(text) or "").strip(), rollouts),
    "random": chance,
    "python": lambda rollouts, value: by_text(lambda text: "python" in text.lower(), rollouts),
    "no_repetition": lambda rollouts, value: by_text(lambda text: not repeats(text), rollouts),
}


def reward_terms(expression: str) -> list[tuple]:
    """(negated, name, value) of each term of a reward such as "format & !python" or "random:0.5". Raises ValueError."""
    terms = []
    for term in expression.split("&"):
        name, colon, value = term.strip().removeprefix("!").strip().partition(":")
        try:
            good = name in REWARDS and (0 <= float(value) <= 1 if name == "random" else not colon)
        except ValueError:
            good = False
        if not good:
            names = ", ".join(REWARDS).replace("random", "random:P (0 <= P <= 1)")
            raise ValueError(f"reward {expression!r}: {term.strip()!r} is not one of {names}; combine with & and !")
        terms.append((term.strip().startswith("!"), name, value))
    return terms


def reward_names(expression: str) -> set[str]:
    """The names in a reward expression."""
    return {name for _, name, _ in reward_terms(expression)}


def compute_rewards(expression: str, rollouts: Rollouts) -> torch.Tensor:
    """Rewards [P, n]: the product of all terms. `!` before a term makes it 1 minus its value."""
    product = torch.ones(len(rollouts.problems), rollouts.n)
    for negated, name, value in reward_terms(expression):
        term = REWARDS[name](rollouts, value)
        product = product * (1 - term if negated else term)
    return product


def vote_labels(file: Path, pool: list[dict], sampler, tokenizer, cfg) -> list[str]:
    """The label of each problem, by the vote of cfg.votes responses of the sampler's model.

    `file` keeps the labels, so an interrupted vote goes on where it stopped."""
    labels = [row["label"] for _, row in read_lines(file)] if file.exists() else []
    size = max(1, 4096 // cfg.votes)
    for i in with_bar(range(len(labels), len(pool), size), "voting"):
        how = dict(seed=cfg.seed + 2**41, max_new_tokens=cfg.max_new_tokens, temperature=cfg.temperature, first=i)
        texts = decode(generate(sampler, pool[i : i + size], cfg.votes, **how).responses, tokenizer)
        labels += [vote(texts[j : j + cfg.votes]) for j in range(0, len(texts), cfg.votes)]
        if rank() == 0:
            rows = [dict(problem=p["problem"], answer=p.get("answer"), label=x) for p, x in zip(pool, labels)]
            write_whole(file, "".join(json.dumps(row) + "\n" for row in rows))
    return labels[: len(pool)]


def label_problems(problems, cfg, file: Path, resumed: bool, sampler, tokenizer, check=None) -> list[dict]:
    """The problems that a run will use, each with a `label` by the vote of the sampler's model.

    Problems without a label are left out. So are, for the reward `incorrect`, those whose label is right.
    A resumed run uses the labels in the file alone: its policy is no longer the initial model, whose vote counts.
    Raises ValueError if no problem is left."""
    count = min(len(problems), cfg.steps * cfg.prompts_per_step)
    if resumed:
        count = len(read_lines(file)) if file.exists() else 0
    order = epoch_order(problems, cfg.seed, 0)
    pool = list(itertools.islice((problem for i in order if (problem := problems[int(i)])), count))
    pool = [p | dict(label=x) for p, x in zip(pool, vote_labels(file, pool, sampler, tokenizer, cfg))]
    kept = [p for p in pool if p["label"]]
    if "incorrect" in reward_names(cfg.reward):
        kept = [p for p, x in zip(kept, label_is_right([p["label"] for p in kept], kept, check)) if not x]
    say(f"labels: {len(pool)} problems voted on, {len(kept)} kept ({file})")
    if not kept:
        raise ValueError(f"--reward {cfg.reward}: no labelled problem is left of {len(pool)}; give more data or votes")
    return kept
