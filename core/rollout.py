"""Rollouts: a batch of prompts and responses, the same on every process, and how it is sampled."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch

from core.processes import fail, gather, rank, world
from core.streams import streams


@dataclass
class Batch:
    """B responses with their prompts, as token ids.

    values: per-token tensors [N], all response tokens end to end, such as old, adv, weight.
    units: lists of rows that stay in one micro-batch, such as the two responses of a pair. Default: each row alone.
    index [N]: for a part of a larger batch, the places of its tokens there."""

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
        """Places in `values` of the tokens of these rows, in the order of the rows."""
        spans = [np.arange(self.starts[i], self.ends[i]) for i in rows]
        return torch.from_numpy(np.concatenate(spans or [np.zeros(0, dtype=np.int64)]))

    def select(self, rows, units=None) -> "Batch":
        """These rows as a batch of their own, with their per-token values."""
        index = self.token_index(rows)
        values = {name: value[index] for name, value in self.values.items()}
        return Batch([self.prompts[i] for i in rows], [self.responses[i] for i in rows], values, units, index)

    def tokens(self, rows, shared: bool) -> int:
        """Number of tokens of these rows. shared: a prompt that several rows have counts once."""
        prompts = {id(self.prompts[row]) if shared else row: self.prompts[row] for row in rows}
        return sum(map(len, prompts.values())) + sum(len(self.responses[row]) for row in rows)


class Tokens(SimpleNamespace):
    """Per-token values as attributes."""

    def __getattr__(self, name):
        if name in ("old", "entropy", "ref"):
            also = ", with --reference true," if name == "ref" else ""
            fail(f"tokens.{name} is not computed yet; call run.old_logprobs(rollouts){also} before you read it")
        raise AttributeError(f"tokens has no {name!r}; it has {', '.join(sorted(vars(self)))}")


class Logprobs:
    """Logprob and entropy of each token under one model, for those responses of a batch where they are known.

    values [2, N]; known [B] bool. What is not known is 0."""

    def __init__(self, batch: Batch):
        self.batch = batch
        self.values = torch.zeros(2, int(batch.ends[-1]))
        self.known = np.zeros(len(batch.responses), dtype=bool)

    def fill(self, model, rows):
        """Compute what is not known of these rows, in one pass of the model. All ranks call this together."""
        rows = np.unique(np.array(rows, dtype=np.int64))
        rows = rows[~self.known[rows]]
        if len(rows):
            self.learn(rows, torch.stack(model.logprobs(self.batch.select(rows))))

    def learn(self, rows, values: torch.Tensor):
        """Take over values [2, tokens of these rows]."""
        self.values[:, self.batch.token_index(rows)] = values
        self.known[rows] = True


class Rollouts:
    """A global batch, the same on every rank: P problems, n responses each.

      problems   P dicts: a row of the data, with problem, answer, text (the prompt) and prompt (its token ids).
                 See data.Problems.
      responses  P x n tuples (ids, the sampler's logprobs and entropies, finished). Row i * n + j is response j of
                 problem i.
      lengths    [P, n] tokens of each response
      on_policy  [P, n] bool: sampled by the current policy at the training temperature. Others, such as a teacher's
                 or replayed ones, count neither in `mismatch` nor for the truncated importance weight.
      tokens     per-token values [N], all responses end to end. tokens.sampler: the sampler's logprobs.
                 run.old_logprobs() adds old, entropy and ref. An algorithm adds its own: what it sets as
                 rollouts.tokens.NAME is tokens.NAME in token_loss.
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
        self.batch = Batch(prompts, list(ids), vars(self.tokens))
        self.labels, self.keep, self.step = None, None, None  # step: in which prepare() was called

    def __add__(self, other: "Rollouts") -> "Rollouts":
        """Both together, not graded yet. They need the same number of responses per problem."""
        on_policy = torch.cat([self.on_policy, other.on_policy])
        keys = np.concatenate([self.keys, other.keys])
        return Rollouts(self.problems + other.problems, self.responses + other.responses, keys, on_policy)

    def per_token(self, x: torch.Tensor) -> torch.Tensor:
        """Values of responses [P, n], each repeated over the tokens of its response: [N]."""
        return x.flatten().repeat_interleave(self.lengths.flatten())

    def prepare(self, step: int, exact: bool, recorded: list[int]):
        """Before the updates of a step. Adds `old` and `ref`, the Logprobs of the policy as it is now and of the
        reference, and `measured`, the rows over which entropy, kl and mismatch are means.

        exact: the sampler's logprobs are the trainer's, so for on-policy responses they are known. If all are known,
        all are measured. If not, that would be a pass over all: measured are one response in sixteen, by chance, and
        those that samples.jsonl records, which are chosen by their place in the batch."""
        self.step, self.old, self.ref = step, Logprobs(self.batch), Logprobs(self.batch)
        for name in ("old", "entropy", "ref"):
            vars(self.tokens).pop(name, None)  # of an earlier step
        self.tokens.on_policy = self.per_token(self.on_policy)
        if exact:
            self.old.known = self.on_policy.flatten().numpy().copy()
            self.old.values = torch.stack([self.tokens.sampler, self.entropies])
        every = np.random.default_rng(step).permutation(len(self.responses))
        self.measured = np.sort(every) if self.old.known.all() else np.union1d(every[: len(every) // 16], recorded)

    def select(self, rows, units=None) -> Batch:
        """The batch of these rows. Its values have old, entropy and ref, if they are known for all of them."""
        batch = self.batch.select(rows, units)
        for names, logprobs in ((("old", "entropy"), self.old), (("ref",), self.ref)):
            if logprobs.known[rows].all():
                batch.values |= dict(zip(names, logprobs.values[:, batch.index]))
        return batch

    def stats(self) -> dict:
        """Means over all graded responses, whatever is kept of them."""
        mean = lambda x: float(np.mean(np.array(x, dtype=float)))
        metrics = {} if self.labels is None else dict(label_accuracy=self.label_accuracy)
        if self.check:
            metrics["check_errors"] = self.check_errors
        return metrics | dict(
            accuracy=mean(self.correct), all_correct=mean(self.correct.all(1)), all_wrong=mean(~self.correct.any(1)),
            boxed=mean(self.boxed), length=mean(self.lengths), truncated=1 - mean(self.finished),
            verify_timeouts=self.timeouts)

    def show(self, row: int, tokenizer) -> dict:
        """One graded response in words."""
        problem, text = self.problems[row // self.n], tokenizer.decode(self.batch.responses[row])
        return dict(prompt=problem["text"], response=text, answer=problem.get("answer"),
                    correct=bool(self.correct.flatten()[row]), finished=self.finished[row])


def generate(sampler, problems: list[dict], n: int, seed: int, max_new_tokens: int, temperature: float, first: int = 0,
             top_p: float = 1.0) -> Rollouts:
    """n responses to each problem, on every rank. Each rank samples its share.

    A random stream belongs to the seed and to the number of the problem in the run. problems[0] has number `first`."""
    mine = range(rank(), len(problems), world())
    prompts, numbers = [problems[i]["prompt"] for i in mine], [first + i for i in mine]
    own = sampler.sample(prompts, n, numbers, seed, max_new_tokens, temperature, quiet=rank() > 0, top_p=top_p)
    groups = gather([own[i : i + n] for i in range(0, len(own), n)], len(problems))
    keys = streams(seed, range(first, first + len(problems)), n)
    return Rollouts(problems, [response for group in groups for response in group], keys)
