"""What every algorithm has to pass, the six here or, by `pytest --fork MINE.py`, a copy of your own: it is the same
after a resume, in micro-batches and on two processes, and bad input is one line."""

import shutil
import socket

import pytest
from conftest import ALGORITHMS, ROOT, TESTS, algorithm
from helpers import TORCHRUN, assert_near, assert_same_run, metrics, output_of, refused, same_draws, start, weights


@pytest.mark.fork
def test_a_resumed_run_is_the_same_bit_for_bit(train, few, three_steps, tmp_path, script):
    """Killed after its second step, whose checkpoint was the last, and while it wrote down the third."""
    out = tmp_path / "run"
    shutil.copytree(three_steps(script), out)
    for folder in ("final", "step_000003"):
        shutil.rmtree(out / folder)
    for name in ("metrics.jsonl", "samples.jsonl"):
        with open(out / name, "a") as file:
            file.write('{"step": 4, "rew')
    assert train(out, "--resume", base=few(script), module=script.module) == 0
    assert_same_run(out, three_steps(script), 3)


@pytest.mark.fork
def test_micro_batches_change_nothing(train, few, three_steps, tmp_path, script):
    """100 tokens: a response or two at a time, in place of all."""
    with same_draws(three_steps(script).with_name("draws")):
        assert train(tmp_path / "run", "--tokens_per_micro", 100, base=few(script), module=script.module) == 0
    assert_near(tmp_path / "run", three_steps(script))


IN_TURN = """
import runpy, sys
from helpers import same_draws
for path, flags, draws in {jobs!r}:
    sys.argv = [path, *flags]
    with same_draws(draws):
        runpy.run_path(path, run_name="__main__")
"""
CHANCE = ("--reward", "random:0.5")


@pytest.fixture(scope="session")
def two_processes(request, few, three_steps, tmp_path_factory):
    """two_processes(script, flags...): the folder of the three steps of three_steps(script, flags...), but under
    torchrun, which is started once for all six and for grpo.py with rewards by chance."""
    folder, made = tmp_path_factory.mktemp("two"), {}

    def start(pairs, path):
        jobs = []
        for script, flags in pairs:
            made[script.name, *flags] = out = folder / str(len(made))
            command = ["--out", str(out), *few(script), *flags]
            jobs.append((str(script.path), command, str(three_steps(script, *flags).with_name("draws"))))
        (folder / "in_turn.py").write_text(IN_TURN.format(jobs=jobs))
        text = output_of(*TORCHRUN, folder / "in_turn.py", PYTHONPATH=f"{path}:{ROOT}:{TESTS}")
        assert text.count("first prompt") == len(jobs)  # one of the two speaks

    def run(script, *flags):
        if not made and request.config.option.fork:
            start([(script, ())], script.path.parent)
        elif not made:
            start([*((algorithm(name), ()) for name in ALGORITHMS), (algorithm("grpo"), CHANCE)], ROOT)
        return made[script.name, *flags]

    return run


@pytest.mark.slow
@pytest.mark.fork
def test_two_processes_do_what_one_does(two_processes, three_steps, script):
    """Single weights may differ: where a gradient is all but 0, Adam's first steps are as long as anywhere, and
    rounding gives their direction. So the mean over all weights has to be small: 1/1000 of the learning rate."""
    assert_near(two_processes(script), three_steps(script))
    one, two = weights(three_steps(script) / "final"), weights(two_processes(script) / "final")
    gaps = {name: (one[name].float() - two[name].float()).abs() for name in one}
    assert sum(x.sum() for x in gaps.values()) / sum(x.numel() for x in gaps.values()) < 1e-7


@pytest.mark.fork
def test_an_unknown_flag_is_one_line_with_the_nearest_name(train, few, tmp_path, capsys, script):
    line = refused(train, tmp_path, capsys, "--prompt_per_step", 8, base=few(script), module=script.module)
    assert "--prompts_per_step" in line


@pytest.mark.fork
def test_a_missing_data_file_is_one_line(train, few, tmp_path, capsys, script):
    line = refused(train, tmp_path, capsys, "--data", "missing.jsonl", base=few(script), module=script.module)
    assert "missing.jsonl: no such file" in line


# ------------------------------------------------------------------------------------------------ the six alone
grpo_alone = pytest.mark.parametrize("script", ["grpo"], indirect=True)


def test_something_is_learned_in_every_step(three_steps, script):
    """These sizes were chosen so that test_every_algorithm.py compares more than skipped updates."""
    rows = metrics(three_steps(script))
    updates = 2 * getattr(script.module.Config(), "epochs", 1)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert sum(row["skipped_updates"] for row in rows) < 3 * updates / 2
    assert all(row["grad_norm"] > 0 and 0 < row["kept"] <= 1 and row["mismatch"] < 1e-5 for row in rows)
    two_updates = [row for row in rows if row["skipped_updates"] == 0]
    assert max(row["ratio_max"] for row in two_updates) > 1.001  # the second update leaves ratio 1


@pytest.mark.slow
@grpo_alone
def test_one_process_continues_what_two_processes_saved(train, few, two_processes, three_steps, tmp_path, script):
    out = tmp_path / "run"
    shutil.copytree(two_processes(script), out)
    for folder in ("final", "step_000003"):
        shutil.rmtree(out / folder)
    with same_draws(three_steps(script).with_name("draws")):
        assert train(out, "--resume", base=few(script), module=script.module) == 0
    assert_near(out, three_steps(script))


@pytest.mark.slow
@grpo_alone
def test_chance_does_not_depend_on_two_processes(two_processes, three_steps, script):
    assert_near(two_processes(script, *CHANCE), three_steps(script, *CHANCE))
    assert any(row["reward"] != row["accuracy"] for row in metrics(three_steps(script, *CHANCE)))


SWITCHES = ["--std false --loss_norm sequence", "--std false --loss_norm constant", "--reward random:0.5",
            "--kl_coef 0.01 --entropy_coef 0.01"]


@pytest.mark.slow
@grpo_alone
@pytest.mark.parametrize("flags", SWITCHES)
def test_micro_batches_change_nothing_with_these_switches(train, few, three_steps, tmp_path, script, flags):
    for tokens in (150, 4096):
        size = ["--tokens_per_micro", tokens, *flags.split()]
        with same_draws(tmp_path / "draws"):
            assert train(tmp_path / str(tokens), *size, base=few(script), module=script.module) == 0
    assert_near(tmp_path / "150", tmp_path / "4096")
    assert metrics(tmp_path / "150") != metrics(three_steps(script)), "the switches do something"


@pytest.mark.slow
@grpo_alone
def test_two_nodes_of_two_processes_with_a_copy_of_the_state_each_do_what_one_process_does(
        few, three_steps, tmp_path, script):
    """Two agents of torchrun on this machine. --shard_size 2: only sums of gradients go from node to node."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = ["--out", str(tmp_path / "run"), *few(script), "--shard_size", "2", "--tokens_per_micro", "200"]
    job = (str(script.path), flags, str(three_steps(script).with_name("draws")))
    (tmp_path / "in_turn.py").write_text(IN_TURN.format(jobs=[job]))
    agent = [*TORCHRUN[:3], "--nnodes", 2, "--nproc-per-node", 2, "--rdzv-backend", "c10d", "--rdzv-endpoint", address]
    nodes = [start(*agent, tmp_path / "in_turn.py", PYTHONPATH=f"{ROOT}:{TESTS}") for _ in range(2)]
    for text, status in [(node.communicate(timeout=600)[0], node.returncode) for node in nodes]:
        assert status == 0, text[-5000:]
    assert_near(tmp_path / "run", three_steps(script))
