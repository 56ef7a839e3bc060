"""The output folder of a run: opened, continued, and filled with checkpoints. Each is a Hugging Face model folder with
the state of the trainer in it; it is written under another name and renamed once it is complete.

`items` are what a checkpoint holds beside the model: {name: a Policy with its optimizer, or any object with state_dict
and load_state_dict, the same on every rank}. `state` is a small dict, such as the number of the step."""

import importlib
import json
import shutil
from pathlib import Path

import torch
import torch.distributed as dist

from core.config import fail
from core.policy import Policy
from core.processes import rank, say


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in an output folder, the oldest first."""
    return sorted(folder.glob("step_" + "[0-9]" * 6))


def open_folder(folder: Path, config: dict, resume: bool, step: int):
    """On rank 0. A new output folder, where an earlier run's is moved aside; or the one that a run continues after
    `step`, whose metrics and samples are cut back to that step."""
    if folder.exists() and not resume:
        spare = next(p for i in range(1, 10**6) if not (p := folder.with_name(f"{folder.name}.{i}")).exists())
        say(f"{folder} holds an earlier run, which is {folder.rename(spare)} from now on")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for file in (folder / "metrics.jsonl", folder / "samples.jsonl"):
        lines = file.read_text().splitlines(True) if step and file.exists() else []
        lines = [x for x in lines if x.endswith("}\n") and json.loads(x)["step"] <= step]
        file.with_suffix(".cut").write_text("".join(lines))
        file.with_suffix(".cut").rename(file)


def check(items: dict):
    """fail() if there is an item that can't be saved and loaded."""
    for name, item in items.items():
        if not isinstance(item, dict) and not hasattr(item, "load_state_dict"):
            fail(f"run.checkpointed[{name!r}] is a {type(item).__name__}; it needs state_dict and load_state_dict")


def load(folder: Path, items: dict) -> dict:
    """Load the newest whole checkpoint in an output folder into the items; its state, or {} if there is none at all."""
    found = checkpoints(folder)[::-1]
    for checkpoint in found:
        try:
            state = json.loads((checkpoint / "trainer.json").read_text())
            for name, item in items.items():
                if isinstance(item, Policy):
                    item.load_state(checkpoint / name)
                else:
                    saved = torch.load(checkpoint / f"{name}.pt", weights_only=False)
                    item.update(saved) if isinstance(item, dict) else item.load_state_dict(saved)
            return state
        except (Exception, dist.checkpoint.CheckpointException) as error:  # whatever a broken file raises
            say(f"warning: {checkpoint} is broken ({type(error).__name__}); trying the one before it")
    if found:
        fail(f"--resume: no checkpoint in {folder} is whole; give another --out to start afresh")
    return {}


def save(folder: Path, policy: Policy, tokenizer, items: dict | None = None, state: dict | None = None):
    """Write a model folder, with the items and the state if it is to be a checkpoint."""
    partial = folder.with_name(folder.name + ".tmp")
    if rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    policy.save_pretrained(partial)
    for name, item in (items or {}).items():
        if isinstance(item, Policy):
            item.save_state(partial / name)
        elif rank() == 0:
            torch.save(item if isinstance(item, dict) else item.state_dict(), partial / f"{name}.pt")
    if rank() == 0:
        tokenizer.save_pretrained(partial)
        if state:
            (partial / "trainer.json").write_text(json.dumps(state))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def prune(folder: Path, step: int, keep: int):
    """On rank 0: of the checkpoints up to `step`, delete all but the newest `keep` (0: none)."""
    done = [checkpoint for checkpoint in checkpoints(folder) if int(checkpoint.name[5:]) <= step]
    for checkpoint in done[:-keep] if keep else ():
        shutil.rmtree(checkpoint)


def trackers(cfg) -> list:
    """Functions of (metrics, step) that log to the services that the configuration asks for."""
    logs = []
    try:
        if cfg.tensorboard:
            board = importlib.import_module("torch.utils.tensorboard").SummaryWriter(cfg.out)
            logs.append(lambda metrics, step: [board.add_scalar(name, x, step) for name, x in metrics.items()])
        if cfg.wandb:
            logs.append(importlib.import_module("wandb").init(project="nanorlvr", name=cfg.out, config=vars(cfg)).log)
    except ImportError as error:
        fail(f"--tensorboard and --wandb need their package: pip install {error.name}")
    return logs
