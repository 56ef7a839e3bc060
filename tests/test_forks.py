"""Copies of grpo.py: the diffs that README shows, a task of one's own, state that survives a resume, and what somebody
who changes a copy is told about a slip."""

import importlib.util
import json
import math
import re
import shutil
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from helpers import assert_near, error_line, read, same_draws, same_weights, weights

from conftest import ROOT
from core.meter import Meter, observe
from core.sampler import new_sampler

GRPO = (ROOT / "grpo.py").read_text()
TWO_STEPS = ["--steps", 2, "--eval_data", ""]


# ------------------------------------------------------------------------------------------------ making a copy
def apply(diff: str, source: str) -> str:
    """The source after a unified diff, whose hunks each have to fit in one place, as for `patch`."""
    for header, body in re.findall(r"^@@ (.*) @@.*\n((?:[ +-].*\n|\n)+)", diff, re.M):
        lines = [line or " " for line in body.splitlines()]  # an editor may have taken the blank of an empty line
        old, new = ([line[1:] for line in lines if line[0] in kinds] for kinds in (" -", " +"))
        counts = [int(count) for count in re.fullmatch(r"-\d+,(\d+) \+\d+,(\d+)", header).groups()]
        assert counts == [len(old), len(new)], f"@@ {header} @@ does not count the lines below it"
        old, new = ("".join(line + "\n" for line in part) for part in (old, new))
        assert source.count(old) == 1, f"README's diff no longer fits grpo.py:\n{old}"
        source = source.replace(old, new)
    return source


def changed(*changes: tuple[str, str]) -> str:
    """grpo.py with the first text of each pair, which has to stand there once, replaced by the second."""
    source = GRPO
    for old, new in changes:
        assert source.count(old) == 1, f"grpo.py no longer has the one place to be changed: {old}"
        source = source.replace(old, new)
    return source


@pytest.fixture
def fork(tmp_path):
    """fork(source): the module of a file with this text."""

    def load(source: str, name="mine"):
        file = tmp_path / f"{name}.py"
        file.write_text(source)
        spec = importlib.util.spec_from_file_location(f"test_forks_{name}", file)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


# ------------------------------------------------------------------------------------------------ README's diffs
def readme_forks() -> dict[str, tuple[str, list[str]]]:
    """{name: (diff, the flags that the sentence before it asks for)} of README's diffs of grpo.py."""
    text = (ROOT / "README.md").read_text()
    found = re.findall(r"((?:.+\n)+)```diff\n(--- grpo\.py\n\+\+\+ (\w+)\.py\n[^`]*)```", text)
    return {name: (diff, " ".join(re.findall(r"`(--[^`]*)`", text)).split()) for text, diff, name in found}


# CISPO (arXiv 2506.13585, eq. 4 and 5): the clipped ratio is a weight, so no token loses its gradient.
CISPO = """
@@ -62,3 +62,4 @@
     \"""new [T], the policy's logprobs, and the tokens' values tokens.old, tokens.adv, ... [T] -> loss [T].\"""
-    return common.clipped_loss(new, tokens.old, tokens.adv, cfg)
+    ratio = (new - tokens.old).detach().exp().clamp(1 - cfg.clip_low, 1 + cfg.clip_high)
+    return -ratio * tokens.adv * new

"""
# Two temperatures and a curriculum: the shortest quarter of the problems at first, more of them once half is right; and
# each prompt's responses twice, the second time hotter.
HOT_CURRICULUM = """
@@ -38,2 +38,3 @@
     dynamic_sampling: bool = common.arg(False, "sample on until prompts_per_step prompts are mixed (DAPO)")
+    hot: float = common.arg(1.3, "temperature of a second set of responses to each prompt", above=0)

@@ -70,5 +71,10 @@
     run = common.Run(cfg)
+    shortest, level = sorted(filter(None, run.problems), key=lambda p: len(p["problem"])), dict(share=0.25)
+    run.checkpointed["level"] = level
     for _ in run.steps():
         run.sync()
+        run.problems = shortest[: round(level["share"] * len(shortest))]
         rollouts = run.sample()
+        rollouts = rollouts + run.sample(rollouts.problems, temperature=cfg.hot)
         rewards = run.reward(rollouts)
+        level["share"] = min(1.0, level["share"] * (1.5 if common.right(rewards).float().mean() > 0.5 else 1))
"""
FORKS = readme_forks()
OTHERS = dict(cispo=CISPO, hot_curriculum=HOT_CURRICULUM)
needs_diffs = pytest.mark.skipif(not FORKS, reason="README.md shows no diff of grpo.py yet")


