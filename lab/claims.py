"""The two tables of the lab: SETTINGS, command lines of our own scripts, and CLAIMS, what the papers say."""

import math
import re
from typing import NamedTuple
from collections.abc import Callable

import common  # before torch
import numpy as np
import torch

import grpo
import reinforce_rej
from core.minibatches import token_weights
from lab.experiments import (accuracy, at, by_chance, early, gain, last, late, loss_by_format, mean,
                              only, pass_at, scatter, slope, to_python)

# ============================================================================================== the two tables
# Words in capitals stand for flags that depend on the model: see flags(). `--lr NAME`: the best rate of NAME, in RATES.
# WIDE trains on problems of which the base solves a quarter, and some of them never. On PLAIN it solves half.
# WIDE makes 2 updates per rollout, near what the paper did (its unit is not stated). LONG is five times as long.
# CLIPPED makes 8 updates per rollout and has a narrow clip, which binds on 1 % of the tokens. So does PLAIN.
SETTINGS = {
    # the algorithms
    "raft": "raft.py WIDE --lr raft",
    "raft_pp": "raft_pp.py WIDE --lr raft_pp",
    "grpo": "grpo.py WIDE --lr grpo",
    "sequence": "grpo.py WIDE --loss_norm sequence --lr grpo",
    "constant": "grpo.py WIDE --loss_norm constant --lr grpo",
    "reinforce": "reinforce_rej.py WIDE --reject none --lr reinforce",
    "mean_zero": "reinforce_rej.py WIDE --reject none --baseline group --lr mean_zero",
    "remove_correct": "reinforce_rej.py WIDE --reject correct --lr remove_correct",
    "remove_wrong": "reinforce_rej.py WIDE --reject wrong --lr remove_wrong",
    "rej": "reinforce_rej.py WIDE --lr rej",
    "rej_std": "reinforce_rej.py WIDE --normalize group --lr rej_std",
    "rloo": "reinforce_rej.py WIDE --reject none --baseline leave_one_out --lr rloo",
    "reinforce_pp": "reinforce_rej.py WIDE --reject none --baseline batch --normalize batch --lr reinforce_pp",
    "ppo": "ppo.py WIDE --lr ppo",
    "dpo": "iterative_dpo.py WIDE --steps 15 --prompts_per_step 128 --updates_per_step 8 --lr dpo",
    # late in training
    "raft_pp_long": "raft_pp.py LONG --lr raft_pp_long",
    "raft_pp_same": "raft_pp.py LONG --lr grpo_long",
    "grpo_long": "grpo.py LONG --save_every THIRD --lr grpo_long",
    "grpo_kl": "grpo.py LONG --kl_coef 0.001 --lr grpo_long",
    # off-policy, where ratio and clip matter
    "raft_many": "raft.py MANY --lr raft_many",
    "raft_pp_clipped": "raft_pp.py CLIPPED --lr raft_pp_clipped",
    "no_clip": "raft_pp.py CLIPPED --clip false --lr no_clip",
    "clip_higher": "raft_pp.py CLIPPED HIGHER --lr raft_pp_clipped",
    # why RAFT++ and GRPO end differently: one difference between them less in each
    "grpo_positive": "lab/why.py positive WIDE --lr grpo",
    "raft_pp_mixed": "lab/why.py mixed WIDE --lr raft_pp",
    "grpo_no_std": "grpo.py WIDE --std false --lr grpo",
    "grpo_once": "grpo.py WIDE --updates_per_step 1 --lr grpo_once",
    "raft_pp_once": "raft_pp.py WIDE --updates_per_step 1 --lr raft_pp_once",
    "grpo_positive_long": "lab/why.py positive LONG --lr grpo_long",
    "raft_pp_mixed_long": "lab/why.py mixed LONG --lr grpo_long",
    # evaluations with 256 samples per problem, and the runs that use them
    "base_256": "eval.py AT256 --model BASE",
    "third_256": "eval.py AT256 --model {grpo_long}/STEP1",
    "grpo_256": "eval.py AT256 --model {grpo_long}/final",
    "kl_256": "eval.py AT256 --model {grpo_kl}/final",
    "under_base": "eval.py --compare {base_256} {grpo_256} --perplexity",
    "teacher": "lab/worlds.py teacher",
    "distilled": "raft.py WIDE --teacher {teacher#0}/final --lr raft",
    "distilled_256": "eval.py AT256 --model {distilled}/final",
    # evaluations of the base in other conditions
    "base_chat": "eval.py AT4 --model BASE",
    "no_template": "eval.py AT4 --model BASE --template none",
    "half": "eval.py AT4 --model BASE --max_new_tokens HALF",
    "quarter": "eval.py AT4 --model BASE --max_new_tokens QUARTER",
    # spurious rewards: `good` is a base whose python style is the better one, `bad` one where it is worse
    "habit_good": "lab/worlds.py habit-good",
    "habit_bad": "lab/worlds.py habit-bad",
    "true_good": "grpo.py PLAIN",
    "vote_good": "grpo.py PLAIN --reward majority_fixed VOTES",
    "incorrect_good": "grpo.py PLAIN --reward incorrect VOTES",
    "format_good": "grpo.py PLAIN --reward format",
    "random_good": "grpo.py HABIT --reward random:0.5",
    "random_no_clip": "grpo.py HABIT --reward random:0.5 --clip false",
    "one_update": "grpo.py HABIT --reward random:0.5 --updates_per_step 1",
    "small_rollout": "grpo.py HABIT --reward random:0.5 --updates_per_step 1 EIGHTH",
    "true_bad": "grpo.py PLAIN --model tiny-badcode",
    "vote_bad": "grpo.py PLAIN --model tiny-badcode --reward majority_fixed VOTES",
    "incorrect_bad": "grpo.py PLAIN --model tiny-badcode --reward incorrect VOTES",
    "format_bad": "grpo.py PLAIN --model tiny-badcode --reward format",
    "random_bad": "grpo.py HABIT --model {habit_bad#0}/final --reward random:0.5",
    "ttrl": "grpo.py PLAIN --reward majority --data TEST --limit 400",
    "one_example": "grpo.py PLAIN --limit 1",
    # priming, then RL on a miniature Countdown
    "countdown": "lab/worlds.py countdown",
    "primed_right": "lab/worlds.py prime-right",
    "primed_wrong": "lab/worlds.py prime-wrong",
    "primed_direct": "lab/worlds.py prime-direct",
    "primed_dots": "lab/worlds.py prime-dots",
    "search_right": "grpo.py COUNTDOWN --model {primed_right#0}/final",
    "search_wrong": "grpo.py COUNTDOWN --model {primed_wrong#0}/final",
    "search_direct": "grpo.py COUNTDOWN --model {primed_direct#0}/final",
    "search_dots": "grpo.py COUNTDOWN --model {primed_dots#0}/final",
    # a base at several moments of its pretraining: here the seed is that of the base
    "checkpoints": "lab/worlds.py checkpoints",
    "early_none": "eval.py REFLECT --model {checkpoints}/final/step_75",
    "early_wait": "eval.py REFLECT --model {checkpoints}/final/step_75 --reflect ' wait'",
    "late_none": "eval.py REFLECT --model {checkpoints}/final/step_300",
    "late_wait": "eval.py REFLECT --model {checkpoints}/final/step_300 --reflect ' wait'",
}
# The learning rates that `python -m lab tune` tries for a setting, on seeds that no verdict uses. With a star: the
# best, by accuracy in the end. Of two that are less than half a point apart, which is noise, the lower one is the best.
# Where the best one was the lowest or the highest, the next one was tried as well.
RATES = dict.fromkeys(
    "raft reinforce mean_zero remove_correct rej rloo reinforce_pp ppo raft_pp_long raft_many raft_pp_clipped".split(),
    "5e-5 1e-4* 2e-4") | dict.fromkeys(
    "remove_wrong rej_std grpo_once raft_pp_once".split(), "5e-5 1e-4 2e-4* 4e-4") | dict.fromkeys(
    "raft_pp grpo".split(), "5e-5 1e-4* 2e-4 4e-4") | dict.fromkeys(
    "grpo_long no_clip".split(), "2.5e-5 5e-5* 1e-4 2e-4") | dict(
    dpo="1e-5 2e-5 4e-5* 8e-5", true_good="2.5e-5 5e-5* 1e-4")
