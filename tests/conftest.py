"""What all tests share: how they are handed out to processes, `--fork`, the built-in model, small runs.

Nothing heavy is imported at the top, because the process that hands out the tests needs none of it."""

import contextlib
import importlib
import importlib.util
import json
import os
import re
import shlex
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: the tests run side by side, one thread each
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that needs the network would pass here and fail elsewhere

TESTS, ROOT = Path(__file__).parent, Path(__file__).parents[1]
ALGORITHMS = ["raft", "raft_pp", "reinforce_rej", "grpo", "iterative_dpo", "ppo"]
PROMPTS = ["(7+5)*3-8", "2*3+4", "9-8+7-6+5", "(12-8+2)*3-9+5", "1+1"]


# ------------------------------------------------------------------------------------------------ which tests, where
def pytest_configure(config):
    config.addinivalue_line("markers", "fork: what `pytest --fork MINE.py` runs on a script of your own")
    if config.option.fork:
        path, *flags = shlex.split(config.option.fork)
        path = (config.invocation_params.dir / path).resolve()
        if not path.is_file():
            raise pytest.UsageError(f"--fork {config.option.fork}: there is no file {path}")
        config.option.fork = shlex.join([str(path), *flags])
        config.option.markexpr = "fork"
        config.args[:] = [str(TESTS / "test_every_algorithm.py")]


def pytest_xdist_auto_num_workers(config):
    """Up to four processes. This one alone, which starts at once, for a single test, a single file or a fork; and for
    the tests of a GPU, which measure its memory."""
    few = config.option.fork or len(config.args) == 1 and ".py" in config.args[0] or config.option.markexpr == "gpu"
    return 0 if few or config.option.collectonly else min(4, os.cpu_count())


def pytest_generate_tests(metafunc):
    """A test that takes `script` runs on each of the six algorithms, or on the fork alone."""
    chosen = [mark for mark in metafunc.definition.iter_markers("parametrize") if "script" in mark.args[0]]
    if "script" in metafunc.fixturenames and not chosen:
        fork = metafunc.config.option.fork
        names = [Path(shlex.split(fork)[0]).stem] if fork else ALGORITHMS
        metafunc.parametrize("script", names, indirect=True, scope="session")


