"""What the tests share: torch's threads wait quietly, the hub is never asked, and a small set of problems."""

import json
import os
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch is imported: threads that spin crawl on a shared core
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that needs the network would pass here and fail elsewhere

import pytest

import tiny

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def tiny_path() -> str:
    """The folder of the built-in model."""
    return str(ROOT / "models/tiny")


@pytest.fixture(scope="session")
def tokenizer(tiny_path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_path)


@pytest.fixture(scope="session")
def problems_file(tmp_path_factory) -> Path:
    """48 of the built-in training problems as a local file; all 20,000 of them take seconds to write down."""
    file = tmp_path_factory.mktemp("data") / "problems.jsonl"
    rows = [dict(problem=row["problem"], answer=row["answer"]) for row in tiny.problems("train", 48)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