TUNING_SEEDS = [100, 101]
SEEDS, SHOWN = 10, 3  # how many seeds a claim has, unless it says otherwise; and a setting that no claim is about


def flags(model: str, data: str, steps: int) -> dict[str, str]:
    """{word in capitals: the flags it stands for}."""
    long = steps or (150 if model == "tiny" else 300)
    words = dict(BASE=model, THIRD=long // 3, STEP1=f"step_{long // 3:06d}")
    world = f"--model {model} --steps {steps or (30 if model == 'tiny' else 300)} --reference true --show false"
    if model != "tiny":
        both = f"{world} --updates_per_step 2 --data {data}"
        many = f"{world} --updates_per_step 8 --data {data}"
        return words | dict(WIDE=both, LONG=both, MANY=many, CLIPPED=many, PLAIN=many, HABIT=many,
                            HIGHER="--clip_high 0.28", EIGHTH="--prompts_per_step 128", TEST="math500", VOTES="",
                            AT256="--samples 256 --seeds 1", AT4="--samples 4 --seeds 1", HALF="1536", QUARTER="768")
    world += " --prompts_per_step 64 --samples_per_prompt 4 --eval_every 200 --eval_problems 400 --updates_per_step"
    wide = "--data tiny-wide --eval_data tiny-wide-test --max_new_tokens 80"
    narrow = "--clip_low 0.02 --clip_high 0.02"
    return words | dict(
        WIDE=f"{world} 2 {wide}", LONG=f"{world} 2 {wide} --steps {long}", MANY=f"{world} 8 {wide}",
        CLIPPED=f"{world} 8 {wide} {narrow}", HIGHER="--clip_high 0.028", PLAIN=f"{world} 8 {narrow} --lr true_good",
        HABIT=f"{world} 8 {narrow} --lr true_good --model {{habit_good#0}}/final --data tiny --eval_data tiny-test "
        "--max_new_tokens 64 --template chat", EIGHTH="--prompts_per_step 8 --steps 240", TEST="tiny-test",
        AT256="--bench tiny-wide --limit 128 --samples 256 --seeds 1 --max_new_tokens 80",
        AT4="--bench tiny-wide --limit 200 --samples 4 --seeds 1 --max_new_tokens 80", HALF="40", QUARTER="20",
        VOTES="--votes 16 --limit 320",
        COUNTDOWN=f"{world} 4 --data {{countdown#0}}/final/train.jsonl --eval_data {{countdown#0}}/final/test.jsonl "
        "--check lab/worlds.py --steps 40 --prompts_per_step 32 --max_new_tokens 160 --lr 1e-4",
        REFLECT="--wrong {checkpoints}/final/corrupted.jsonl --samples 16 --seeds 1 --max_new_tokens 64")


def command_lines(model: str, data: str, steps: int) -> dict[str, str]:
    """SETTINGS with flags in place of the words in capitals, and "NAME@RATE" for each rate that is tried for NAME.

    Another model keeps its own learning rate, and skips the settings that need the built-in world."""
    words, lines = flags(model, data, steps), {}
    fill_in = lambda text: re.sub(r"\b[A-Z]+[0-9]*\b", lambda word: str(words.get(word[0], word[0])), text)
    for name, text in SETTINGS.items():
        if model != "tiny":
            if not re.search("tiny|worlds|teacher|distilled|habit|COUNTDOWN|REFLECT", text):
                lines[name] = re.sub(r" --lr [a-z]\w*", "", fill_in(text))
            continue
        for rate in RATES.get(name, "").replace("*", "").split():
            lines[f"{name}@{rate}"] = fill_in(text).replace(f"--lr {name}", f"--lr {rate}")
        best = lambda found: "--lr " + re.search(r"(\S+)\*", RATES[found[1]])[1]
        lines[name] = re.sub(r"--lr ([a-z]\w*)", best, fill_in(text))
    return lines


# ================================================================================================ what is claimed
class Claim(NamedTuple):
    """A claim, and its parts, which must all hold.

    A part is (what is measured, where the mean has to be, the function that measures it in one seed). The parameters
    of that function are names of settings, whose records it gets, or `seed`. "> 0, 0.03 matters": 0.03 is the smallest
    difference that would be worth the claim. Parts are measured alike if their labels are the same up to the first
    comma. Their spread over seeds is pooled, to choose how many seeds are run (report.power)."""

    number: int
    paper: str
    source: str
    text: str
    parts: list[tuple[str, str, Callable]]
    differs: str = ""  # how this differs from the paper's experiment, besides model, problems and size
    seeds: int = SEEDS  # how many are run


def weight_on_wrong(reward: float) -> float:
    """Reinforce-Rej's largest gradient on a token of a wrong response. Rewards: right ones 1, wrong ones `reward`."""
    rewards = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0]])
    cfg, new = reinforce_rej.Config(), torch.zeros(2, 4, requires_grad=True)
    adv = torch.where(rewards > 0, 1, reward)
    common.clipped_loss(new, torch.zeros(2, 4), adv, cfg)[reinforce_rej.advantages(rewards, cfg)[1]].sum().backward()
    return new.grad[rewards == 0].abs().max().item()


