"""The batch of prompts and responses: what stands beside what, grading, and how it is split into updates, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import toy_rollouts

from core.minibatches import split, token_weights
from core.rewards import grade
from core.rollout import Rollouts, generate


# ------------------------------------------------------------------------------------------------ rollouts
class Echo:
    """A sampler whose responses say which prompt and sample they are; the first one to a prompt has an end token."""

    def sample(self, prompts, n, numbers, seed, max_new_tokens, temperature, quiet=False, top_p=1.0):
        respond = lambda ids: (np.array(ids), np.full(len(ids), -1.0, np.float32), np.full(len(ids), 0.5, np.float32))
        return [(*respond([number, j] + [9] * (j == 0)), j == 0) for number in numbers for j in range(n)]


PROBLEMS = [dict(prompt=np.array([1]), text="a", answer="1"), dict(prompt=np.array([2, 2]), text="b", answer="2")]


def echoes(first=10):
    return generate(Echo(), PROBLEMS, 3, seed=0, max_new_tokens=4, temperature=1.0, first=first)


def test_responses_stand_beside_their_problem():
    rollouts = echoes()
    texts = [tuple(x) for x in rollouts.batch.responses]
    assert texts == [(10, 0, 9), (10, 1), (10, 2), (11, 0, 9), (11, 1), (11, 2)]
    assert [len(x) for x in rollouts.batch.prompts] == [1, 1, 1, 2, 2, 2]
    assert rollouts.n == 3 and rollouts.lengths.tolist() == [[3, 2, 2], [3, 2, 2]]
    assert list(rollouts.finished) == [True, False, False] * 2
    assert rollouts.tokens.sampler.tolist() == [-1.0] * 14 and rollouts.entropies.tolist() == [0.5] * 14
    assert rollouts.on_policy.tolist() == [[True] * 3] * 2


def test_values_of_responses_are_repeated_over_their_tokens():
    x = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert echoes().per_token(x).tolist() == [1, 1, 1, 2, 2, 3, 3, 4, 4, 4, 5, 5, 6, 6]
    assert echoes().per_token(x.flatten()).tolist() == echoes().per_token(x).tolist()


def test_rollouts_can_be_added():
    """As dynamic sampling and replay do. Each keeps its random streams and whether it is on-policy."""
    one, other = echoes(), echoes(first=20)
    other.on_policy[:] = False
    both = one + other
    assert len(both.problems) == 4 and both.lengths.tolist() == [[3, 2, 2]] * 4
    assert both.on_policy[:, 0].tolist() == [True, True, False, False]
    assert both.keys.tolist() == [*one.keys.tolist(), *other.keys.tolist()] and len(set(both.keys.tolist())) == 12
    assert [int(x[0]) for x in both.batch.responses[::3]] == [10, 11, 20, 21]


def test_every_problem_needs_as_many_responses():
    with pytest.raises(ValueError, match="5 responses to 2 problems: give the same number to each"):
        Rollouts(PROBLEMS, echoes().responses[:5])


def test_grade_compares_each_response_with_its_own_problems_answer(tokenizer):
    texts = [[r"\boxed{1}<|end|>", r"\boxed{2}<|end|>"], [r"\boxed{1}", "2<|end|>"]]
    ids = [np.array(tokenizer(text, add_special_tokens=False)["input_ids"]) for group in texts for text in group]
    rollouts = Rollouts(PROBLEMS, [(x, np.zeros(len(x)), np.zeros(len(x)), True) for x in ids])
    grade(rollouts, tokenizer)
    assert rollouts.correct.tolist() == rollouts.scores.tolist() == [[1, 0], [0, 0]]
    assert rollouts.boxed.tolist() == [[1, 1], [1, 0]]
    shown = rollouts.show(2, tokenizer)
    assert (shown["prompt"], shown["response"], shown["answer"], shown["correct"]) == ("b", r"\boxed{1}", "2", False)
    stats = rollouts.stats()
    assert (stats["accuracy"], stats["all_correct"], stats["all_wrong"], stats["boxed"]) == (0.25, 0, 0.5, 0.75)
    assert stats["truncated"] == 0 and stats["length"] == np.mean([len(x) for x in ids])


# ------------------------------------------------------------------------------------------------ normalisation
def test_token_weights_by_hand():
    """Responses of 1 and 3 tokens. token: 4 tokens in all. sequence: half of the weight each. constant: 2 x 10."""
    assert token_weights([1, 3], "token", 10).tolist() == pytest.approx([1 / 4] * 4)
    assert token_weights([1, 3], "sequence", 10).tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    assert token_weights([1, 3], "constant", 10).tolist() == pytest.approx([1 / 20] * 4)


# ------------------------------------------------------------------------------------------------ updates
# Four prompts with two responses each, of 1 to 8 tokens: response number i has i + 1 of them.
LENGTHS = [1, 2, 3, 4, 5, 6, 7, 8]
ADV = torch.tensor([[1.0, -1], [0, 0], [1, 0], [2, -2]])
ALL = torch.ones(4, 2, dtype=torch.bool)


def parts(adv=ADV, keep=ALL, updates=2, kl=0.0, norm="token", rollouts=None, **how):
    cfg = SimpleNamespace(updates_per_step=updates, kl_coef=kl, entropy_coef=0.0, loss_norm=norm, max_new_tokens=10)
    rollouts = rollouts or toy_rollouts(LENGTHS, 2)
    return [rollouts.batch.select(rows, units) for rows, units in split(rollouts, adv, keep, cfg, **how)]


def lengths_of(batches):
    return [[len(x) for x in batch.responses] for batch in batches]


def test_updates_have_equal_shares_of_the_prompts_and_forward_what_can_move_the_gradient():
    """Prompts 0 and 1, then 2 and 3. Advantage 0 alone: the response counts in the normalisation and no more."""
    one, two = parts()
    assert lengths_of([one, two]) == [[1, 2], [5, 7, 8]]
    assert one.values["adv"].tolist() == [1, -1, -1]
    assert one.values["weight"].tolist() == pytest.approx([1 / 10] * 3)  # 1 + 2 + 3 + 4 tokens are kept
    assert two.values["weight"].tolist() == pytest.approx([1 / 26] * 20)  # 5 + 6 + 7 + 8
    assert one.units == [[0], [1]] and two.units == [[0], [1], [2]]


@pytest.mark.parametrize("norm, first, second", [
    ("sequence", [1 / 4, 1 / 8, 1 / 8], [1 / 20] * 5 + [1 / 28] * 7 + [1 / 32] * 8),
    ("constant", [1 / 40] * 3, [1 / 40] * 20),
])
def test_the_weights_of_an_update_come_from_all_that_it_keeps(norm, first, second):
    """Four responses are kept in each, of up to 10 tokens: 1 / (4 x own length), and 1 / (4 x 10)."""
    one, two = parts(norm=norm)
    assert one.values["weight"].tolist() == pytest.approx(first)
    assert two.values["weight"].tolist() == pytest.approx(second)


def test_with_a_kl_term_every_kept_response_is_forwarded():
    assert lengths_of(parts(kl=0.1)) == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_rejected_responses_count_nowhere():
    """Of the shares, too: prompts 0 and 3 are left, one for each update."""
    keep = torch.tensor([[True, False], [False, False], [False, False], [True, True]])
    one, two = parts(keep=keep)
    assert lengths_of([one, two]) == [[1], [7, 8]]
    assert one.values["weight"].tolist() == [1] and two.values["weight"].tolist() == pytest.approx([1 / 15] * 15)


def test_more_updates_than_prompts_leave_some_without_work():
    assert lengths_of(parts(updates=6)) == [[1, 2], [], [5], [7, 8], [], []]


def test_advantages_may_be_of_tokens():
    adv = torch.zeros(36)
    adv[0], adv[35] = 3, 4  # the first token of the first response, the last one of the last
    one, two = parts(adv=adv)
    assert lengths_of([one, two]) == [[1], [8]]
    assert one.values["adv"].tolist() == [3] and two.values["adv"].tolist() == [0] * 7 + [4]


def test_the_order_of_the_prompts_may_be_given():
    """As for a curriculum within a step: prompts 3 and 0 first, then 2; prompt 1 is left out."""
    one, two = parts(order=[3, 0, 2])
    assert lengths_of([one, two]) == [[7, 8, 1, 2], [5]]
    one, two = parts(order=torch.tensor([2, 1, 0, 3]).tolist())
    assert lengths_of([one, two]) == [[5], [1, 2, 7, 8]]


def test_together_keeps_the_responses_of_a_prompt_in_one_unit():
    """Also those that could not move the gradient by themselves, if another response of the prompt can."""
    one, two = parts(together=True)
    assert lengths_of([one, two]) == [[1, 2], [5, 6, 7, 8]]
    assert one.units == [[0, 1]] and two.units == [[0, 1], [2, 3]]
    keep = torch.tensor([[True, True], [True, True], [False, True], [True, False]])
    one, two = parts(keep=keep, together=True)
    assert lengths_of([one, two]) == [[1, 2], [7]] and two.units == [[0]]


@pytest.mark.parametrize("value, is_now", [(torch.zeros(4, 2), "[4, 2]"), (torch.zeros(8), "[8]"), (3.0, "float"),
                                           (torch.tensor(1.0), "[]")])
def test_a_value_of_the_wrong_shape_is_named(value, is_now):
    rollouts = toy_rollouts(LENGTHS, 2)
    rollouts.tokens.mine = value
    with pytest.raises(ValueError) as error:
        parts(rollouts=rollouts)
    line = str(error.value)
    assert line.startswith(f"tokens.mine is {is_now}; it needs [36], one value per response token")
    assert "per_token" in line and "\n" not in line


def test_what_an_algorithm_adds_is_cut_along():
    rollouts = toy_rollouts(LENGTHS, 2)
    rollouts.tokens.number = rollouts.per_token(torch.arange(8))
    one, two = parts(rollouts=rollouts)
    assert one.values["number"].tolist() == [0, 1, 1]
    assert two.values["number"].tolist() == [4] * 5 + [6] * 7 + [7] * 8
