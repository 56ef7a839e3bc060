"""What is rewarded: small functions from rollouts to rewards [P, n], in one table, combined by & and !.

Being right is one of them; the others are the spurious and the label-free rewards of the papers. Whatever is rewarded,
the metric `accuracy` is the share of right answers.
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
from core.processes import all_reduce, gather, rank, say, watched, world
from core.rollout import Rollouts, generate
from core.streams import uniforms
from core.verify import extract, last_boxed, normalise, verify_all


# ------------------------------------------------------------------------------------------------ grading
def decode(responses: list[tuple], tokenizer) -> list[str]:
    """The texts of responses, on every rank; each rank decodes its share."""
    own = [ids for ids, *_ in responses[rank() :: world()]]
    return gather(tokenizer.batch_decode(own, skip_special_tokens=True), len(responses))


def verified(texts: list[str], golds: list[str]) -> torch.Tensor:
    """1 where a response is right, else 0, float [len(texts)], on every rank; each rank verifies its share."""
    own = verify_all(list(zip(texts, golds))[rank() :: world()])
    return torch.tensor(gather(own, len(texts))).float()


def apply_check(check, text: str, problem: dict) -> tuple[float, str]:
    """The score that a check of the user's own gives, and the error that it raised, if any, which makes the score 0.
    It gets the columns of the data as they are, with `problem` as text; so it can't read what only training knows."""
    columns = problem.get("row", problem) | {name: problem.get(name) for name in ("problem", "answer")}
    try:
        value = float(check(text, columns))
        return (value, "") if math.isfinite(value) else (0.0, f"it returned {value}")
    except (Exception, SystemExit) as error:  # whatever somebody else's code raises
        return 0.0, f"it raised {type(error).__name__}: {error}"


reported = set()  # checks whose first error has been shown


def score(texts: list[str], problems: list[dict], check=None) -> tuple[torch.Tensor, int]:
    """(scores [len(texts)], errors of the check): check(text, problem), or without a check 1 where a text's answer is
    verified and 0 elsewhere. On every rank; each rank scores its share."""
    if check is None:
        return verified(texts, [problem["answer"] for problem in problems]), 0
    mine = range(rank(), len(texts), world())
    results = gather([apply_check(check, texts[i], problems[i]) for i in mine], len(texts))
    failed = [error for _, error in results if error]
    if failed and check not in reported:
        reported.add(check)
        say(f"warning: the check failed, which counts as 0: {failed[0]} (further errors are counted: check_errors)")
    return torch.tensor([value for value, _ in results]), len(failed)


def right(scores: torch.Tensor) -> torch.Tensor:
    """Whether responses with these scores or rewards count as right, bool: above 1/2. This is the only place that says
    so."""
    return scores > 0.5


def grade(rollouts: Rollouts, tokenizer, check=None):
    """Decode and score every response. Adds texts; scores [P, n], see score(); correct [P, n], 1 where the score is
    above 1/2, else 0; and boxed [P, n], 1 where there is a box at all."""
    rollouts.texts, rollouts.check, before = decode(rollouts.responses, tokenizer), check, grading.timeouts
    rollouts.usual_end = getattr(tokenizer, "eos_token_id", None)
    problems = [problem for problem in rollouts.problems for _ in range(rollouts.n)]
    scores, rollouts.check_errors = score(rollouts.texts, problems, check)
    rollouts.scores = scores.view(-1, rollouts.n)
    rollouts.correct = right(rollouts.scores).float()
    rollouts.timeouts = int(all_reduce(torch.tensor(grading.timeouts - before)))
    boxed = [last_boxed(text) is not None for text in rollouts.texts]
    rollouts.boxed = torch.tensor(boxed).float().view(-1, rollouts.n)


def examine(sampler, tokenizer, problems: list[dict], n: int, seed: int, cfg, first: int = 0, check=None) -> Rollouts:
    """Graded rollouts of an evaluation. Its random streams are not those of training with the same seed."""
    how = dict(max_new_tokens=cfg.max_new_tokens, temperature=cfg.temperature, top_p=getattr(cfg, "top_p", 1.0))
    rollouts = generate(sampler, problems, n, seed + 2**40, first=first, **how)
    grade(rollouts, tokenizer, check)
    return rollouts


# ------------------------------------------------------------------------------------------------ rewards
def by_text(rule, rollouts: Rollouts) -> torch.Tensor:
    """A rule about a response's text alone: 1 where it holds, else 0, [P, n]."""
    return torch.tensor([float(bool(rule(text))) for text in rollouts.texts]).view(-1, rollouts.n)


