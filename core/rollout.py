"""Rollouts: the batch of prompts and responses, the same on every process; how it is sampled, graded, and split into
the batches of the updates."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import math

import numpy as np
import torch

from core.processes import gather, rank, world
from core.streams import streams


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
            metrics["label_accuracy"] = self.label_accuracy
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
