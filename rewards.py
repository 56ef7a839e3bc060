"""What is rewarded: small functions from rollouts to rewards [P, n], in one table, combined by & and !.

True correctness is one of them; the others are the spurious and the label-free rewards of the papers. Whatever is
rewarded, the metric `accuracy` is the truth.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import draw
from processes import rank, say
from rollout import Rollouts, decode, generate, verified
from sampler import uniforms
from verify import extract, last_boxed, normalise


def each(rule, rollouts: Rollouts) -> torch.Tensor:
    """A rule of a response's text alone: 1 where it holds, else 0, [P, n]."""
    return torch.tensor([float(bool(rule(text))) for text in rollouts.texts]).view(-1, rollouts.n)


def repeats(text: str, least: int = 10, most: int = 256, times: int = 10) -> bool:
    """Whether a piece of `least` to `most` characters stands in the text `times` times or more back to back."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    for size in range(least, min(most, len(codes) // times) + 1):
        breaks = np.flatnonzero(codes[:-size] != codes[size:])  # between them, the text equals itself `size` further on
        if np.diff(np.concatenate([[-1], breaks, [len(codes) - size]])).max() > size * (times - 1):
            return True
    return False


def vote(texts: list[str]) -> str:
    """The most frequent final answer of some responses, as its first response wrote it; of equally frequent answers the
    one that came first; "" if no response has an answer."""
    answers = [answer for text in texts if (answer := extract(text)) and answer.strip()]
    winner = Counter(map(normalise, answers)).most_common(1)  # of equals the first to appear
    return next((answer for answer in answers if normalise(answer) == winner[0][0]), "")


def matches(rollouts: Rollouts, labels: list[str]) -> torch.Tensor:
    """1 where a response's answer is the label of its prompt, else 0, [P, n]."""
    rollouts.labels = labels
    return verified(rollouts.texts, [label for label in labels for _ in range(rollouts.n)]).view(-1, rollouts.n)


def majority(rollouts: Rollouts, value) -> torch.Tensor:
    """Test-time RL (arXiv 2504.16084): the label is what most of the prompt's own responses say."""
    n = rollouts.n
    return matches(rollouts, [vote(rollouts.texts[i : i + n]) for i in range(0, len(rollouts.texts), n)])


def fixed(rollouts: Rollouts, value) -> torch.Tensor:
    """The label is the problem's own, see labelled(); for `incorrect` all labels are wrong ones."""
    return matches(rollouts, [p["label"] for p in rollouts.problems])


def random(rollouts: Rollouts, value: str) -> torch.Tensor:
    """Bernoulli(value) per response, from its random stream, far behind the uniforms that its tokens take."""
    return torch.from_numpy(uniforms(rollouts.keys, 2**40) < float(value)).float().view(-1, rollouts.n)


# name: function of (rollouts, what follows the colon) -> rewards [P, n], 0 or 1. Rules of arXiv 2506.10947.
REWARDS = {
    "ground_truth": lambda rollouts, value: rollouts.correct.clone(),
    "majority": majority,
    "majority_fixed": fixed,
    "incorrect": fixed,
    "format": lambda rollouts, value: each(lambda text: (last_boxed(text) or "").strip(), rollouts),
    "random": random,
    "python": lambda rollouts, value: each(lambda text: "python" in text.lower(), rollouts),
    "no_repetition": lambda rollouts, value: each(lambda text: not repeats(text), rollouts),
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


def reward(expression: str, rollouts: Rollouts) -> torch.Tensor:
    """Rewards [P, n], 0 or 1: those of all terms at once; `!` before a term turns it round."""
    values = [(negated, REWARDS[name](rollouts, value)) for negated, name, value in reward_terms(expression)]
    return torch.stack([1 - x if negated else x for negated, x in values]).prod(0)


def vote_labels(file: Path, pool: list[dict], sampler, tokenizer, cfg) -> list[str]:
    """The label of each problem by vote over cfg.votes responses of the sampler's model; kept in `file`, line by line,
    so that what has been voted on is not voted on again."""
    lines = file.read_text().splitlines(True) if file.exists() else []
    labels = [json.loads(line)["label"] for line in lines if line.endswith("\n")]
    size = max(1, 4096 // cfg.votes)
    for i in tqdm(range(len(labels), len(pool), size), desc="voting", leave=False, disable=rank() > 0):
        part = pool[i : i + size]
        texts = decode(generate(sampler, part, cfg.votes, i, cfg.seed + 2**41, cfg), tokenizer)
        labels += [vote(texts[j : j + cfg.votes]) for j in range(0, len(texts), cfg.votes)]
        if rank() == 0:
            rows = [dict(problem=p["problem"], answer=p["answer"], label=x) for p, x in zip(pool, labels)]
            partial = file.with_suffix(".tmp")
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
            partial.rename(file)
    return labels[: len(pool)]


def labelled(problems: list[dict], cfg, file: Path, started: bool, sampler, tokenizer) -> list[dict]:
    """The problems that a run will need, labelled by the vote of the sampler's model; without those that have no label,
    and for the reward `incorrect` without those whose label is right. Raises ValueError if none is left. A run that had
    started must do with the labels in the file: its policy is no longer the one to ask."""
    count = min(len(problems), cfg.steps * cfg.prompts_per_step)
    if started:
        count = len(file.read_text().splitlines()) if file.exists() else 0
    pool = draw(problems, 0, count, cfg.seed)
    pool = [p | dict(label=x) for p, x in zip(pool, vote_labels(file, pool, sampler, tokenizer, cfg))]
    kept = [p for p in pool if p["label"]]
    if "incorrect" in reward_names(cfg.reward):
        right = verified([f"\\boxed{{{p['label']}}}" for p in kept], [p["answer"] for p in kept])
        kept = [p for p, x in zip(kept, right) if not x]
    say(f"labels: {len(pool)} problems voted on, {len(kept)} kept ({file})")
    if not kept:
        raise ValueError(f"--reward {cfg.reward}: no labelled problem is left of {len(pool)}; give more data or votes")
    return kept