@pytest.fixture(scope="module")
def plain(train, tmp_path_factory):
    """The metrics of two steps of grpo.py itself."""
    out = tmp_path_factory.mktemp("plain") / "run"
    assert train(out, *TWO_STEPS) == 0
    return read(out / "metrics.jsonl")


@needs_diffs
@pytest.mark.parametrize("name", [*FORKS, "cispo"])
def test_the_diffs_fit_grpo_and_their_forks_learn_something_else(train, fork, plain, tmp_path, name):
    """Two steps each: with a gradient, no NaN, no warning, and not what grpo.py does from the same rollouts."""
    diff, flags = FORKS.get(name) or (OTHERS[name], [])
    assert train(tmp_path / "run", *TWO_STEPS, *flags, module=fork(apply(diff, GRPO), name)) == 0
    rows = read(tmp_path / "run/metrics.jsonl")  # a NaN would be an error
    assert all(row["grad_norm"] > 0 for row in rows)
    assert (rows[0]["accuracy"], rows[0]["length"]) == (plain[0]["accuracy"], plain[0]["length"])
    assert any(rows[-1][k] != plain[-1][k] for k in ("grad_norm", "lr")), "the change changes nothing"


@pytest.mark.skipif("gspo" not in FORKS, reason="README.md shows no GSPO yet")
def test_gspo_by_hand(fork):
    """arXiv 2507.18071, eq. 5: mean over responses of -min(s A, clip(s) A), s = exp(mean over tokens of new - old).
    With --loss_norm sequence a token's weight is 1 / (responses x own length). Three responses of 2, 3 and 1 tokens:
    one inside the band, one clipped above with A > 0 (no gradient), one far above with A < 0 (not clipped)."""
    gspo = fork(apply(FORKS["gspo"][0], GRPO), "gspo")
    cfg = gspo.Config(loss_norm="sequence", clip_low=0.02, clip_high=0.04)
    old = [[-1.0, -0.5], [-2.0, -0.25, -1.5], [-0.75]]
    moved = [[0.05, -0.03], [0.5, -0.1, 0.2], [0.3]]  # new - old; their means are 0.01, 0.2 and 0.3
    advantages = [1.5, 0.5, -2.0]

    loss, gradient, bound = 0.0, [], 0
    for change, a in zip(moved, advantages):
        s = math.exp(sum(change) / len(change))
        clipped = min(max(s, 1 - 0.02), 1 + 0.04)
        loss -= min(s * a, clipped * a) / 3
        free = s * a <= clipped * a  # the minimum is the side that depends on the policy; ds/dnew = s / length
        gradient += [-a * s / len(change) / 3 if free else 0.0] * len(change)
        bound += 0 if free else len(change)
    assert [x == 0 for x in gradient] == [False, False, True, True, True, False]  # the case is what it says

    sizes = torch.tensor([len(x) for x in old])
    number = torch.arange(3).repeat_interleave(sizes)
    flat = lambda rows: torch.tensor([x for row in rows for x in row], dtype=torch.float64)
    tokens = SimpleNamespace(old=flat(old), adv=torch.tensor(advantages, dtype=torch.float64)[number], response=number)
    new = (flat(old) + flat(moved)).requires_grad_()
    losses = observe(gspo.token_loss)(new, tokens, cfg)
    (losses / (3 * sizes[number])).sum().backward()
    assert (losses / (3 * sizes[number])).sum().item() == pytest.approx(loss, rel=1e-12)
    assert new.grad.tolist() == pytest.approx(gradient, rel=1e-12)
    assert int(tokens.clipped.sum()) == bound


def test_cispo_by_hand(fork):
    """Loss -clip(s, 0.8, 1.2) A log pi, whose gradient is -clip(s) A: clipped tokens are weighed less, and learn on."""
    cispo = fork(apply(CISPO, GRPO), "cispo")
    new = torch.tensor([-1.0, -0.5, -2.0]).double().requires_grad_()
    moved, adv = torch.tensor([0.1, 0.5, -0.7]).double(), torch.tensor([1.0, 2.0, -3.0]).double()
    tokens = SimpleNamespace(old=new.detach() - moved, adv=adv)
    loss = observe(cispo.token_loss)(new, tokens, cispo.Config())
    loss.sum().backward()
    assert new.grad.tolist() == pytest.approx([-math.exp(0.1), -1.2 * 2, 0.8 * 3])
    assert loss.tolist() == pytest.approx([math.exp(0.1), 1.2 * 2 * 0.5, -0.8 * 3 * 2])
    assert not tokens.clipped.any()


