"""Rollouts: prompts and responses, the same on every process. generate() samples it."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch

from core.processes import fail, gather, rank, world
from core.streams import streams


@dataclass
class Batch:
    """B responses with their prompts, as token ids.

    values: tensors such as old, adv, weight: [N], all response tokens end to end.
    units: the rows of one list share a micro-batch, such as the two responses of a pair. Default: each row alone.
    index [N]: where its tokens are in the larger batch, if it is part of one."""

    prompts: list[np.ndarray]
    responses: list[np.ndarray]
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    units: list[list[int]] | None = None
    index: torch.Tensor | None = None

    def __post_init__(self):
        self.ends = np.cumsum([len(r) for r in self.responses], dtype=np.int64)
        self.starts = np.concatenate([[0], self.ends[:-1]]).astype(np.int64)
        self.units = self.units or [[row] for row in range(len(self.responses))]

    def token_index(self, rows) -> torch.Tensor:
        """Where the tokens of these rows are in `values`, row by row."""
        spans = [np.arange(self.starts[i], self.ends[i]) for i in rows]
        return torch.from_numpy(np.concatenate(spans or [np.zeros(0, dtype=np.int64)]))

    def select(self, rows, units=None) -> "Batch":
        """These rows as a batch of their own, with their per-token values."""
        index = self.token_index(rows)
        values = {name: value[index] for name, value in self.values.items()}
        return Batch([self.prompts[i] for i in rows], [self.responses[i] for i in rows], values, units, index)

    def tokens(self, rows, shared: bool) -> int:
        """Number of tokens of these rows. shared: count each prompt once, not per row."""
        prompts = {id(self.prompts[row]) if shared else row: self.prompts[row] for row in rows}
        return sum(map(len, prompts.values())) + sum(len(self.responses[row]) for row in rows)


class Tokens(SimpleNamespace):
    """Per-token values as attributes. If you read one too early, the run ends and says what to do."""

    def __getattr__(self, name):
        if name in ("old", "entropy", "ref"):
            also = ", with --reference true," if name == "ref" else ""
            fail(f"tokens.{name} is not computed yet; call run.old_logprobs(rollouts){also} before you read it")
        raise AttributeError(f"tokens has no {name!r}; it has {', '.join(sorted(vars(self)))}")


class Logprobs:
    """values [2, N]: logprob and entropy of each token under one model. known [B] bool: the responses stored."""

    def __init__(self, batch: Batch):
        self.batch = batch
        self.values = torch.zeros(2, int(batch.ends[-1]))
        self.known = np.zeros(len(batch.responses), dtype=bool)

    def fill(self, model, rows):
        """Compute the rows that are not known yet, in one forward pass. All ranks call this together."""
        rows = np.unique(np.array(rows, dtype=np.int64))
        rows = rows[~self.known[rows]]
        if len(rows):
            self.learn(rows, torch.stack(model.logprobs(self.batch.select(rows))))

    def learn(self, rows, values: torch.Tensor):
        """Store values [2, tokens of these rows]."""
        self.values[:, self.batch.token_index(rows)] = values
        self.known[rows] = True


class Rollouts:
    """A global batch, the same on every rank: P problems, n responses each.

      problems   P dicts, each a row of the data with problem, answer, text (the whole prompt) and prompt (its token
                 ids). See data.Problems.
      responses  P x n tuples (ids, logprobs, entropies, finished) by the sampler. Row i * n + j is response j of
                 problem i.
      lengths    [P, n] tokens of each response
      on_policy  [P, n] bool: sampled by the current policy at the training temperature. Others (a teacher's, or
                 replayed ones) are left out of `mismatch`, and their importance weight is 1.
      tokens     per-token values [N], all responses end to end. tokens.sampler: the sampler's logprobs.
                 run.old_logprobs() adds old, entropy and ref. An algorithm may set rollouts.tokens.NAME; token_loss
                 sees it as tokens.NAME.
      keys       [P x n] the random stream of each response

    run.reward() adds texts (P x n strings), scores, correct and boxed, each [P, n]."""

    def __init__(self, problems: list[dict], responses: list[tuple], keys=None, on_policy=None):
        if not problems or len(responses) % len(problems):
            raise ValueError(f"{len(responses)} responses to {len(problems)} problems: give the same number to each")
        self.problems, self.responses, self.n = problems, list(responses), len(responses) // len(problems)
        self.keys = np.zeros(len(responses), dtype=np.uint64) if keys is None else keys
        self.on_policy = torch.ones(len(problems), self.n, dtype=torch.bool) if on_policy is None else on_policy
        ids, logprobs, entropies, self.finished = zip(*responses)
        self.lengths = torch.tensor([len(x) for x in ids]).view(-1, self.n)
        join = lambda parts: torch.from_numpy(np.concatenate(parts).astype(np.float32, copy=False))
        self.entropies = join(entropies)  # the sampler's
        self.tokens = Tokens(sampler=join(logprobs))
        prompts = [p["prompt"] for p in problems for _ in range(self.n)]
        self.batch = Batch(prompts, list(ids), vars(self.tokens))  # so tokens.NAME = x also adds to batch.values
        self.labels, self.keep, self.step = None, None, None  # step: when prepare() last ran

    def __add__(self, other: "Rollouts") -> "Rollouts":
        """Both in one, not graded yet. They need the same number of responses per problem."""
        on_policy = torch.cat([self.on_policy, other.on_policy])
        keys = np.concatenate([self.keys, other.keys])
        return Rollouts(self.problems + other.problems, self.responses + other.responses, keys, on_policy)

    def per_token(self, x: torch.Tensor) -> torch.Tensor:
        """x [P, n], one value per response -> [N]: repeated for each token of the response."""
        return x.flatten().repeat_interleave(self.lengths.flatten())

    def prepare(self, step: int, exact: bool, recorded: list[int]):
        """Call this before the updates of a step. Adds `old` and `ref`, the Logprobs of policy and reference, to be
        filled. Adds `measured`, the rows for the means entropy, kl and mismatch.

        exact: the sampler's logprobs equal the trainer's. So `old` of on-policy responses is known without a pass.
        If it is known for all responses, all are measured. If not, each measured row costs a forward pass: measure a
        random one in sixteen, and the rows for samples.jsonl. These rows are chosen by place, not by content, so the
        means stay unbiased."""
        self.step, self.old, self.ref = step, Logprobs(self.batch), Logprobs(self.batch)
        for name in ("old", "entropy", "ref"):
            vars(self.tokens).pop(name, None)  # of an earlier step
        self.tokens.on_policy = self.per_token(self.on_policy)
        if exact:
            self.old.known = self.on_policy.flatten().numpy().copy()
            self.old.values = torch.stack([self.tokens.sampler, self.entropies])
        every = np.random.default_rng(step).permutation(len(self.responses))
        self.measured = np.sort(every) if self.old.known.all() else np.union1d(every[: len(every) // 16], recorded)

    def select(self, rows, units=None, ref=True) -> Batch:
        """These rows as a batch. It has old and entropy if they are known for all these rows. The same for `ref`."""
        batch = self.batch.select(rows, units)
        for names, logprobs in ((("old", "entropy"), self.old), *([(("ref",), self.ref)] if ref else [])):
            if logprobs.known[rows].all():
                batch.values |= dict(zip(names, logprobs.values[:, batch.index]))
        return batch

    def stats(self) -> dict:
        """Means over all graded responses, kept or rejected."""
        mean = lambda x: float(np.mean(np.array(x, dtype=float)))
        metrics = {} if self.labels is None else dict(label_accuracy=self.label_accuracy)
        if self.check:
            metrics["check_errors"] = self.check_errors
        return metrics | dict(
            accuracy=mean(self.correct), all_correct=mean(self.correct.all(1)), all_wrong=mean(~self.correct.any(1)),
            boxed=mean(self.boxed), length=mean(self.lengths), truncated=1 - mean(self.finished),
            verify_timeouts=self.timeouts)

    def show(self, row: int, tokenizer) -> dict:
        """One graded response as text."""
        problem, text = self.problems[row // self.n], tokenizer.decode(self.batch.responses[row])
        return dict(prompt=problem["text"], response=text, answer=problem.get("answer"),
                    correct=bool(self.correct.flatten()[row]), finished=self.finished[row])


def generate(sampler, problems: list[dict], n: int, seed: int, max_new_tokens: int, temperature: float, first: int = 0,
             top_p: float = 1.0) -> Rollouts:
    """n responses to each problem, on every rank. Each rank samples its share.

    The seed and the problem's number in the run determine the random streams. problems[0] has number `first`."""
    mine = range(rank(), len(problems), world())
    prompts, numbers = [problems[i]["prompt"] for i in mine], [first + i for i in mine]
    own = sampler.sample(prompts, n, numbers, seed, max_new_tokens, temperature, quiet=rank() > 0, top_p=top_p)
    groups = gather([own[i : i + n] for i in range(0, len(own), n)], len(problems))
    keys = streams(seed, range(first, first + len(problems)), n)
    return Rollouts(problems, [response for group in groups for response in group], keys)
