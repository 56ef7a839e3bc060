"""Configuration, the clipped ratio and the KL estimate."""

import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import common
import grpo

CLIP = SimpleNamespace(clip=True, clip_low=0.2, clip_high=0.2, dual_clip=0.0)
DUAL = SimpleNamespace(clip=True, clip_low=0.2, clip_high=0.2, dual_clip=3.0)
FREE = SimpleNamespace(clip=False, clip_low=0.2, clip_high=0.2, dual_clip=0.0)
HIGHER = SimpleNamespace(clip=True, clip_low=0.1, clip_high=0.28, dual_clip=0.0)


def parse(*argv):
    return common.parse(grpo.Config, "doc", list(argv))


# ------------------------------------------------------------------------------------------------ configuration
def test_explicit_flags_win_over_the_alias_and_the_alias_over_the_defaults():
    default = grpo.Config()
    assert (default.lr, default.data, default.prompts_per_step) == (1e-6, "numina-math", 1024)
    cfg = parse("--model", "tiny", "--lr", "0.5")
    assert cfg.lr == 0.5  # the flag
    assert (cfg.data, cfg.prompts_per_step) == ("tiny", 64)  # the alias
    assert (cfg.samples_per_prompt, cfg.clip_low) == (default.samples_per_prompt, default.clip_low)  # the default


def test_a_flag_equal_to_the_default_wins_over_the_alias_too():
    assert parse("--model", "tiny", "--lr", "1e-6").lr == 1e-6
    assert parse("--model=tiny", "--eval_data=").eval_data == ""


def test_the_alias_may_be_written_either_way_and_anywhere():
    alias = "qwen2.5-math-7b"
    for argv in (["--model", alias], [f"--model={alias}"], ["--seed", "1", f"--model={alias}", "--steps", "2"]):
        cfg = parse(*argv)
        assert (cfg.model, cfg.template, cfg.lr) == (alias, "qwen-math", 1e-6)


def test_a_model_that_is_no_alias_has_the_defaults():
    cfg = parse("--model", "some/folder")
    assert (cfg.data, cfg.template, cfg.steps) == ("numina-math", "chat", grpo.Config().steps)


def test_without_arguments_the_tiny_model_is_trained():
    cfg = parse()
    assert (cfg.model, cfg.data, cfg.eval_data) == ("tiny", "tiny", "tiny-test")


def test_the_papers_defaults():
    """arXiv 2504.11343, section 3: 1,024 prompts of n = 4, mini-batches of 512 prompts, lr 1e-6, clip 0.2, T = 1."""
    cfg = parse("--model", "qwen2.5-math-7b")
    assert (cfg.prompts_per_step, cfg.samples_per_prompt, cfg.updates_per_step) == (1024, 4, 2)
    assert (cfg.lr, cfg.clip_low, cfg.clip_high, cfg.temperature, cfg.max_grad_norm) == (1e-6, 0.2, 0.2, 1.0, 1.0)
    assert (cfg.kl_coef, cfg.entropy_coef, cfg.loss_norm, cfg.tis_cap) == (0, 0, "token", 2)


def test_booleans():
    assert parse().std is True and parse().resume is False
    assert parse("--std", "false").std is False
    assert parse("--resume").resume is True


def test_the_output_folder_names_model_and_seed():
    assert parse("--seed", "3").out.endswith("-tiny-s3")
    assert parse("--model", "some/folder").out.endswith("-folder-s0")
    assert parse("--out", "here").out == "here"


def test_every_alias_fills_fields_that_exist():
    names = {field.name for field in fields(common.Config)}
    for alias, (source, defaults) in common.MODELS.items():
        assert set(defaults) <= names and source, alias
        assert parse("--model", alias).model == alias