def test_two_temperatures_and_a_curriculum(train, fork, tmp_path, problems_file):
    """Of 48 problems the shortest twelve, and more of them from the next step on if half is right. A hot response takes
    part in the updates, but not in `mismatch`. The level of a resumed run is the one that was saved."""
    mine = fork(apply(HOT_CURRICULUM, GRPO), "hot_curriculum")
    flags = ["--steps", 3, "--save_every", 1, "--eval_data", "", "--lr", 1e-4]
    assert train(tmp_path / "run", *flags, module=mine) == 0
    rows, shares = read(tmp_path / "run/metrics.jsonl"), [0.25]
    for step, row in enumerate(rows, 1):
        shares.append(min(1.0, shares[-1] * (1.5 if row["accuracy"] > 0.5 else 1)))
        assert torch.load(tmp_path / f"run/step_{step:06d}/level.pt") == dict(share=shares[-1])
        assert row["grad_norm"] > 0 and row["mismatch"] < 1e-5 and row["kept"] == 1
    assert shares[-1] > 0.25
    shortest = [problem["problem"] for problem in sorted(read(problems_file), key=lambda p: len(p["problem"]))]
    for row in read(tmp_path / "run/samples.jsonl"):
        assert row["problem"] in shortest[: round(shares[row["step"] - 1] * 48)]
    shutil.rmtree(tmp_path / "run/final")
    shutil.rmtree(tmp_path / "run/step_000003")
    assert train(tmp_path / "run", *flags, "--resume", module=mine) == 0
    assert torch.load(tmp_path / "run/step_000003/level.pt") == dict(share=shares[-1])
    assert [row["loss"] for row in read(tmp_path / "run/metrics.jsonl")] == [row["loss"] for row in rows]


# ------------------------------------------------------------------------------------------------ both samplers
QUICK = ("cispo", "hot_curriculum")  # the others are slow: they show the same


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
                                  for name in [*FORKS, *OTHERS, "replay"]])
def test_a_fork_does_the_same_with_a_sampler_that_is_not_exact(train, fork, tmp_path, monkeypatch, name):
    """As vLLM is: its logprobs are not taken for the trainer's, and it has no entropies. The clip is compared by its
    tokens, of which one may lie on its border, because GSPO's can have moved neither up nor down."""
    diff, flags = FORKS.get(name) or (OTHERS.get(name), [])
    mine = fork(replay_fork() if name == "replay" else apply(diff, GRPO), name)
    flags, clipped, count = [*TWO_STEPS, "--limit", 11, *flags], [], Meter.update
    spy = lambda self, batch, seen, **more: (clipped.append(int(seen[2].sum())), count(self, batch, seen=seen, **more))
    monkeypatch.setattr(Meter, "update", spy)

    def not_exact(*how):
        sampler = new_sampler(*how)
        sampler.exact, sample = False, sampler.sample
        sampler.sample = lambda *args, **more: [(*r[:2], r[2] * math.nan, r[3]) for r in sample(*args, **more)]
        return sampler

    with same_draws():
        assert train(tmp_path / "exact", *flags, module=mine) == 0
        one, clipped[:] = clipped[:], []
        with mock.patch("common.new_sampler", not_exact):
            assert train(tmp_path / "not", *flags, module=mine) == 0
    assert len(one) == 4 and clipped == pytest.approx(one, abs=1)
    names = ("loss", "grad_norm", "ratio_max", "lr", "reward", "accuracy", "kept", "length")
    for x, y in zip(*(read(tmp_path / run / "metrics.jsonl") for run in ("exact", "not")), strict=True):
        assert [x[name] for name in names] == pytest.approx([y[name] for name in names], rel=1e-3, abs=1e-4)


# ------------------------------------------------------------------------------------------------ a task of one's own
CHECK = r'''
def check(response, problem):
    """Half a point for a box, another half for one that takes few letters: this problem's budget."""
    return 0.5 * ("\\boxed{" in response) + 0.5 * ("\\boxed{" in response and len(response) <= problem["budget"])
'''


@pytest.fixture
def task(tmp_path, problems_file):
    """Problems without an answer, but with a column of their own, and the file of their check."""
    rows = [dict(problem=row["problem"], budget=28 + i % 3) for i, row in enumerate(read(problems_file))]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.py").write_text(CHECK)
    return SimpleNamespace(rows=rows, flags=["--data", tmp_path / "task.jsonl", "--check", tmp_path / "task.py"])