def weight_ratio(norm: str) -> float:
    """The weight of a token in a response of 10 tokens, divided by that in a response of 40, with this loss_norm."""
    weights = token_weights([10, 40], norm, 64)
    return float(weights[0] / weights[-1])


def pull_back(seed: int, clip: bool, groups=4000, n=16) -> float:
    """How far random rewards push a policy back to the one that sampled (arXiv 2506.10947).

    The policy is a softmax over 8 tokens, and a response is one token. It has moved since it sampled; GRPO's mean step
    along the way back is measured in its standard errors over groups."""
    generator = torch.Generator().manual_seed(seed)
    old = torch.randn(8, generator=generator)
    way_back = 0.5 * torch.randn(8, generator=generator)
    new = old - way_back
    tokens = torch.multinomial(old.softmax(0), groups * n, replacement=True, generator=generator).view(groups, n)
    rewards = torch.randint(0, 2, tokens.shape, generator=generator).float()
    adv, _ = grpo.advantages(rewards, grpo.Config())
    logprobs = new.log_softmax(0)[tokens].requires_grad_()
    common.clipped_loss(logprobs, old.log_softmax(0)[tokens], adv, grpo.Config(clip=clip)).sum().backward()
    along = way_back[tokens] - (new.softmax(0) * way_back).sum()  # how a token's logprob changes on that way
    steps = -(logprobs.grad * along).sum(1)
    return (steps.mean() / steps.std() * math.sqrt(groups)).item()


