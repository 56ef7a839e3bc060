"""Rollouts: the batch of prompts and responses, the same on every process; how it is gathered, graded, evaluated,
normalised and split into the batches of the updates."""

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist

import verify as grading
from data import read_rows
from processes import all_reduce, rank, world
from verify import extract, gold_answer, last_boxed, verify_all


@dataclass
class Batch:
    """B responses with their prompts. `values` are per-token tensors [N], N = all response tokens, laid end to end
    in the order of `responses` (for example adv, old, weight). `together` rows in succession are never parted by
    micro-batches: 2 for preference pairs."""

    prompts: list[np.ndarray]
    responses: list[np.ndarray]
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    together: int = 1

    def __post_init__(self):
        self.ends = np.cumsum([len(r) for r in self.responses], dtype=np.int64)
        self.starts = np.concatenate([[0], self.ends[:-1]]).astype(np.int64)

    def token_index(self, rows) -> torch.Tensor:
        """Positions in `values` of the response tokens of `rows`, in the order of `rows`."""
        return torch.from_numpy(np.concatenate([np.arange(self.starts[i], self.ends[i]) for i in rows]))

    def select(self, rows) -> "Batch":
        """The batch of these rows alone, per-token values included."""
        index = self.token_index(rows) if len(rows) else torch.zeros(0, dtype=torch.long)
        values = {name: value[index] for name, value in self.values.items()}
        return Batch([self.prompts[i] for i in rows], [self.responses[i] for i in rows], values)

    def lengths(self) -> list[int]:
        """Tokens of each row, prompt and response together."""
        return [len(p) + len(r) for p, r in zip(self.prompts, self.responses)]


def token_weights(lengths, norm: str, max_new_tokens: int) -> torch.Tensor:
    """Per-token weights [sum of lengths] that normalise the loss of an update over its kept responses: `token` 1 / all
    tokens, `sequence` 1 / (responses x own length), `constant` 1 / (responses x max_new_tokens)."""
    lengths = torch.as_tensor(lengths)
    each = dict(token=lengths.sum(), sequence=len(lengths) * lengths, constant=len(lengths) * max_new_tokens)[norm]
    return (1 / (each * torch.ones(len(lengths)))).repeat_interleave(lengths)


def gather(own: list, count: int) -> list:
    """The list of `count` items on every rank, from the ranks' shares: items rank, rank + world, ..."""
    parts = [own]
    if world() > 1:
        parts = [None] * world()
        dist.all_gather_object(parts, own)
    out = [None] * count
    for i, part in enumerate(parts):
        out[i :: len(parts)] = part
    return out