def test_a_task_of_ones_own_is_learned_and_its_rewards_are_the_checks(train, task, tmp_path):
    out = tmp_path / "run"
    flags = ["--steps", 5, "--eval_data", "", "--prompts_per_step", 16, "--lr", 1e-3]
    assert train(out, *flags, *task.flags) == 0
    space = {}
    exec(CHECK, space)
    for row in read(out / "samples.jsonl"):
        problem = next(p for p in task.rows if f">{p['problem']}<" in row["prompt"])
        assert row["reward"] == space["check"](row["response"].removesuffix("<|end|>"), problem)
        assert row["correct"] == (row["reward"] > 0.5) and row["answer"] is None
    rows = read(out / "metrics.jsonl")
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.1 and rows[-1]["length"] < rows[0]["length"]
    assert {row["check_errors"] for row in rows} == {0}


def test_a_check_that_a_fork_hands_over_is_the_same_as_one_named_by_a_flag(train, fork, task, tmp_path):
    space = {}
    exec(CHECK, space)
    mine = fork(changed(("common.Run(cfg)", "common.Run(cfg, check=check)")))
    mine.check = space["check"]
    assert train(tmp_path / "flag", *TWO_STEPS, *task.flags) == 0
    assert train(tmp_path / "fork", *TWO_STEPS, *task.flags[:2], module=mine) == 0
    assert_near(tmp_path / "flag", tmp_path / "fork", 0)


def test_readmes_task_writes_its_problems_and_its_check_reads_their_columns(train, tmp_path, capsys):
    blocks = re.findall(r"```python\n([^`]*)```", (ROOT / "README.md").read_text())
    found = [block for block in blocks if "def check(" in block]
    if not found:
        pytest.skip("README.md shows no check yet")
    (tmp_path / "task.py").write_text(found[0])
    exec(compile(found[0], "task.py", "exec"), dict(__name__="__main__"))
    (tmp_path / "task.jsonl").write_text(capsys.readouterr().out)
    flags = ["--data", tmp_path / "task.jsonl", "--check", tmp_path / "task.py"]
    assert train(tmp_path / "run", *TWO_STEPS, *flags) == 0
    rows = read(tmp_path / "run/metrics.jsonl")
    assert {row["check_errors"] for row in rows} == {0} and 0 <= rows[0]["accuracy"] < 1


# ------------------------------------------------------------------------------------------------ state of a fork
REPLAY = '''
def replay(rollouts, rewards, buffer):
    """Where all responses to a prompt are wrong, an earlier right one takes the place of the first."""
    responses, on_policy = list(rollouts.responses), rollouts.on_policy.clone()
    for i, problem in enumerate(rollouts.problems):
        if rewards[i].amax() > 0:
            buffer[problem["text"]] = responses[i * rollouts.n + int(rewards[i].argmax())]
        elif problem["text"] in buffer:
            responses[i * rollouts.n], on_policy[i, 0] = buffer[problem["text"]], False
    return common.Rollouts(rollouts.problems, responses, rollouts.keys, on_policy)


def main():'''
BEFORE = "        # --- the algorithm " + 81 * "-" + "\n"
DURING = """        rollouts = replay(rollouts, rewards, buffer)
        rewards = run.reward(rollouts)
        run.metrics["replayed"] = (~rollouts.on_policy).float().mean()
"""


def replay_fork() -> str:
    start = "    run = common.Run(cfg)\n"
    state = (start, start + '    run.checkpointed["buffer"] = buffer = {}\n')
    return changed(("def main():", REPLAY.strip()), state, (BEFORE, DURING + BEFORE))


def test_a_dict_of_a_fork_is_resumed_and_replayed_responses_are_off_policy(train, fork, tmp_path):
    """Eleven problems, the same in each step. The third step of a resumed run replays what the first two have seen: it
    is the same bit for bit. Replayed responses leave `mismatch` alone. A metric may be a tensor."""
    mine = fork(replay_fork())
    flags = ["--steps", 3, "--save_every", 2, "--eval_data", "", "--samples_per_prompt", 2, "--limit", 11]
    assert train(tmp_path / "whole", *flags, module=mine) == 0
    rows = read(tmp_path / "whole/metrics.jsonl")
    assert rows[-1]["replayed"] > 0 and all(row["mismatch"] < 1e-5 for row in rows)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for folder in ("step_000003", "final"):
        shutil.rmtree(tmp_path / "resumed" / folder)
    assert train(tmp_path / "resumed", *flags, "--resume", module=mine) == 0
    assert_near(tmp_path / "resumed", tmp_path / "whole", 0)
    assert same_weights(weights(tmp_path / "resumed/final"), weights(tmp_path / "whole/final"))
    files = [tmp_path / run / "step_000003/buffer.pt" for run in ("whole", "resumed")]
    one, two = (torch.load(file, weights_only=False) for file in files)
    assert one.keys() == two.keys() and len(one) > 1  # files of the same values may differ: pickle notes shared objects
    for prompt in one:
        assert all((x == y) if isinstance(x, bool) else (x == y).all() for x, y in zip(one[prompt], two[prompt]))