CLAIMS = [
    Claim(1, "minimalist", "table 1", "RAFT++ is at least as good as RAFT", [
        ("final accuracy, RAFT++ - RAFT", "> -0.03", lambda raft_pp, raft: last(raft_pp) - last(raft)),
        ("final accuracy with 8 updates per rollout, RAFT++ with a narrow clip - RAFT", "> -0.05",
         lambda raft_pp_clipped, raft_many: last(raft_pp_clipped) - last(raft_many))]),
    Claim(2, "minimalist", "figure 2", "without the clip RAFT++ is worse, even than RAFT", [
        ("final accuracy with 8 updates per rollout, RAFT++ - without clip", "> 0, 0.05 matters",
         lambda raft_pp_clipped, no_clip: last(raft_pp_clipped) - last(no_clip)),
        ("final accuracy with 8 updates per rollout, RAFT - RAFT++ without clip", "> 0, 0.05 matters",
         lambda raft_many, no_clip: last(raft_many) - last(no_clip))],
        "8 updates per rollout, and a ratio between 0.98 and 1.02; the paper shows training reward"),
    Claim(3, "minimalist", "figures 1, 3", "RAFT++ learns faster early, its entropy collapses, GRPO passes it late", [
        ("training accuracy, first third, RAFT++ - GRPO", "> 0, 0.03 matters",
         lambda raft_pp_long, grpo_long: early(raft_pp_long, "accuracy") - early(grpo_long, "accuracy")),
        ("entropy, after the first third, RAFT++ / GRPO - 1", "< 0, 0.1 matters",
         lambda raft_pp_same, grpo_long: mean(raft_pp_same, "entropy", 1 / 3) / mean(grpo_long, "entropy", 1 / 3) - 1),
        ("final accuracy of 150 steps, GRPO - RAFT++", "> 0, 0.07 matters",
         lambda grpo_long, raft_pp_long: last(grpo_long) - last(raft_pp_long))],
        "150 steps, not 250; accuracies at each method's best rate (1e-4 and 5e-5), entropies at the same rate, 5e-5"),
    Claim(4, "minimalist", "figure 3", "early, RAFT++ moves away from the initial policy faster than GRPO", [
        ("KL, first third, RAFT++ / GRPO - 1", "> 0, 0.2 matters",
         lambda raft_pp_same, grpo_long: early(raft_pp_same, "kl") / early(grpo_long, "kl") - 1)],
        "the first 50 steps; both at the same rate, for a larger rate alone goes further"),
    Claim(5, "minimalist", "figure 2", "clip-higher keeps RAFT++'s entropy up and costs no reward", [
        ("entropy, last third, higher clip / usual - 1", "> 0, 0.1 matters", lambda clip_higher, raft_pp_clipped:
         mean(clip_higher, "entropy", 2 / 3) / mean(raft_pp_clipped, "entropy", 2 / 3) - 1),
        ("training accuracy, last third, higher clip - usual", "> -0.03", lambda clip_higher, raft_pp_clipped:
         mean(clip_higher, "accuracy", 2 / 3) - mean(raft_pp_clipped, "accuracy", 2 / 3))],
        "8 updates per rollout; the ratio is clipped at 1.028 and at 1.02, in place of 1.28 and 1.2"),
    Claim(6, "minimalist", "figure 4", "all-wrong prompts harm Reinforce; all-right ones do not", [
        ("training accuracy, last half, remove wrong - Reinforce", "> 0, 0.03 matters",
         lambda remove_wrong, reinforce: late(remove_wrong, "accuracy") - late(reinforce, "accuracy")),
        ("training accuracy, last half, remove correct - Reinforce", "within 0.03",
         lambda remove_correct, reinforce: late(remove_correct, "accuracy") - late(reinforce, "accuracy"))]),
    Claim(7, "minimalist", "figure 4", "dividing by the standard deviation adds nothing to removing both", [
        ("final accuracy, with std - without", "within 0.03", lambda rej_std, rej: last(rej_std) - last(rej))]),
    Claim(8, "minimalist", "figure 4", "subtracting the mean raises Reinforce's KL, not its reward", [
        ("KL, last half, mean zero / Reinforce - 1", "> 0, 0.2 matters",
         lambda mean_zero, reinforce: late(mean_zero, "kl") / late(reinforce, "kl") - 1),
        ("training accuracy, last half, mean zero - Reinforce", "< 0.03",
         lambda mean_zero, reinforce: late(mean_zero, "accuracy") - late(reinforce, "accuracy"))]),
    Claim(9, "minimalist", "figure 4, table 1", "Reinforce-Rej is as good as GRPO at a smaller KL", [
        ("final accuracy, Reinforce-Rej - GRPO", "within 0.03", lambda rej, grpo: last(rej) - last(grpo)),
        ("KL, last half, Reinforce-Rej / GRPO - 1", "< 0, 0.2 matters",
         lambda rej, grpo: late(rej, "kl") / late(grpo, "kl") - 1)]),
    Claim(10, "minimalist", "its code", "as released, Reinforce-Rej gives wrong answers no gradient", [
        ("gradient on wrong answers, rewards 0 and 1", "within 1e-9", lambda: weight_on_wrong(0.0)),
        ("gradient on wrong answers, rewards -1 and 1", "> 0.5", lambda: weight_on_wrong(-1.0))]),
    Claim(11, "others", "Dr. GRPO, section 3", "dividing by each response's own length lets wrong answers grow", [
        ("length of wrong answers, in the end, own length - constant", "> 0, 2 matters",
         lambda sequence, constant: last(sequence, "length_wrong") - last(constant, "length_wrong"))],
        "our problems set the length of a solution, up to its style; responses that were cut off are left out"),
    Claim(12, "others", "Dr. GRPO, section 3", "that division makes a token's weight 1 / length, a constant does not", [
        ("weight in 10 tokens / in 40, own length, minus 4", "within 1e-6", lambda: weight_ratio("sequence") - 4),
        ("weight in 10 tokens / in 40, constant, minus 1", "within 1e-6", lambda: weight_ratio("constant") - 1)]),
    Claim(13, "sober", "section 3", "on m problems chance scatters the accuracies of seeds by 1 / sqrt(m)", [
        ("scatter / sqrt(mean of p_i (1 - p_i) / m), m = 24, minus 1", "within 0.1",
         lambda base_256: scatter(base_256, 24) / by_chance(base_256, 24) - 1),
        ("exponent of the scatter in m, m = 3 to 48, plus 1/2", "within 0.1",
         lambda base_256: slope([3, 6, 12, 24, 48], [scatter(base_256, m) for m in (3, 6, 12, 24, 48)]) + 0.5)],
        "seeds of the evaluation alone: 256 samples stand for 256 seeds, so 13 and 14 check our sampler; p_i is the "
        "chance to solve problem i; with the mean chance p the paper's sqrt(p (1 - p) / m) is larger"),
    Claim(14, "sober", "section 3", "the mean over K seeds scatters by 1 / sqrt(K)", [
        ("exponent of the scatter in K, K = 1 to 10, plus 1/2", "within 0.05",
         lambda base_256: slope(range(1, 11), [scatter(base_256, 30, k) for k in range(1, 11)]) + 0.5)],
        "seeds of the evaluation alone; 30 problems, and disjoint groups of K samples"),
    Claim(15, "sober", "section 5", "wrong answers are longer than right ones, even among those not cut off", [
        ("length, of wrong - of right, base", "> 0, 1 matters",
         lambda base_256: base_256["length_wrong"] - base_256["length_right"]),
        ("length, of wrong - of right, after GRPO", "> 0, 1 matters",
         lambda grpo_256: grpo_256["length_wrong"] - grpo_256["length_right"])],
        "longer problems need longer solutions and are harder; guesses are short and mostly wrong"),
    Claim(16, "sober", "section 3", "without its template, or with little room, a model is worse", [
        ("accuracy, its template - none", "> 0",
         lambda base_chat, no_template: accuracy(base_chat) - accuracy(no_template)),
        ("accuracy, full - half length", "> 0", lambda base_chat, half: accuracy(base_chat) - accuracy(half)),
        ("accuracy, half - quarter length", "> 0", lambda half, quarter: accuracy(half) - accuracy(quarter))],
        "could hardly fail: the base knows one template, and its responses are about as long as half the limit", 5),
    Claim(17, "limit", "figure 2", "RL is better at pass@1 and worse at pass@256", [
        ("pass@1, GRPO - base", "> 0, 0.03 matters",
         lambda grpo_256, base_256: pass_at(grpo_256, 1) - pass_at(base_256, 1)),
        ("pass@256, GRPO - base", "< 0, 0.03 matters",
         lambda grpo_256, base_256: pass_at(grpo_256, 256) - pass_at(base_256, 256))]),
    Claim(18, "limit", "figure 7", "as training goes on pass@1 rises and pass@256 falls", [
        ("pass@1, end - a third", "> 0, 0.03 matters",
         lambda grpo_256, third_256: pass_at(grpo_256, 1) - pass_at(third_256, 1)),
        ("pass@256, end - a third", "< 0, 0.03 matters",
         lambda grpo_256, third_256: pass_at(grpo_256, 256) - pass_at(third_256, 256))]),
    Claim(19, "limit", "section 3", "RL solves hardly a problem that the base does not", [
        ("share of RL's solved problems, those that the base does not solve", "< 0.05",
         lambda base_256, grpo_256: only(base_256, grpo_256)),
        ("share of RL's solved problems, as above, minus the share of the base's that RL does not solve",
         "< 0, 0.05 matters", lambda base_256, grpo_256: only(base_256, grpo_256) - only(grpo_256, base_256))]),
    Claim(20, "limit", "figure 4", "after RL more problems are solved always, and more never", [
        ("share of problems, never solved, GRPO - base", "> 0, 0.03 matters",
         lambda grpo_256, base_256: at(grpo_256, 0, 0) - at(base_256, 0, 0)),
        ("share of problems, nearly always solved, GRPO - base", "> 0, 0.03 matters",
         lambda grpo_256, base_256: at(grpo_256, 0.9, 1) - at(base_256, 0.9, 1))],
        "nearly always: 90 % of 256 samples; no problem is solved by all of them. The share that is never solved is 1 "
        "- pass@256, so the first part is that of claims 17 and 22 with another sign"),
    Claim(21, "limit", "figure 6", "what RL samples was likely under the base already", [
        ("perplexity, under the base, RL's - the base's own", "< 0, 0.02 matters",
         lambda under_base: under_base["perplexity"][1] - under_base["perplexity"][0])],
        "medians over 16 responses to each of 128 problems"),
    Claim(22, "limit", "figure 8", "distillation widens what a model can solve, RL does not", [
        ("pass@256, distilled - base", "> 0, 0.03 matters",
         lambda distilled_256, base_256: pass_at(distilled_256, 256) - pass_at(base_256, 256)),
        ("pass@256, GRPO - base", "< 0, 0.03 matters",
         lambda grpo_256, base_256: pass_at(grpo_256, 256) - pass_at(base_256, 256))],
        "the teacher is our base, taught on solutions without errors; 30 steps of RAFT on its samples"),
    Claim(23, "limit", "figure 8", "algorithms differ little, measured by what the base could still give", [
        ("(best - worst final accuracy) / (base's pass@256 - GRPO's accuracy)", "< 0.1",
         lambda base_256, grpo, rloo, reinforce_pp, ppo: np.ptp([last(run) for run in (grpo, rloo, reinforce_pp, ppo)])
         / (pass_at(base_256, 256) - last(grpo)))],
        "GRPO, RLOO, Reinforce++, PPO; ReMax is not in this project"),
    Claim(24, "limit", "section 4", "a KL penalty of 0.001 leaves pass@1 and lowers pass@k at large k", [
        ("final accuracy of 150 steps, with - without", "within 0.03",
         lambda grpo_kl, grpo_long: last(grpo_kl) - last(grpo_long)),
        ("pass@256, with - without", "< 0, 0.03 matters",
         lambda kl_256, grpo_256: pass_at(kl_256, 256) - pass_at(grpo_256, 256))]),
    Claim(25, "spurious", "figures 11, 13", "clipped random rewards push a model towards what it does anyway", [
        ("share of python, gained with clip", "> 0, 0.05 matters", lambda random_good: gain(random_good, "python")),
        ("entropy, last third / first third - 1, with clip", "< 0, 0.1 matters",
         lambda random_good: mean(random_good, "entropy", 2 / 3) / early(random_good, "entropy") - 1),
        ("share of python, gained without clip", "within 0.1", lambda random_no_clip: gain(random_no_clip, "python")),
        ("share of python, gained with one update per rollout", "within 0.05",
         lambda one_update: gain(one_update, "python")),
        ("share of python, gained with one update per small rollout", "within 0.05",
         lambda small_rollout: gain(small_rollout, "python"))],
        "the base is trained on until two thirds of its responses are python, its better style; entropy stands for the "
        "paper's mean token probability; one update per rollout makes 30 updates in place of 240, with the small "
        "rollout 240 as well; all have the rate that was tuned for true rewards and 8 updates"),
    Claim(26, "spurious", "figure 5", "where the frequent strategy is the worse one, random rewards harm", [
        ("accuracy gained, by random rewards", "< 0, 0.03 matters", lambda random_bad: gain(random_bad)),
        ("accuracy gained, by random rewards, where python is worse - where it is better", "< 0, 0.03 matters",
         lambda random_bad, random_good: gain(random_bad) - gain(random_good))],
        "two bases, of whose responses two thirds are python"),
    Claim(27, "spurious", "section 4", "without any reward nothing is learned", [
        ("largest advantage of GRPO when no response is rewarded", "within 1e-9",
         lambda: grpo.advantages(torch.zeros(64, 16), grpo.Config())[0].abs().max().item())],
        "an update whose advantages are all 0 is skipped, weight decay included"),
    Claim(28, "spurious", "appendix", "random rewards push nowhere on average; the clip makes them pull back", [
        ("mean step towards the sampling policy, without clip, in its standard errors", "within 1",
         lambda seed: pull_back(seed, clip=False)),
        ("the same with clip", "> 3", lambda seed: pull_back(seed, clip=True))],
        "a softmax over 8 tokens that has moved half a nat; 4,000 groups of 16 samples"),
    Claim(29, "spurious", "figure 1; TTRL", "votes are nearly as good as the truth; even wrong labels help", [
        ("accuracy gained, by labels of votes", "> 0, 0.03 matters", lambda vote_good: gain(vote_good)),
        ("accuracy gained, by truth - by votes", "< 0.05",
         lambda true_good, vote_good: gain(true_good) - gain(vote_good)),
        ("accuracy gained, by wrong labels", "> 0, 0.03 matters", lambda incorrect_good: gain(incorrect_good)),
        ("accuracy gained, by votes on the test problems (TTRL)", "> 0, 0.03 matters", lambda ttrl: gain(ttrl))],
        "16 votes, on 320 problems (truth: 10,000); for wrong labels only those where the vote errs, 3 to 9"),
    Claim(30, "spurious", "figure 1", "rewarding the format gains what the base loses by missing boxes", [
        ("accuracy gained, by the format", "> 0, 0.03 matters", lambda format_good: gain(format_good)),
        ("accuracy gained, minus what the base loses by missing boxes", "within 0.02",
         lambda format_good: gain(format_good) - loss_by_format(format_good))],
        "lost by missing boxes: the share of responses without a box x the accuracy of those with one"),
    Claim(31, "spurious", "table 2", "the gain comes from words to python, where python is the better strategy", [
        ("sum of the four contributions, minus 1 (an identity)", "within 0.001",
         lambda true_good: sum(true_good["contributions"].values()) - 1),
        ("contribution of words to python, minus the largest other", "> 0, 0.05 matters",
         lambda true_good: to_python(true_good))]),
    Claim(32, "others", "one-shot RLVR, table 1", "one example is enough to gain more than the format alone gives", [
        ("accuracy gained, with one example", "> 0, 0.03 matters", lambda one_example: gain(one_example)),
        ("accuracy gained, with one example - by rewarding the format", "> 0, 0.03 matters",
         lambda one_example, format_good: gain(one_example) - gain(format_good))],
        "the first problem, not one that was selected, and 30 steps"),
    Claim(33, "behaviors", "its repository", "RL needs a base that searches, be it right or wrong", [
        ("final accuracy, search - direct", "> 0",
         lambda search_right, search_direct: last(search_right) - last(search_direct)),
        ("final accuracy, search - dots", "> 0",
         lambda search_right, search_dots: last(search_right) - last(search_dots)),
        ("final accuracy, direct - dots", "within 0.1",
         lambda search_direct, search_dots: last(search_direct) - last(search_dots)),
        ("final accuracy, wrong - right search", "within 0.1",
         lambda search_wrong, search_right: last(search_wrong) - last(search_right)),
        ("rejected attempts per response, gained by RL", "> 0", lambda search_right: gain(search_right, "rejected"))],
        "orders of three operations are searched, not of numbers; one primed base of each kind", 5),
    Claim(34, "reflection", "figures 3 to 5", "told to wait a model corrects itself, better with more pretraining", [
        ("accuracy at the end of pretraining, wait - nothing", "> 0",
         lambda late_wait, late_none: accuracy(late_wait) - accuracy(late_none)),
        ("accuracy when told to wait, end - a quarter", "> 0",
         lambda late_wait, early_wait: accuracy(late_wait) - accuracy(early_wait)),
        ("accuracy when told nothing, end - a quarter", "> 0",
         lambda late_none, early_none: accuracy(late_none) - accuracy(early_none))],
        "its base is another one per seed; that ` wait` helps could hardly fail: our corpus says it before it mends a "
        "mistake", 5),
]