class Rollouts:
    """A global batch, the same on every rank: P problems, n responses each; row i * n + j is response j of problem i.

    batch.values has the per-token `sampler` logprobs and `entropy`, after old_logprobs() also `old` and `ref`. keys
    [P * n]: the responses' random streams. grade() adds texts (a list), correct and boxed (float [P, n])."""

    def __init__(self, problems: list[dict], responses: list[tuple], keys: np.ndarray | None = None):
        self.keys, self.labels = keys, None
        self.problems, self.responses, self.n = problems, responses, len(responses) // len(problems)
        ids, logprobs, entropies, self.finished = zip(*responses)
        self.lengths = np.array([len(x) for x in ids])
        values = dict(zip(("sampler", "entropy"), (torch.from_numpy(np.concatenate(x)) for x in (logprobs, entropies))))
        self.batch = Batch([p["prompt"] for p in problems for _ in range(self.n)], list(ids), values)

    def stats(self) -> dict:
        """Means over all sampled responses, whatever is kept of them."""
        mean = lambda x: float(np.mean(np.array(x, dtype=float)))
        right, entropy = self.correct, self.batch.values["entropy"]
        labels = {}
        if self.labels:
            boxes = [f"\\boxed{{{label}}}" for label in self.labels]
            labels["label_accuracy"] = mean(verified(boxes, [p["answer"] for p in self.problems]))
        return labels | dict(accuracy=mean(right), all_correct=mean(right.all(1)), all_wrong=mean(~right.any(1)),
                    boxed=mean(self.boxed), length=mean(self.lengths), truncated=1 - mean(self.finished),
                    entropy=mean(entropy), verify_timeouts=self.timeouts)  # fmt: skip

    def show(self, row: int, tokenizer) -> dict:
        """One rollout in words."""
        problem, text = self.problems[row // self.n], tokenizer.decode(self.batch.responses[row])
        return dict(prompt=problem["text"], response=text, answer=problem["answer"],
                    correct=bool(self.correct.flatten()[row]), finished=self.finished[row])  # fmt: skip

    def rows(self, seed: int = 0, first: int = 0) -> list[dict]:
        """All graded rollouts as an evaluation saves them, one row a response; the first problem is number `first`."""
        rows = []
        for row, text in enumerate(self.texts):
            (i, j), problem = divmod(row, self.n), self.problems[row // self.n]
            finish = "stop" if self.finished[row] else "length"
            rows.append(dict(problem_id=first + i, seed=seed, sample=j, problem=problem["problem"],
                             gold=problem["answer"], after=problem.get("after", ""), response=text,
                             extracted=extract(text), correct=bool(self.correct[i, j]),
                             tokens=int(self.lengths[row]), finish=finish))  # fmt: skip
        return rows


def read_responses(file) -> dict[str, np.ndarray]:
    """Columns [P, N] of a .jsonl file of saved responses: rows as Rollouts.rows() makes them, or such as have problem,
    answer, response or a list of responses and, if they are graded, correct or peer_score; None for what is missing.
    The samples of a problem stand seed by seed. Raises OSError or ValueError, which say what is wrong where."""
    problems, place = {}, 0
    try:
        for place, row in read_rows(str(file)):  # noqa: B007
            texts = row["responses"] if "responses" in row else [row["response"]]
            grades = row.get("peer_score", [row.get("correct")] * len(texts))
            row = dict(seed=0, after="", extracted=None, tokens=None, finish=None) | row
            row["gold"] = gold_answer(row["gold"] if "gold" in row else row["answer"])
            own = problems.setdefault(row.get("problem_id", row["problem"]), [])
            own += [dict(sample=i) | row | dict(response=str(x), correct=grades[i]) for i, x in enumerate(texts)]
    except (KeyError, TypeError, AttributeError, IndexError):
        need = "problem, gold or answer, and response or a list of responses"
        raise ValueError(f"{file}: row {place} needs {need}") from None
    sizes = {name: len(rows) for name, rows in problems.items()}
    if not sizes:
        raise ValueError(f"{file}: no saved response in it")
    usual = Counter(sizes.values()).most_common(1)[0][0]
    if odd := next((f"{name!r} has {size}" for name, size in sizes.items() if size != usual), None):
        raise ValueError(f"{file}: all problems need the same number of responses, but {odd}, others {usual}")
    for i, rows in enumerate(problems.values()):
        rows.sort(key=lambda row: (row["seed"], row["sample"]))
        rows[:] = [row | dict(problem_id=i) for row in rows]
    names = "problem_id problem gold after response extracted correct tokens finish seed sample".split()
    return {name: np.array([[row[name] for row in rows] for rows in problems.values()], dtype=object) for name in names}


def generate(sampler, problems: list[dict], n: int, first: int, seed: int, cfg) -> list[tuple]:
    """n responses to each problem, the first of which is number `first` of the run; each rank samples its share."""
    mine = range(rank(), len(problems), world())
    prompts, numbers = [problems[i]["prompt"] for i in mine], [first + i for i in mine]
    how = dict(quiet=rank() > 0) | ({"top_p": cfg.top_p} if hasattr(cfg, "top_p") else {})  # training has no top_p
    own = sampler.sample(prompts, n, numbers, seed, cfg.max_new_tokens, cfg.temperature, **how)
    groups = gather([own[i : i + n] for i in range(0, len(own), n)], len(problems))
    return [response for group in groups for response in group]


def decode(responses: list[tuple], tokenizer) -> list[str]:
    """The texts of responses, on every rank; each decodes its share."""
    own = [ids for ids, *_ in responses[rank() :: world()]]
    return gather(tokenizer.batch_decode(own, skip_special_tokens=True), len(responses))


def verified(texts: list[str], golds: list[str]) -> torch.Tensor:
    """1 where a response is right, else 0, float [len(texts)], on every rank; each verifies its share."""
    own = verify_all(list(zip(texts, golds))[rank() :: world()])
    return torch.tensor(gather(own, len(texts))).float()


def grade(rollouts: Rollouts, tokenizer):
    """Decode and verify every response: rollouts.texts, rollouts.correct, and whether it has a box at all, boxed."""
    rollouts.texts, before = decode(rollouts.responses, tokenizer), grading.timeouts
    golds = [p["answer"] for p in rollouts.problems for _ in range(rollouts.n)]
    rollouts.correct = verified(rollouts.texts, golds).view(-1, rollouts.n)
    rollouts.timeouts = int(all_reduce(torch.tensor(grading.timeouts - before)))
    boxed = [last_boxed(text) is not None for text in rollouts.texts]
    rollouts.boxed = torch.tensor(boxed).float().view(-1, rollouts.n)


def examine(sampler, tokenizer, problems: list[dict], n: int, first: int, seed: int, cfg) -> Rollouts:
    """Graded rollouts of an evaluation; its random streams are not those of training with the same seed."""
    rollouts = Rollouts(problems, generate(sampler, problems, n, first, seed + 2**40, cfg))
    grade(rollouts, tokenizer)
    return rollouts


def with_interval(values, draws=10_000, seed=0) -> list:
    """[mean, low, high] over problems of values [P], or for [P, K] a list of K of them. The 95 % interval: percentiles
    over draws of P problems with replacement, moved outwards when problems are few, as plain percentiles then cover
    too seldom ("expanded percentile interval", Hesterberg, arXiv 1411.5279; the t quantile expanded in 1 / P)."""
    values, rng, problems = np.asarray(values, dtype=float), np.random.default_rng(seed), len(values)
    counts = [rng.multinomial(problems, np.full(problems, 1 / problems), 1000) @ values for _ in range(0, draws, 1000)]
    wider = math.sqrt(problems / max(1, problems - 1)) * (1 + (1.96**2 + 1) / 4 / max(1, problems - 1))
    tail = math.erfc(1.96 * wider / math.sqrt(2)) / 2
    interval = np.quantile(np.concatenate(counts) / problems, [tail, 1 - tail], axis=0)
    return np.concatenate([values.mean(0)[None], interval]).T.tolist()


def split(rollouts: Rollouts, adv: torch.Tensor, keep: torch.Tensor, cfg):
    """The kept responses (keep: [P, n]) as one Batch an update, each with an equal share of the kept prompts. The
    advantages are those of responses, adv [P, n], or of tokens, adv [N].

    A kept response that can't move the gradient counts in the normalisation but is not forwarded; so a batch can be
    empty. Adds the per-token `adv` and the `weight` that normalises the loss over the kept responses of the update."""
    batch, lengths, keep = rollouts.batch, rollouts.lengths, keep.numpy()
    adv = adv.float() if adv.dim() == 1 else adv.flatten().float().repeat_interleave(torch.from_numpy(lengths))
    moves = np.logical_or.reduceat(adv.numpy() != 0, batch.starts).reshape(keep.shape)
    moves = keep & (moves | bool(cfg.kl_coef or cfg.entropy_coef))
    rows = np.arange(keep.size).reshape(keep.shape)
    batch.values["adv"] = adv
    batch.values["weight"] = torch.zeros_like(batch.values["adv"])
    for share in np.array_split(np.flatnonzero(keep.any(1)), cfg.updates_per_step):
        kept, moving = rows[share][keep[share]], rows[share][moves[share]]
        if len(kept):
            weights = token_weights(lengths[kept], cfg.loss_norm, cfg.max_new_tokens)
            batch.values["weight"][batch.token_index(kept)] = weights
        yield batch.select(moving)
