"""Rollouts: the batch of prompts and responses, the same on every process; how it is sampled, graded, and split into
the batches of the updates."""

import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch

import core.verify as grading
from core.processes import all_reduce, gather, rank, say, world
from core.sampler import streams
from core.verify import extract, last_boxed, verify_all


# ------------------------------------------------------------------------------------------------ containers
@dataclass
class Batch:
    """B responses with their prompts (token ids). `values` are per-token tensors [N], N = all response tokens, laid end
    to end in the order of `responses` (for example old, adv, weight). `units` are lists of rows which micro-batches
    never part, such as the two responses of a preference pair; by default each row is a unit of its own."""

    prompts: list[np.ndarray]
    responses: list[np.ndarray]
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    units: list[list[int]] | None = None
    index: torch.Tensor | None = None  # of a part: the places of its tokens in the whole

    def __post_init__(self):
        self.ends = np.cumsum([len(r) for r in self.responses], dtype=np.int64)
        self.starts = np.concatenate([[0], self.ends[:-1]]).astype(np.int64)
        self.units = self.units or [[row] for row in range(len(self.responses))]

    def token_index(self, rows) -> torch.Tensor:
        """Positions in `values` of the response tokens of `rows`, in the order of `rows`."""
        spans = [np.arange(self.starts[i], self.ends[i]) for i in rows]
        return torch.from_numpy(np.concatenate(spans or [np.zeros(0, dtype=np.int64)]))

    def select(self, rows, units=None) -> "Batch":
        """The batch of these rows alone, per-token values included."""
        index = self.token_index(rows)
        values = {name: value[index] for name, value in self.values.items()}
        return Batch([self.prompts[i] for i in rows], [self.responses[i] for i in rows], values, units, index)

    def tokens(self, rows, shared: bool) -> int:
        """Number of tokens of these rows; a prompt of several of them counts once (shared), or for each of them."""
        prompts = {id(self.prompts[row]) if shared else row: self.prompts[row] for row in rows}
        return sum(map(len, prompts.values())) + sum(len(self.responses[row]) for row in rows)


class Tokens(SimpleNamespace):
    """Per-token values [N] as attributes. `old` and `entropy` may be missing: whoever asks for them first makes
    compute() set them, for all tokens."""

    __slots__ = ("compute",)

    def __init__(self, **values):
        super().__init__(**values)
        self.compute = None

    def __getattr__(self, name):
        if name in ("old", "entropy") and self.compute:
            self.compute()
            return vars(self)[name]
        raise AttributeError(f"tokens has no {name!r}; it has {', '.join(sorted(vars(self)))}")