def test_a_copied_algorithm_may_add_fields():
    @dataclass
    class Config(common.Config):
        beta: float = common.arg(0.1, "a field of its own")

    assert common.parse(Config, "doc", ["--beta", "0.3"]).beta == 0.3


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        common.parse(grpo.Config, grpo.__doc__, ["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in fields(grpo.Config):
        assert f"--{field.name} " in text and field.metadata["help"], field.name
        assert " ".join(field.metadata["help"].split()) in text, field.name
    assert "(default: 0.28)" not in text and "(default: 0.2)" in text
    assert " ".join(grpo.__doc__.split()) in text


# ------------------------------------------------------------------------------------------------ errors of flags
def refused(capsys, *argv) -> str:
    """The one line that this command line is refused with."""
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("typo, meant", [("--temprature", "--temperature"), ("--prompt_per_step", "--prompts_per_step"),
                                         ("--learning-rate=1", ""), ("--std_dev", "")])  # fmt: skip
def test_an_unknown_flag_is_an_error_with_the_nearest_valid_name(capsys, typo, meant):
    line = refused(capsys, typo, "1")
    assert typo.split("=")[0] in line and meant in line


def test_a_flag_is_not_completed(capsys):
    """--clip_hi would be taken for --clip_high: a script that says so breaks when another flag appears."""
    assert "--clip_high" in refused(capsys, "--clip_hi", "0.3")


@pytest.mark.parametrize("argv, says", [
    (["--steps", "many"], ["steps", "many"]),
    (["--lr", "fast"], ["lr", "fast"]),
    (["--loss_norm", "tokens"], ["loss_norm", "tokens", "sequence"]),
    (["--std", "perhaps"], ["std"]),
    (["--steps"], ["steps"]),
    (["--model"], ["model"]),
    (["tiny"], ["tiny"]),
])  # fmt: skip
def test_a_bad_value_is_named(capsys, argv, says):
    line = refused(capsys, *argv)
    assert all(word in line for word in says), line


@pytest.mark.parametrize("value", ["0", "-1"])
@pytest.mark.parametrize("name", ["steps", "prompts_per_step", "samples_per_prompt", "updates_per_step", "lr",
                                  "max_grad_norm", "max_prompt_tokens", "max_new_tokens", "temperature",
                                  "tokens_per_micro", "eval_problems"])  # fmt: skip
def test_numbers_that_must_be_positive(capsys, name, value):
    line = refused(capsys, f"--{name}", value)
    assert name in line and value in line


@pytest.mark.parametrize("flag", ["--seed", "--limit", "--eval_every", "--save_every", "--tis_cap"])
def test_numbers_that_must_not_be_negative(capsys, flag):
    assert flag in refused(capsys, flag, "-1")


def test_not_a_number_is_refused(capsys):
    assert "nan" in refused(capsys, "--lr", "nan")


def test_the_error_of_a_real_process(tmp_path):
    """As a user meets it: status 2, the one line, and no traceback."""
    script = grpo.__file__
    done = subprocess.run([sys.executable, script, "--temprature", "1"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and "did you mean --temperature" in done.stderr
    assert not list(tmp_path.iterdir())


def test_out_of_memory_names_the_flags_to_lower(tmp_path):
    script = "import common, torch; raise torch.OutOfMemoryError('CUDA out of memory')"
    root = Path(common.__file__).parent
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 1 and "--tokens_per_micro" in last and "--vllm_memory" in last


# ------------------------------------------------------------------------------------------------ the clipped ratio
def loss_and_gradient(ratio, adv, cfg):
    """Loss and d(loss)/d(new) of one token. Where nothing binds the loss is -s A and so is its derivative."""
    new = torch.tensor([ratio], dtype=torch.float64).log().requires_grad_()
    loss = common.clipped_loss(new, torch.zeros(1, dtype=torch.float64), torch.tensor([adv], dtype=torch.float64), cfg)
    loss.sum().backward()
    return loss.item(), new.grad.item()


@pytest.mark.parametrize("ratio, adv, loss, gradient", [
    (1.0, 2.0, -2.0, -2.0),
    (1.1, 2.0, -2.2, -2.2),  # inside the band
    (1.5, 2.0, -2.4, 0.0),  # raised enough: clipped at 1.2
    (0.5, 2.0, -1.0, -1.0),  # a good token that fell is pulled back: min takes the unclipped side
    (1.1, -2.0, 2.2, 2.2),
    (0.5, -2.0, 1.6, 0.0),  # lowered enough: clipped at 0.8
    (1.5, -2.0, 3.0, 3.0),  # a bad token that rose is pushed down, without bound
    (1.5, 0.0, 0.0, 0.0),
])  # fmt: skip
def test_clipped_loss_by_hand(ratio, adv, loss, gradient):
    assert loss_and_gradient(ratio, adv, CLIP) == pytest.approx((loss, gradient))


@pytest.mark.parametrize("ratio, adv, loss, gradient", [
    (2.9, -2.0, 5.8, 5.8),  # below the third bound
    (5.0, -2.0, 6.0, 0.0),  # at most 3 x |A|, and no gradient there
    (0.5, -2.0, 1.6, 0.0),  # the lower clip as before
    (5.0, 2.0, -2.4, 0.0),  # positive advantages are as before
    (0.1, 2.0, -0.2, -0.2),
])  # fmt: skip
def test_dual_clip_by_hand(ratio, adv, loss, gradient):
    assert loss_and_gradient(ratio, adv, DUAL) == pytest.approx((loss, gradient))


@pytest.mark.parametrize("ratio", [0.1, 0.9, 1.0, 1.5, 7.0])
@pytest.mark.parametrize("adv", [-2.0, 3.0])
def test_without_clip_the_loss_is_minus_ratio_times_advantage(ratio, adv):
    assert loss_and_gradient(ratio, adv, FREE) == pytest.approx((-ratio * adv, -ratio * adv))


def reference_loss(new, old, adv, cfg) -> float:
    """One token, in Python's own floats and as the papers print it."""
    ratio = 2.718281828459045 ** (new - old)
    if not cfg.clip:
        return -ratio * adv
    clipped = min(max(ratio, 1 - cfg.clip_low), 1 + cfg.clip_high)
    value = min(ratio * adv, clipped * adv)
    if cfg.dual_clip and adv < 0:
        value = max(value, cfg.dual_clip * adv)
    return -value


@pytest.mark.parametrize("cfg", [CLIP, DUAL, FREE, HIGHER], ids=["clip", "dual", "free", "clip-higher"])
def test_clipped_loss_against_an_independent_one(cfg):
    random = torch.Generator().manual_seed(0)
    old = -3 * torch.rand(500, generator=random, dtype=torch.float64)
    new = (old + 0.6 * torch.randn(500, generator=random, dtype=torch.float64)).requires_grad_()
    adv = torch.randn(500, generator=random, dtype=torch.float64)
    loss = common.clipped_loss(new, old, adv, cfg)
    expected = [reference_loss(*token, cfg) for token in zip(new.tolist(), old.tolist(), adv.tolist())]
    assert loss.tolist() == pytest.approx(expected, abs=1e-6)

    loss.sum().backward()
    ratio = (new.detach() - old).exp()
    binds = ((adv > 0) & (ratio > 1 + cfg.clip_high)) | ((adv < 0) & (ratio < 1 - cfg.clip_low))
    if cfg.dual_clip:
        binds |= (adv < 0) & (ratio > cfg.dual_clip)
    binds &= torch.tensor(cfg.clip)
    assert binds.sum() > 50 or not cfg.clip
    assert torch.equal(new.grad == 0, binds)  # exactly there and nowhere else
    assert torch.allclose(new.grad[~binds], (-ratio * adv)[~binds], atol=1e-6)


def test_clip_stats_count_as_ppo_does():
    """clip_low counts tokens that a negative advantage drove under 0.8, clip_high those that a positive one drove over
    1.2: the tokens without gradient, not all outside of the band. Of the four outside here one each is counted."""
    ratio = torch.tensor([0.5, 0.5, 1.5, 1.5, 0.9, 1.1, 1.0, 1.0])
    adv = torch.tensor([-1.0, 1, 1, -1, -1, 1, 1, -1])
    new = ratio.log()
    stats = common.clip_stats(new, torch.zeros(8), adv, new + 0.25, CLIP)
    assert (int(stats["clip_low"]), int(stats["clip_high"])) == (1, 1)
    assert float(stats["ratio_max"]) == pytest.approx(1.5)
    assert float(stats["mismatch"]) == pytest.approx(8 * 0.25)  # a sum over tokens, here of |new - sampler|
    assert float(stats["mismatch_max"]) == pytest.approx(0.25)


def test_clip_stats_use_both_bounds():
    new = torch.tensor([0.85, 1.25, 0.7, 1.4]).log()
    adv = torch.tensor([-1.0, 1, -1, 1])
    stats = common.clip_stats(new, torch.zeros(4), adv, new, HIGHER)
    assert (int(stats["clip_low"]), int(stats["clip_high"])) == (2, 1)


# ------------------------------------------------------------------------------------------------ KL
def test_kl_k3_by_hand():
    """d = ref - logprob. d = 0: 0; d = ln 2: 2 - 0.693147 - 1; d = -ln 2: 1/2 + 0.693147 - 1; beyond 10: cut at 10."""
    ref = torch.tensor([0.0, 0.693147, -0.693147, 50.0])
    kl = common.kl_k3(torch.zeros(4), ref)
    assert kl[:3].tolist() == pytest.approx([0, 0.306853, 0.193147], abs=1e-6)
    assert kl[3].item() == pytest.approx(22026.46579 - 11, rel=1e-6)


def test_kl_k3_is_never_negative_and_its_gradient_pulls_towards_the_reference():
    logprob = torch.linspace(-8, 0, 1001, dtype=torch.float64).requires_grad_()
    kl = common.kl_k3(logprob, torch.full_like(logprob, -4))
    assert (kl >= 0).all() and kl.argmin() == 500
    kl.sum().backward()
    assert (logprob.grad[:500] < 0).all() and (logprob.grad[501:] > 0).all()


def test_kl_k3_has_the_mean_of_the_exact_kl():
    """Summed over a distribution p: sum p (r/p - log(r/p) - 1) = 1 + KL(p || r) - 1."""
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    r = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    exact = 0.5 * 0.9162907 + 0.3 * 0.4054651 + 0.2 * -1.0986123  # 0.3600624
    assert (p * common.kl_k3(p.log(), r.log())).sum().item() == pytest.approx(exact, abs=1e-6)


def test_the_metric_names_are_those_that_every_algorithm_shares():
    assert common.METRICS == (
        "step reward accuracy all_correct all_wrong kept loss entropy kl clip_low clip_high ratio_max grad_norm lr "
        "mismatch mismatch_max length truncated boxed verify_timeouts skipped_updates time_sample time_verify "
        "time_train time_sync tokens_per_second eval_accuracy").split()  # fmt: skip