def test_mismatch_is_never_measured_after_an_update(train, fork, tmp_path):
    """Hot rollouts, which are off-policy, fill the first update; the weights that the second one sees have moved on."""
    sample = "        rollouts = run.sample()\n        rewards"
    hot_first = sample.replace("run.sample()", "run.sample(temperature=1.2) + run.sample()")
    assert train(tmp_path / "run", *TWO_STEPS, module=fork(changed((sample, hot_first)))) == 0
    for row in read(tmp_path / "run/metrics.jsonl"):
        assert row["grad_norm"] > 0 and row["mismatch"] is None


# ------------------------------------------------------------------------------------------------ slips
ADV = "        adv, keep = advantages(rewards, cfg)\n"
LOSS = "    return common.clipped_loss(new, tokens.old, tokens.adv, cfg)\n"
START = "    run = common.Run(cfg)\n"
LOG = "        run.log(rollouts, rewards)\n"
SLIPS = {
    "one advantage per prompt": (ADV, ADV + "        adv = adv.mean(1)\n", "adv is [11]; it needs [11, 4]"),
    "advantages on their side": (ADV, ADV + "        adv = adv.T\n", "adv is [4, 11]; it needs [11, 4]"),
    "a mask per prompt": (ADV, ADV + "        keep = common.mixed(rewards)\n", "keep is [11], torch.bool; it needs ["),
    "a mask of numbers": (ADV, ADV + "        keep = rewards\n", "keep is [11, 4], torch.float32; it needs [11, 4]"),
    "responses as tokens": (ADV, ADV + "        rollouts.tokens.mine = adv\n", "tokens.mine is [11, 4]; it needs ["),
    "a number as tokens": (ADV, ADV + "        rollouts.tokens.mine = 1.0\n", "tokens.mine is float; it needs ["),
    "a taken name": (ADV, ADV + "        rollouts.tokens.response = rollouts.tokens.sampler\n", "the name is taken"),
    "a loss already summed": (LOSS, "    return (-new * tokens.adv).sum()\n", "token_loss returned []; it needs ["),
    "no loss": (LOSS, "    -new * tokens.adv\n", "token_loss returned NoneType; it needs ["),
    "no log": (LOG, "", "step 1: the loop did not call run.log()"),
    "sums beside a loss": (LOSS, "    return -new * tokens.adv, {}\n", "token_loss returned tuple; it needs ["),
    "old logprobs too early": (ADV, ADV + "        adv = adv * rollouts.tokens.entropy.mean()\n",
                               "tokens.entropy is not computed yet; call run.old_logprobs(rollouts) before"),
    "state too late": (LOG, LOG + "        run.checkpointed['x'] = {}\n", "run.checkpointed['x']: it has to be there"),
    "state of no use": (START, START + "    run.checkpointed['x'] = []\n", "run.checkpointed['x'] is a list; it needs"),
}


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_is_one_line(train, fork, tmp_path, capsys, name):
    old, new, words = SLIPS[name]
    assert train(tmp_path / "run", *TWO_STEPS, module=fork(changed((old, new)))) == 2
    assert words in error_line(capsys)


@pytest.mark.parametrize("body, words", [
    ("problem['nope']", "it raised KeyError: 'nope'"),
    ("None", "it raised TypeError"),
    ("float('nan')", "it returned nan"),
])
def test_a_check_that_fails_counts_as_0_and_is_shown_once(train, problems_file, tmp_path, capsys, body, words):
    (tmp_path / "task.py").write_text(f"def check(response, problem):\n    return {body}\n")
    flags = [*TWO_STEPS, "--max_new_tokens", 24, "--check", tmp_path / "task.py"]
    assert train(tmp_path / "run", *flags) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "the check failed" in line]
    assert len(lines) == 1 and words in lines[0]
    rows = read(tmp_path / "run/metrics.jsonl")
    assert [row["check_errors"] for row in rows] == [44, 44] and [row["reward"] for row in rows] == [0, 0]


def test_a_loop_that_forgets_to_sync_still_samples_from_the_policy(train, fork, plain, tmp_path):
    """At least the first time: later a fork may have its reasons."""
    assert train(tmp_path / "run", *TWO_STEPS, module=fork(changed(("        run.sync()\n", "")))) == 0
    assert read(tmp_path / "run/metrics.jsonl")[0]["reward"] == plain[0]["reward"] > 0