class Rollouts:
    """A global batch, the same on every rank: P problems, n responses each.

      problems   P dicts: the columns of the data set's row; over them problem, answer, text (the prompt), prompt (its
                 ids), after and turns, see data.encode(); and row, the columns alone, as a check gets them
      responses  P x n tuples (ids, sampler's logprobs, entropies, finished); row i * n + j is response j of problem i
      lengths    tokens of each response, [P, n]
      on_policy  [P, n] bool: sampled by the current policy at the training temperature. The others (a teacher's, or
                 replayed ones) touch neither `mismatch` nor the truncated importance weight
      tokens     per-token values [N], responses end to end: `sampler`, the logprobs it gave; after old_logprobs() also
                 `old`, `entropy` and, if a reference is kept, `ref`; and whatever an algorithm adds: tokens.NAME = ...
                 here is tokens.NAME in token_loss
      keys       the random stream of each response, [P x n]

    grade() adds texts (P x n strings), scores, correct and boxed, each [P, n]."""

    def __init__(self, problems: list[dict], responses: list[tuple], keys=None, on_policy=None):
        if not problems or len(responses) % len(problems):
            raise ValueError(f"{len(responses)} responses to {len(problems)} problems: give the same number to each")
        self.problems, self.responses, self.n = problems, list(responses), len(responses) // len(problems)
        self.keys = np.zeros(len(responses), dtype=np.uint64) if keys is None else keys
        self.on_policy = torch.ones(len(problems), self.n, dtype=torch.bool) if on_policy is None else on_policy
        self.labels = None
        ids, logprobs, entropies, self.finished = zip(*responses)
        self.lengths = torch.tensor([len(x) for x in ids]).view(-1, self.n)
        join = lambda parts: torch.from_numpy(np.concatenate(parts).astype(np.float32, copy=False))
        self.tokens = Tokens(sampler=join(logprobs), entropy=join(entropies))
        prompts = [p["prompt"] for p in problems for _ in range(self.n)]
        self.batch = Batch(prompts, list(ids), vars(self.tokens))

    def __add__(self, other: "Rollouts") -> "Rollouts":
        """The rollouts of both, which have the same number of responses per problem; not graded yet."""
        on_policy = torch.cat([self.on_policy, other.on_policy])
        keys = np.concatenate([self.keys, other.keys])
        return Rollouts(self.problems + other.problems, self.responses + other.responses, keys, on_policy)

    def per_token(self, x: torch.Tensor) -> torch.Tensor:
        """Values of responses [P, n], each repeated over the tokens of its response, [N]."""
        return x.flatten().repeat_interleave(self.lengths.flatten())

    def stats(self) -> dict:
        """Means over all sampled responses, whatever is kept of them."""
        mean = lambda x: float(np.mean(np.array(x, dtype=float)))
        right, metrics = self.correct, {}
        if self.labels:
            boxes = [f"\\boxed{{{label}}}" for label in self.labels]
            metrics["label_accuracy"] = mean(score(boxes, self.problems, self.check)[0] > 0.5)
        if self.check:
            metrics["check_errors"] = self.check_errors
        return metrics | dict(
            accuracy=mean(right), all_correct=mean(right.all(1)), all_wrong=mean(~right.any(1)), boxed=mean(self.boxed),
            length=mean(self.lengths), truncated=1 - mean(self.finished), entropy=self.tokens.entropy.nanmean().item(),
            verify_timeouts=self.timeouts)  # fmt: skip

    def show(self, row: int, tokenizer) -> dict:
        """One rollout in words."""
        problem, text = self.problems[row // self.n], tokenizer.decode(self.batch.responses[row])
        return dict(prompt=problem["text"], response=text, answer=problem.get("answer"),
                    correct=bool(self.correct.flatten()[row]), finished=self.finished[row])  # fmt: skip

    def rows(self, seed: int = 0, first: int = 0) -> list[dict]:
        """All graded rollouts as an evaluation saves them, one row per response; the first problem is number `first`.
        An end token is saved where it is another one than the tokenizer's: a perplexity needs it."""
        rows = []
        for row, text in enumerate(self.texts):
            i, j = divmod(row, self.n)
            last, finished = int(self.responses[row][0][-1]), self.finished[row]
            rows.append(about_problem(self.problems[i], first + i, self.check) | dict(
                seed=seed, sample=j, response=text, extracted=extract(text), correct=bool(self.correct[i, j]),
                tokens=int(self.lengths[i, j]), finish="stop" if finished else "length",
                **dict(end=last) if finished and last != self.usual_end else {}))
        return rows


# The columns of a saved response that are ours. A column of the data that is called like one of them is in `row`.
OURS = "problem_id problem gold after turns response extracted correct tokens finish end seed sample row".split()


def about_problem(problem: dict, number: int, check=None) -> dict:
    """What a saved response says of its problem, number `number` of the benchmark. With a check of the user's own the
    columns of the data are saved too, because grading again may need them."""
    words = dict(problem_id=number, problem=problem["problem"], gold=problem.get("answer"))
    words |= dict(after=problem.get("after", "")) | (dict(turns=problem["turns"]) if problem.get("turns") else {})
    if not check:
        return words
    columns = problem.get("row", {})
    words["row"] = {name: x for name, x in columns.items() if name in OURS}
    return {name: x for name, x in columns.items() if name not in OURS} | words


def problem_of(saved: dict) -> dict:
    """The problem of a saved response, ours or of others, as a check needs it: the inverse of about_problem()."""
    if "finish" not in saved:  # not ours: all columns are the user's
        return dict(row=saved, problem=saved["problem"], answer=saved.get("answer"))
    columns = {name: x for name, x in saved.items() if name not in OURS} | saved.get("row", {})
    return dict(row=columns, problem=saved["problem"], answer=saved["gold"], after=saved["after"],
                turns=saved.get("turns", ()))


# ------------------------------------------------------------------------------------------------ sampling
def generate(sampler, problems: list[dict], n: int, seed: int, max_new_tokens: int, temperature: float, first: int = 0,
             top_p: float = 1.0) -> Rollouts:  # fmt: skip
    """n responses to each problem, on every rank; each rank samples its share. Random streams are keyed by `seed` and
    by the number of the problem in the run: that of problems[0] is `first`."""
    mine = range(rank(), len(problems), world())
    prompts, numbers = [problems[i]["prompt"] for i in mine], [first + i for i in mine]
    own = sampler.sample(prompts, n, numbers, seed, max_new_tokens, temperature, quiet=rank() > 0, top_p=top_p)
    groups = gather([own[i : i + n] for i in range(0, len(own), n)], len(problems))
    keys = streams(seed, range(first, first + len(problems)), n)
    return Rollouts(problems, [response for group in groups for response in group], keys)


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


def grade(rollouts: Rollouts, tokenizer, check=None):
    """Decode and score every response. Adds texts; scores [P, n], see score(); correct [P, n], 1 where the score is
    above 1/2, else 0; and boxed [P, n], 1 where there is a box at all."""
    rollouts.texts, rollouts.check, before = decode(rollouts.responses, tokenizer), check, grading.timeouts
    rollouts.usual_end = getattr(tokenizer, "eos_token_id", None)
    problems = [problem for problem in rollouts.problems for _ in range(rollouts.n)]
    scores, rollouts.check_errors = score(rollouts.texts, problems, check)
    rollouts.scores = scores.view(-1, rollouts.n)
    rollouts.correct = (rollouts.scores > 0.5).float()
    rollouts.timeouts = int(all_reduce(torch.tensor(grading.timeouts - before)))
    boxed = [last_boxed(text) is not None for text in rollouts.texts]
    rollouts.boxed = torch.tensor(boxed).float().view(-1, rollouts.n)


def examine(sampler, tokenizer, problems: list[dict], n: int, seed: int, cfg, first: int = 0, check=None) -> Rollouts:
    """Graded rollouts of an evaluation. Its random streams are not those of training with the same seed."""
    how = dict(max_new_tokens=cfg.max_new_tokens, temperature=cfg.temperature, top_p=getattr(cfg, "top_p", 1.0))
    rollouts = generate(sampler, problems, n, seed + 2**40, first=first, **how)
    grade(rollouts, tokenizer, check)
    return rollouts


# ------------------------------------------------------------------------------------------------ updates
class OldValues:
    """tokens.old and tokens.entropy, logprobs and entropies of the policy that sampled, and tokens.on_policy.

    An exact sampler has given them for what is on-policy. All others take a pass of the policy, which is put off until
    somebody asks; if nobody does before the updates, it leaves out what the first update, in which the policy is still
    the old one, will see anyway."""

    def __init__(self, rollouts: Rollouts, policy, exact: bool):
        self.rollouts, self.policy, self.exact, self.first_gap = rollouts, policy, exact, torch.zeros(0)
        tokens = rollouts.tokens
        vars(tokens).pop("old", None)  # of an earlier step
        tokens.on_policy = rollouts.per_token(rollouts.on_policy)
        known = tokens.on_policy & exact
        self.old, self.entropy = (torch.where(known, x, math.nan) for x in (tokens.sampler, tokens.entropy))
        if known.all():
            tokens.old = self.old
        else:
            del tokens.entropy
            tokens.compute = self.compute

    def compute(self, leave_out=()):
        """Set both, by a pass over the rows that need one, except those to leave out, whose values stay NaN."""
        batch, old = self.rollouts.batch, self.old
        rows = np.flatnonzero(old[torch.from_numpy(batch.starts)].isnan().numpy())
        rows = np.setdiff1d(rows, leave_out)
        if len(rows):
            part = batch.select(rows)
            old[part.index], self.entropy[part.index] = self.policy.logprobs(part)
        self.rollouts.tokens.old, self.rollouts.tokens.entropy = old, self.entropy

    def learn(self, batch: Batch, logprobs, entropies):
        """Fill the gaps with what the first update has seen of this batch."""
        tokens, index = self.rollouts.tokens, batch.index
        tokens.old[index] = torch.where(tokens.old[index].isnan(), logprobs, tokens.old[index])
        tokens.entropy[index] = torch.where(tokens.entropy[index].isnan(), entropies, tokens.entropy[index])
        self.first_gap = (logprobs - tokens.sampler[index]).abs()[tokens.on_policy[index]]

    def gap(self) -> torch.Tensor:
        """|trainer's - sampler's logprob| of the on-policy tokens: of all of them, or if the sampler is exact of those
        in the first update."""
        tokens = self.rollouts.tokens
        if self.exact:
            return self.first_gap
        return (tokens.old - tokens.sampler).abs()[tokens.on_policy & ~tokens.old.isnan()]


def token_weights(lengths, norm: str, max_new_tokens: int) -> torch.Tensor:
    """Per-token weights [sum of lengths] that normalise the loss of an update over its kept responses: `token` 1 / all
    tokens, `sequence` 1 / (responses x own length), `constant` 1 / (responses x max_new_tokens)."""
    lengths = torch.as_tensor(lengths)
    divisor = lengths.sum()
    if norm == "sequence":
        divisor = len(lengths) * lengths
    elif norm == "constant":
        divisor = torch.tensor(len(lengths) * max_new_tokens)
    return (1 / divisor.float()).expand(len(lengths)).repeat_interleave(lengths)


def split(rollouts: Rollouts, adv: torch.Tensor, keep: torch.Tensor, cfg, together=False, order=None) -> list[tuple]:
    """The kept responses, keep [P, n], as (rows, units) of one Batch per update, see Batch.select, each with
    an equal share of the kept prompts, taken in this order of the prompts (default: as sampled). adv: advantages of
    responses [P, n], or of tokens [N]. together: micro-batches don't part the kept responses of a prompt.

    Adds the per-token `adv`, and the `weight` that normalises the loss over the kept responses of the update. A kept
    response that can't move the gradient counts in the normalisation but is not forwarded, so a batch can be empty.
    With --loss_norm all_tokens every response is kept, the rejected ones with advantage 0, as in the code released with
    arXiv 2504.11343. Raises ValueError for values of another shape."""
    batch, tokens, size = rollouts.batch, rollouts.tokens, rollouts.lengths.shape
    shape = lambda x: list(x.shape) if torch.is_tensor(x) else type(x).__name__
    if shape(adv) not in (list(size), shape(tokens.sampler)):
        raise ValueError(f"adv is {shape(adv)}; it needs {list(size)}, one value per response, or "
                         f"{shape(tokens.sampler)}, one per token")  # fmt: skip
    if shape(keep) != list(size) or keep.dtype != torch.bool:
        raise ValueError(f"keep is {shape(keep)}, {getattr(keep, 'dtype', '')}; it needs {list(size)}, torch.bool")
    tokens.adv = (rollouts.per_token(adv) if adv.dim() > 1 else adv).float()
    if cfg.loss_norm == "all_tokens":
        tokens.adv = tokens.adv * rollouts.per_token(keep)
        keep = torch.ones_like(keep)
    tokens.weight, keep = torch.zeros_like(tokens.adv), keep.numpy()
    for name, value in vars(tokens).items():
        if shape(value) != shape(tokens.sampler):
            raise ValueError(f"tokens.{name} is {shape(value)}; it needs {shape(tokens.sampler)}, one value per "
                             "response token: see rollouts.per_token")  # fmt: skip
        if name in ("response", "position"):
            raise ValueError(f"tokens.{name}: the name is taken, see common.Run.update; choose another")
    moves = np.logical_or.reduceat(tokens.adv.numpy() != 0, batch.starts).reshape(keep.shape)
    moves = keep & (moves | bool(cfg.kl_coef or cfg.entropy_coef))
    if together:
        moves = keep & moves.any(1, keepdims=True)
    rows, parts = np.arange(keep.size).reshape(keep.shape), []
    prompts = [i for i in (range(len(keep)) if order is None else order) if keep[i].any()]
    for share in np.array_split(np.array(prompts, dtype=np.int64), cfg.updates_per_step):
        kept = rows[share][keep[share]]
        if len(kept):
            weights = token_weights(rollouts.lengths.flatten()[kept], cfg.loss_norm, cfg.max_new_tokens)
            tokens.weight[batch.token_index(kept)] = weights
        counts, units = moves[share].sum(1), None
        if together:
            units = [unit.tolist() for unit in np.split(np.arange(counts.sum()), np.cumsum(counts)[:-1]) if len(unit)]
        parts.append((rows[share][moves[share]], units))
    return parts