# The files that take longest, first; what is not listed comes after them.
ORDER = ["test_tiny.py", "test_policy.py", "test_resume.py", "test_vllm.py", "test_every_algorithm.py",
         "test_verify_hostile.py", "test_samplers.py", "test_runs.py", "test_eval.py", "test_folders.py",
         "test_hub.py", "test_verify.py"]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: ORDER.index(item.path.name) if item.path.name in ORDER else len(ORDER))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One process gets all tests of a file, so that no fixture is made twice; of test_every_algorithm.py, all tests of
    an algorithm, or all that need two processes. (--dist loadgroup does not work with pytest 9.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file, _, test = nodeid.partition("::")
            name, _, case = test.partition("[")
            parted = "test_every_algorithm" in file
            return ("two processes" if "two_processes" in name else re.split(r"[-\]]", case)[0]) if parted else file

    config.option.loadscopereorder = False
    return ByFile(config, log)


# ------------------------------------------------------------------------------------------------ model and problems
@pytest.fixture(scope="session")
def tiny_path() -> str:
    """The folder of the built-in model."""
    return str(ROOT / "models/tiny")


@pytest.fixture(scope="session")
def tokenizer(tiny_path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_path)


@pytest.fixture(scope="module")
def policy(tiny_path):
    """The built-in model without an optimizer; a module's own."""
    from core.policy import Policy

    return Policy(tiny_path, "cpu", vocab=261)


@pytest.fixture(scope="session")
def prompts(tokenizer):
    """The token ids of a few built-in problems, as prompts of unequal lengths."""
    import numpy as np

    from core.data import render

    texts = [render(text, "chat", tokenizer) for text in PROMPTS]
    return [np.array(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


@pytest.fixture(scope="session")
def problems_file(tmp_path_factory) -> Path:
    """48 of the built-in training problems as a local file; all 10,000 of them take seconds to write down."""
    from core import tiny

    file = tmp_path_factory.mktemp("data") / "problems.jsonl"
    rows = [dict(problem=row["problem"], answer=row["answer"]) for row in tiny.problems("train", 48)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


# ------------------------------------------------------------------------------------------------ small runs
# Eleven prompts: neither the processes nor the updates divide them.
SMALL = "--prompts_per_step 11 --max_new_tokens 40 --eval_problems 10 --eval_every 2 --lr 3e-4".split()
SMALL += ["--reference", "false"]


@pytest.fixture(scope="session")
def small(problems_file):
    """The flags of a small run: problems from a file, the same for evaluation."""
    return [*SMALL, "--data", str(problems_file), "--eval_data", str(problems_file)]


def not_drawn(script, out):
    """In place of plot.py and show.py, whose imports take longer than a small run."""
    file = {"plot.py": "curves.png", "show.py": "show.html"}[script]
    return SimpleNamespace(communicate=lambda: (f"{out}/{file}", ""), returncode=0)


@pytest.fixture(scope="session")
def train(small):
    """train(out, flags...) runs grpo.py, or another module, with these flags over the small ones, in this process; its
    exit status. curves: draw curves.png and show.html at the end. `patches` replace names of the module."""

    def run(out, *flags, base=small, curves=False, module=None, **patches) -> int:
        module = module or importlib.import_module("grpo")
        argv = [module.__file__, "--out", str(out), *base, *map(str, flags)]
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(mock.patch.object(sys, "argv", argv))
                if not curves:
                    stack.enter_context(mock.patch("core.record.start_drawing", not_drawn))
                for name, value in patches.items():
                    stack.enter_context(mock.patch.object(module, name, value))
                module.main()
            return 0
        except SystemExit as stop:
            return stop.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    return run


# ------------------------------------------------------------------------------------------------ algorithms and forks
def algorithm(name):
    """An algorithm's file: its `name`, `path` and `module`, and no `flags` of its own."""
    return SimpleNamespace(name=name, path=ROOT / f"{name}.py", module=importlib.import_module(name), flags=[])


@pytest.fixture(scope="session")
def script(request):
    """An algorithm's file, or the fork: its `name`, `path` and `module`, and the `flags` that came with --fork."""
    name, fork = request.param, request.config.option.fork
    if not fork:
        return algorithm(name)
    path, *flags = shlex.split(fork)
    sys.path.insert(0, str(Path(path).parent))
    spec = importlib.util.spec_from_file_location(f"fork_{name}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return SimpleNamespace(name=name, path=Path(path), module=module, flags=flags)


# More right answers at hand than in the other small runs; a seventh prompt that neither updates nor processes divide;
# a learning rate at which few pairs do not spoil the model.
FEW = ["--lr", "1e-4", "--prompts_per_step", "7", "--updates_per_step", "2", "--eval_every", "0", "--eval_data", ""]
THREE_STEPS = ["--steps", "3", "--save_every", "2"]


@pytest.fixture(scope="session")
def few(small):
    """few(script): the flags of the runs that compare an algorithm with itself."""
    return lambda script: [*small, *FEW, *THREE_STEPS, *script.flags]


@pytest.fixture(scope="session")
def three_steps(train, few, tmp_path_factory):
    """three_steps(script, flags...): the folder of three steps in one go, with checkpoints after the second and the
    third. Its draws are beside it, in the file `draws`, for runs that have to make the same ones."""
    from helpers import same_draws

    made = {}

    def run(script, *flags):
        if (script.name, *flags) not in made:
            made[script.name, *flags] = out = tmp_path_factory.mktemp(script.name) / "run"
            with same_draws(out.with_name("draws")):
                assert train(out, *flags, base=few(script), module=script.module) == 0
            rows = [json.loads(line) for line in open(out / "metrics.jsonl")]
            assert any(row.get("grad_norm") for row in rows), "nothing was learned in three steps"
        return made[script.name, *flags]

    return run
