"""From the command line to a configuration: what wins over what, what is refused, and what a refusal says."""

import importlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

import common
import grpo
import iterative_dpo
import ppo
from core import config


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


def test_a_model_that_is_no_alias_has_the_defaults_of_a_real_model():
    """A run of a day that shows its first accuracy at the end, or fills the disk, helps nobody."""
    cfg = parse("--model", "some/model")
    assert (cfg.data, cfg.template, cfg.steps) == ("numina-math", "auto", grpo.Config().steps)
    assert (cfg.eval_data, cfg.eval_every, cfg.save_every, cfg.keep) == ("math500", 20, 20, 2)
    cfg = parse("--model", "some/model", "--template", "plain", "--eval_data", "", "--keep", "0")
    assert (cfg.template, cfg.eval_data, cfg.keep, cfg.save_every) == ("plain", "", 0, 20)  # explicit flags win


def test_a_model_in_the_folder_of_a_training_run_takes_nothing_special(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    cfg = parse("--model", str(tmp_path / "final"))
    assert (cfg.template, cfg.eval_data, cfg.save_every) == ("chat", "", 0)


@pytest.mark.parametrize("template, chat, chosen", [("auto", "{{ messages }}", "cot"), ("auto", None, "plain"),
                                                    ("r1", None, "r1")])
def test_the_template_auto_depends_on_the_tokenizer(template, chat, chosen):
    assert common.choose_template(template, SimpleNamespace(chat_template=chat)) == chosen


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


@pytest.mark.parametrize("alias", [alias for alias in common.MODELS if not alias.startswith(("tiny", "smollm2"))])
def test_a_real_model_is_evaluated_and_saved_now_and_then(alias):
    cfg = parse("--model", alias)
    assert (cfg.eval_data, cfg.eval_every, cfg.save_every, cfg.keep) == ("math500", 20, 20, 2)


def test_a_laptop_needs_no_flag_for_a_real_model():
    cfg = parse("--model", "smollm2-135m-instruct")
    assert (cfg.data, cfg.eval_data, cfg.template) == ("easy", "easy-test", "easy")
    assert (cfg.prompts_per_step, cfg.samples_per_prompt, cfg.steps, cfg.keep) == (16, 8, 20, 1)


def test_a_folder_in_models_comes_before_the_hub(tmp_path, monkeypatch, tiny_path):
    """Where the hub is out of reach, a folder or a link there makes an alias work, with its defaults."""
    monkeypatch.setattr(config, "ROOT", tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/qwen2.5-0.5b").symlink_to(tiny_path)
    assert config.find_model("qwen2.5-0.5b", "model")[0] == str(tmp_path / "models/qwen2.5-0.5b")
    with pytest.raises(SystemExit):
        config.find_model("qwen2.5-1.5b", "model")


def test_the_tiny_models_keep_a_reference():
    """It costs nothing there, and curves.png then shows the KL."""
    assert parse().reference is True and parse("--model", "qwen2.5-0.5b").reference is False


def test_a_copied_algorithm_may_add_fields():
    """With bounds or without them: most of what a fork tries out has none."""

    @dataclass
    class Config(common.Config):
        beta: float = common.arg(-1.0, "a field of its own")
        share: float = common.arg(0.5, "another one", least=0, most=1)
        name: str = common.arg("x", "a word")

    cfg = common.parse(Config, "doc", ["--beta", "-7", "--share", "1"])
    assert (cfg.beta, cfg.share, cfg.name) == (-7.0, 1.0, "x")
    with pytest.raises(SystemExit):
        common.parse(Config, "doc", ["--share", "1.01"])


def test_a_percent_sign_in_a_help_text_is_only_that(capsys):
    """argparse formats help texts with %, and a lone one would end --help with a traceback."""

    @dataclass
    class Config(common.Config):
        top: float = common.arg(0.2, "keep the 20 % highest, %s or not")

    with pytest.raises(SystemExit) as stop:
        common.parse(Config, "doc", ["--help"])
    assert stop.value.code == 0
    assert "--top 0.2 keep the 20 % highest, %s or not" in " ".join(capsys.readouterr().out.split())


# ------------------------------------------------------------------------------------------------ --help
def help_of(capsys, monkeypatch, module, *argv, width=100) -> list[str]:
    """The lines of --help on a terminal of this width."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "argv", [module.__file__])
    with pytest.raises(SystemExit) as stop:
        common.parse(module.Config, module.__doc__, [*argv, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("name", ["raft", "raft_pp", "reinforce_rej", "grpo", "ppo", "iterative_dpo", "eval"])
def test_help_explains_every_flag_once_and_fits(capsys, monkeypatch, name):
    module = importlib.import_module(name)
    lines = help_of(capsys, monkeypatch, module)
    assert len(lines) <= 110 and max(map(len, lines)) <= 100
    assert lines[0] == f"usage: python {name}.py [--flag value] [--switch] ..."
    text = " ".join(" ".join(lines).split())
    for field in fields(module.Config):
        assert sum(line.startswith(f"  --{field.name} ") for line in lines) == 1, field.name
        assert " ".join(field.metadata["help"].replace("%%", "%").split()) in text, field.name
    assert " ".join(module.__doc__.split()) in text
    assert "--no_" not in text and "--max-new-tokens" not in text  # one spelling per flag


def test_help_begins_with_the_methods_own_flags_and_has_the_headings_of_config(capsys, monkeypatch):
    lines = help_of(capsys, monkeypatch, grpo)
    lines = lines[lines.index("grpo.py alone:") :]
    headings = [line for line in lines if line.endswith(":") and line[0] != " "]
    assert headings == ["grpo.py alone:", "model and problems:", "size of the run:", "reward:", "update:",
                        "memory and processes:", "sampler:", "evaluation, checkpoints, logs:"]
    place = {line.split()[0]: i for i, line in enumerate(lines) if line.startswith("  --")}
    assert lines.index("grpo.py alone:") < place["--clip_high"] < lines.index("model and problems:")
    assert lines.index("update:") < place["--lr"] < lines.index("memory and processes:")


def test_help_shows_the_defaults_that_suit_the_model(capsys, monkeypatch):
    assert any(line.startswith("  --lr 1e-4 ") for line in help_of(capsys, monkeypatch, grpo))
    lines = help_of(capsys, monkeypatch, grpo, "--model", "qwen3-4b-base")
    for default in ("--lr 1e-6", "--template cot", "--eval_data math500", '--system ""', "--std true"):
        assert any(line.startswith(f"  {default} ") for line in lines), default


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_help_is_as_wide_as_the_terminal(capsys, monkeypatch, width):
    assert width - 3 <= max(map(len, help_of(capsys, monkeypatch, grpo, width=width))) <= width


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
                                         ("--learning-rate=1", ""), ("--std_dev", "")])
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
    (["--loss_norm", "tokns"], ["did you mean token?"]),
    (["--sampler", "vlm"], ["--sampler", "vlm", "did you mean vllm?"]),
    (["--std", "perhaps"], ["std", "perhaps", "true or false"]),
    (["--steps"], ["steps"]),
    (["--model"], ["model"]),
    (["tiny"], ["tiny"]),
])
def test_a_bad_value_is_named(capsys, argv, says):
    line = refused(capsys, *argv)
    assert all(word in line for word in says), line


@pytest.mark.parametrize("flag, value, says", [
    ("steps", "0", "--steps 0: must be 1 or above"),
    ("prompts_per_step", "0", "must be 1 or above"),
    ("samples_per_prompt", "-1", "must be 1 or above"),
    ("updates_per_step", "0", "must be 1 or above"),
    ("max_prompt_tokens", "0", "must be 1 or above"),
    ("max_new_tokens", "-1", "must be 1 or above"),
    ("tokens_per_micro", "-1", "must be 0 or above"), ("recompute", "-2", "must be -1 or above"),
    ("eval_problems", "0", "must be 1 or above"),
    ("votes", "0", "must be 1 or above"),
    ("tp", "0", "must be 1 or above"),
    ("lr", "0", "--lr 0.0: must be above 0"),
    ("lr", "-1e-6", "must be above 0"),
    ("max_grad_norm", "0", "must be above 0"),
    ("temperature", "0", "must be above 0"),
    ("temperature", "-1", "must be above 0"),
    ("seed", "-1", "--seed -1: must be 0 or above"),
    ("limit", "-1", "must be 0 or above"),
    ("eval_every", "-1", "must be 0 or above"),
    ("save_every", "-1", "must be 0 or above"),
    ("keep", "-1", "must be 0 or above"),
    ("tis_cap", "-1", "must be 0 or above"),
    ("kl_coef", "-0.1", "must be 0 or above"),
    ("entropy_coef", "-0.1", "must be 0 or above"),
    ("shard_size", "-1", "must be 0 or above"),
    ("clip_low", "-0.1", "must be 0 or above"),
    ("dual_clip", "-3", "must be 0 or above"),
    ("vllm_memory", "-0.1", "must be 0 or above"),
    ("vllm_memory", "1.1", "--vllm_memory 1.1: must be 1 or below"),
])
def test_a_number_outside_its_bounds_is_refused(capsys, flag, value, says):
    line = refused(capsys, f"--{flag}={value}")
    assert line.startswith(f"error: --{flag} ") and says in line


@pytest.mark.parametrize("flag", ["lr", "temperature", "tis_cap", "vllm_memory"])
def test_not_a_number_is_outside_of_all_bounds(capsys, flag):
    assert f"--{flag} nan: must be " in refused(capsys, f"--{flag}", "nan")


@pytest.mark.parametrize("config, flag, bad, good", [
    (ppo.Config, "gamma", "1.01", "1"), (ppo.Config, "lam", "-0.1", "0"), (ppo.Config, "value_clip", "-1", "0"),
    (iterative_dpo.Config, "label_smoothing", "0.51", "0.5"), (iterative_dpo.Config, "beta", "0", "0.01"),
    (iterative_dpo.Config, "epochs", "0", "1"),
])
def test_the_bounds_of_an_algorithms_own_fields(capsys, config, flag, bad, good):
    assert common.parse(config, "doc", [f"--{flag}", good])
    with pytest.raises(SystemExit):
        common.parse(config, "doc", [f"--{flag}", bad])
    assert f"error: --{flag} " in capsys.readouterr().err


def test_the_error_of_a_real_process(tmp_path):
    """As a user meets it: status 2, the one line, and no traceback."""
    script = grpo.__file__
    done = subprocess.run([sys.executable, script, "--temprature", "1"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and "did you mean --temperature" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_common_may_be_the_only_import_and_tells_what_to_lower_when_memory_runs_out():
    """It sets what has to be set before torch and transformers come, and brings them along."""
    script = ("import common, torch; cfg = common.parse(common.Config, 'doc', [])\n"
              "print(cfg.model, common.Run.__name__)\n"
              "raise torch.OutOfMemoryError('CUDA out of memory')")
    root = Path(common.__file__).parent
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
    assert (done.returncode, done.stdout) == (1, "tiny Run\n")
    *traceback, last = done.stderr.strip().splitlines()
    assert traceback[0].startswith("Traceback") and "CUDA out of memory" in traceback[-1]
    assert "--tokens_per_micro" in last and "--vllm_memory" in last


@pytest.mark.parametrize("flag", ["model", "teacher"])
def test_an_alias_that_cannot_be_downloaded_is_no_typing_error(capsys, flag):
    """The tests are offline. "Did you mean qwen2.5-0.5b?" would be no help to one who has typed just that."""
    with pytest.raises(SystemExit) as stop:
        common.find_model("qwen2.5-0.5b", flag)
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1
    assert line.startswith(f"error: --{flag} qwen2.5-0.5b: Qwen/Qwen2.5-0.5B could not be downloaded (")
    assert "local folder" in line and "did you mean" not in line


@pytest.mark.parametrize("typo, says", [
    ("tinny", "did you mean tiny?"), ("qwen2.5-math-7", "did you mean qwen2.5-math-7b?"), ("./nowhere", "./nowhere"),
])
def test_an_unknown_model(capsys, typo, says):
    with pytest.raises(SystemExit):
        common.find_model(typo, "model")
    line = capsys.readouterr().err
    assert line.startswith(f"error: --model {typo}: ") and says in line and line.count("\n") == 1


# ------------------------------------------------------------------------------------------------ models that don't fit
def model_folder(tiny_path, tmp_path, **changes):
    """A copy of the built-in model, some of whose files have other values: {file: {name: value}}."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_path, folder)
    for name, values in changes.items():
        file = folder / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


def refusal(capsys, folder) -> str:
    with pytest.raises(SystemExit) as stop:
        common.find_model(str(folder), "model")
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1 and line.startswith(f"error: --model {folder}: ")
    return line


def test_a_tokenizer_that_does_not_give_back_what_it_reads_is_refused(tiny_path, tmp_path, capsys):
    """transformers 5 makes its own tokenizer for some kinds of models, whatever tokenizer.json says (its issue 48206).
    This one, of bytes, becomes a Llama tokenizer, which drops all spaces."""
    wrong = dict(config=dict(model_type="llama"), tokenizer_config=dict(tokenizer_class="LlamaTokenizer"))
    folder = model_folder(tiny_path, tmp_path, **wrong)
    line = refusal(capsys, folder)
    assert "does not give back what it reads" in line and "weneedtoadd" in line and "'we need to add" in line


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(tiny_path, tmp_path, capsys):
    """Its first prompt would end in an IndexError. A placeholder for images, as Gemma 3 has one, does no harm."""
    for token, fits in (("<image_soft_token>", True), ("<|pad|>", False)):
        folder = model_folder(tiny_path, tmp_path / token.strip("<|>"))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens(dict(additional_special_tokens=[token]))
        tokenizer.save_pretrained(folder)
        if fits:
            assert len(common.find_model(str(folder), "model")[2]) == 262
        else:
            line = refusal(capsys, folder)
            assert "262 tokens" in line and "261 rows" in line and token in line


def test_a_model_without_an_end_token_is_refused(tiny_path, tmp_path, capsys):
    nothing = dict(eos_token_id=None)
    folder = model_folder(tiny_path, tmp_path, config=nothing, generation_config=nothing,
                          tokenizer_config=dict(eos_token=None))
    assert "names an end token" in refusal(capsys, folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 260}')  # is enough
    assert common.find_model(str(folder), "model")


def test_the_end_token_may_be_number_0_and_there_may_be_several():
    tokenizer = SimpleNamespace(eos_token_id=5)
    assert config.end_tokens(SimpleNamespace(eos_token_id=0), tokenizer) == {0, 5}
    assert config.end_tokens(SimpleNamespace(eos_token_id=[0, 3]), tokenizer) == {0, 3, 5}
    assert config.end_tokens(SimpleNamespace(eos_token_id=None), tokenizer) == {5}
    assert config.end_tokens(SimpleNamespace(eos_token_id=0), SimpleNamespace(eos_token_id=None)) == {0}


@pytest.mark.parametrize("files, says", [(["pytorch_model.bin"], "no weights in safetensors"),
                                         ([], "no weights in safetensors")])
def test_a_model_without_safetensors_is_refused_before_anything_is_loaded(tiny_path, tmp_path, capsys, files, says):
    folder = model_folder(tiny_path, tmp_path)
    (folder / "model.safetensors").unlink()
    for name in files:
        (folder / name).write_bytes(b"PK")
    assert says in refusal(capsys, folder)


def test_code_that_comes_with_a_model_is_never_run_nor_asked_about(tiny_path, tmp_path, capsys, monkeypatch):
    auto = dict(AutoConfig="own.OwnConfig", AutoModelForCausalLM="own.OwnModel")
    folder = model_folder(tiny_path, tmp_path, config=dict(auto_map=auto, model_type="own"))
    (folder / "own.py").write_text("open('was_run', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *text: pytest.fail(f"asked: {text}"))
    assert "code of its own" in refusal(capsys, folder)
    assert not (tmp_path / "was_run").exists()
