"""What the tests share: torch's threads wait quietly, the hub is never asked, a small set of problems, small runs."""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from unittest import mock

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch is imported: threads that spin crawl on a shared core
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that needs the network would pass here and fail elsewhere

import numpy as np
import pytest
import torch

import grpo
import tiny
from core.data import render
from core.policy import Policy

ROOT = Path(__file__).parents[1]
PROMPTS = ["(7+5)*3-8", "2*3+4", "9-8+7-6+5", "(12-8+2)*3-9+5", "1+1"]


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
    return Policy(tiny_path, "cpu", vocab=261)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    """The token ids of a few built-in problems, as prompts of unequal lengths."""
    texts = [render(text, "chat", tokenizer) for text in PROMPTS]
    return [np.array(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


@pytest.fixture(scope="session")
def problems_file(tmp_path_factory) -> Path:
    """48 of the built-in training problems as a local file; all 20,000 of them take seconds to write down."""
    file = tmp_path_factory.mktemp("data") / "problems.jsonl"
    rows = [dict(problem=row["problem"], answer=row["answer"]) for row in tiny.problems("train", 48)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


# Eleven prompts: neither the processes nor the updates divide them. Two threads: sums are rounded as in a subprocess.
SMALL = "--prompts_per_step 11 --max_new_tokens 40 --eval_problems 10 --eval_every 2 --lr 3e-4".split()
SMALL += ["--reference", "false"]
THREADS = 2


@pytest.fixture(scope="session")
def small(problems_file):
    """The flags of a small run: problems from a file, the same for evaluation."""
    return [*SMALL, "--data", str(problems_file), "--eval_data", str(problems_file)]


@pytest.fixture(scope="session")
def train(small):
    """train(out, flags...) runs grpo.py, or another module, with these flags over the small ones, in this process; its
    exit status. `patches` replace names of the module."""

    def run(out, *flags, base=small, curves=False, module=grpo, **patches) -> int:
        argv = [module.__file__, "--out", str(out), *base, *map(str, flags)]
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        threads = torch.get_num_threads()
        torch.set_num_threads(THREADS)
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(mock.patch.object(sys, "argv", argv))
                if not curves:
                    stack.enter_context(mock.patch("plot.draw"))
                for name, value in patches.items():
                    stack.enter_context(mock.patch.object(module, name, value))
                module.main()
            return 0
        except SystemExit as stop:
            return stop.code or 0
        finally:
            torch.set_num_threads(threads)
            for number, handler in handlers.items():
                signal.signal(number, handler)

    return run