def repeats(text: str, least: int = 10, most: int = 256, times: int = 10) -> bool:
    """Whether the text has a piece of `least` to `most` characters `times` or more times in a row."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    for size in range(least, min(most, len(codes) // times) + 1):
        breaks = np.flatnonzero(codes[:-size] != codes[size:])  # between them, the text repeats itself every `size`
        if np.diff(np.concatenate([[-1], breaks, [len(codes) - size]])).max() > size * (times - 1):
            return True
    return False


def vote(texts: list[str]) -> str:
    """The most frequent final answer of some responses, as the first of them wrote it; of equally frequent answers the
    one that came first; "" if no response has an answer."""
    answers = [answer for text in texts if (answer := extract(text)) and answer.strip()]
    if not answers:
        return ""
    winner, _ = Counter(map(normalise, answers)).most_common(1)[0]  # of equals the first to appear
    return next(answer for answer in answers if normalise(answer) == winner)


def matches(rollouts: Rollouts, labels: list[str]) -> torch.Tensor:
    """1 where a response's answer is the label of its prompt, else 0, [P, n]."""
    rollouts.labels = labels
    boxes = [f"\\boxed{{{label}}}" for label in labels]
    rollouts.label_accuracy = right(score(boxes, rollouts.problems, rollouts.check)[0]).float().mean().item()
    return verified(rollouts.texts, [label for label in labels for _ in range(rollouts.n)]).view(-1, rollouts.n)


def majority(rollouts: Rollouts, value) -> torch.Tensor:
    """Test-time RL (arXiv 2504.16084): the label is what most of the prompt's own responses say."""
    n = rollouts.n
    return matches(rollouts, [vote(rollouts.texts[i : i + n]) for i in range(0, len(rollouts.texts), n)])


def fixed(rollouts: Rollouts, value) -> torch.Tensor:
    """The label is the problem's own, see labelled(); for `incorrect` every label is a wrong one."""
    return matches(rollouts, [p["label"] for p in rollouts.problems])


def chance(rollouts: Rollouts, value: str) -> torch.Tensor:
    """Bernoulli(value) per response, from its random stream, far behind the uniforms that its tokens take."""
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
    """(negated, name, value) of each term of e.g. "format & !python" or "random:0.5". Raises ValueError."""
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
    """Rewards [P, n]: the product of all terms; `!` before a term makes it 1 minus its value."""
    product = torch.ones(len(rollouts.problems), rollouts.n)
    for negated, name, value in reward_terms(expression):
        term = REWARDS[name](rollouts, value)
        product = product * (1 - term if negated else term)
    return product


def vote_labels(file: Path, pool: list[dict], sampler, tokenizer, cfg) -> list[str]:
    """The label of each problem, by the vote of cfg.votes responses of the sampler's model. The labels are kept in
    `file`, line by line, so that no problem is voted on twice."""
    lines = file.read_text().splitlines(True) if file.exists() else []
    labels = [json.loads(line)["label"] for line in lines if line.endswith("\n")]
    size = max(1, 4096 // cfg.votes)
    for i in watched(range(len(labels), len(pool), size), "voting"):
        how = dict(seed=cfg.seed + 2**41, max_new_tokens=cfg.max_new_tokens, temperature=cfg.temperature, first=i)
        texts = decode(generate(sampler, pool[i : i + size], cfg.votes, **how).responses, tokenizer)
        labels += [vote(texts[j : j + cfg.votes]) for j in range(0, len(texts), cfg.votes)]
        if rank() == 0:
            rows = [dict(problem=p["problem"], answer=p.get("answer"), label=x) for p, x in zip(pool, labels)]
            partial = file.with_suffix(".tmp")
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
            partial.rename(file)
    return labels[: len(pool)]


def labelled(problems: list[dict], cfg, file: Path, resumed: bool, sampler, tokenizer, check=None) -> list[dict]:
    """The problems that a run will need, with a `label` by the vote of the sampler's model. Left out are problems that
    got no label, and for the reward `incorrect` those whose label is right. A resumed run has only the labels in the
    file: its policy is no longer the initial model, whose vote counts. Raises ValueError if no problem is left."""
    count = min(len(problems), cfg.steps * cfg.prompts_per_step)
    if resumed:
        count = len(file.read_text().splitlines()) if file.exists() else 0
    order = epoch_order(problems, cfg.seed, 0)
    pool = list(itertools.islice((problem for i in order if (problem := problems[int(i)])), count))
    pool = [p | dict(label=x) for p, x in zip(pool, vote_labels(file, pool, sampler, tokenizer, cfg))]
    kept = [p for p in pool if p["label"]]
    if "incorrect" in reward_names(cfg.reward):
        scores, _ = score([f"\\boxed{{{p['label']}}}" for p in kept], kept, check)
        kept = [p for p, x in zip(kept, right(scores)) if not x]
    say(f"labels: {len(pool)} problems voted on, {len(kept)} kept ({file})")
    if not kept:
        raise ValueError(f"--reward {cfg.reward}: no labelled problem is left of {len(pool)}; give more data or votes")
    return kept
