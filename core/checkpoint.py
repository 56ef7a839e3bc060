"""The output folder of a run, and its checkpoints: Hugging Face model folders with the state of the trainer in them.

items: what a checkpoint saves beside the model, {name: a Policy with its optimizer, a dict, or an object with
state_dict and load_state_dict}, the same on every rank. state: a small dict, such as the number of the step."""

import importlib
import json
import re
import shutil
from pathlib import Path

import torch
import torch.distributed as dist

from core.files import lock, room_on_disk, try_folder, write_whole
from core.policy import Policy
from core.processes import bad_input, fail, rank, say


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in an output folder, the oldest first."""
    return sorted(folder.glob("step_" + "[0-9]" * 6))


def config_of(folder: Path) -> dict:
    """The configuration of the run in an output folder. {} if there is no run."""
    try:
        config = json.loads((folder / "config.json").read_text())
        return config if "prompts_per_step" in config else {}
    except (OSError, ValueError, TypeError):
        return {}


TRACES = r".+\.tmp|lost\+found"  # allowed in a new folder: what a run left that died at once, and a fresh disk's own
WRITTEN = r"(metrics|samples|labels)\.jsonl|eval|final|step_\d{6}|" + TRACES
MEANING = ("model", "data", "limit", "template", "system", "seed")  # --resume refuses a change of these
MAY_DIFFER = ("out", "resume", "show", "about")


def check_folder(folder: Path, config: dict):
    """fail() if a run with this configuration can't write into the folder. With --resume: print what has changed.

    Rank 0 calls this before anything is loaded. It leaves no trace in the folder."""
    with bad_input(f"--out {folder}: ", OSError):
        old, here = config_of(folder), Path.cwd()
        if folder.exists() and not folder.is_dir():
            fail(f"--out {folder} is a file; give a folder")
        known = WRITTEN if config["resume"] else TRACES
        others = sorted(x.name for x in folder.glob("[!.]*") if not re.fullmatch(known, x.name))
        if others and not old:
            fail(f"--out {folder} holds other files ({', '.join(others[:3])}); give a folder of its own")
        try_folder(folder)
        if old and not config["resume"]:  # it will be moved aside
            if folder.is_mount() or folder.resolve() in (here, *here.parents):
                fail(f"--out {folder} holds an earlier run, and can't be moved aside from here; give another folder")
            try_folder(folder.parent)
    if old:
        with bad_input():
            lock(folder / "config.json")
    if not old or not config["resume"]:
        return
    names = {"script": "script", "the text of the check": "check"}  # these are no flags
    old, new = ({**x, **{key: x.get("about", {}).get(name) for key, name in names.items()}} for x in (old, config))
    differ = [name for name in old if name not in MAY_DIFFER and name in new and new[name] != old[name]]
    for name in MEANING:
        if name in differ:
            had, has = (x[name] if x[name] != "" else "''" for x in (old, new))
            fail(f"--resume: the run in {folder} has --{name} {had}, not {has}; give that or another --out")
    if differ:
        say("--resume: from here on " + ", ".join(f"{name} is {new[name]} (was {old[name]})" for name in differ))


def open_folder(folder: Path, config: dict, state: dict, data: list):
    """Make the output folder and lock it until this process ends. Only rank 0 calls this.

    An earlier run in the folder is moved aside. With --resume it stays, and its metrics and samples are cut back to
    the step of the checkpoint. data: fingerprint() of the problems, which must be that of the checkpoint."""
    step = state.get("step", 0)
    if step > config["steps"]:
        fail(f"--resume: {step} steps are done in {folder}, and --steps {config['steps']} asks for fewer")
    if (before := state.get("data", data)) != data:
        fail(f"--resume: --data {config['data']} has changed ({before[0]:,} problems before, {data[0]:,} now); give "
             "the same data, or another --out")
    with bad_input(f"--out {folder}: "):
        if config_of(folder) and not config["resume"]:
            spare = next(p for i in range(1, 10**6) if not (p := folder.with_name(f"{folder.name}.{i}")).exists())
            folder.rename(spare)
            say(f"{folder} held an earlier run, which is {spare} from now on")
        folder.mkdir(parents=True, exist_ok=True)
    with bad_input():
        lock(folder / "config.json.tmp")  # write_whole() renames this file, so config.json is locked at once
    write_whole(folder / "config.json", json.dumps(config, indent=1))
    for file in (folder / "metrics.jsonl", folder / "samples.jsonl"):
        lines = file.read_text().splitlines(True) if step and file.exists() else []
        with bad_input(f"{file} is broken, restore or remove it: ", (ValueError, KeyError)):
            lines = [x for x in lines if x.endswith("}\n") and json.loads(x)["step"] <= step]
        write_whole(file, "".join(lines))


def check(items: dict):
    """fail() if an item can't be saved and loaded."""
    for name, item in items.items():
        if not isinstance(item, dict) and not hasattr(item, "load_state_dict"):
            fail(f"run.checkpointed[{name!r}] is a {type(item).__name__}; it needs state_dict and load_state_dict")


def load(folder: Path, items: dict) -> dict:
    """Load the newest whole checkpoint into the items. Returns its state, or {} if the folder has no checkpoint."""
    found = checkpoints(folder)[::-1]
    names = {file.name.removesuffix(".pt") for checkpoint in found for file in checkpoint.iterdir()}
    if missing := [name for name in items if found and name not in names]:
        fail(f"--resume: the checkpoints in {folder} have no {missing[0]}, so another algorithm has written them; give "
             "another --out")
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
    """Write a model folder. With items and a state it is a checkpoint."""
    partial = folder.with_name(folder.name + ".tmp")
    if rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    with room_on_disk(partial):
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
    if rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)  # only now, so a folder with this name is always complete


def prune(folder: Path, step: int, keep: int):
    """Delete all checkpoints up to `step` but the newest `keep` (0: keep all). Only rank 0 calls this."""
    done = [checkpoint for checkpoint in checkpoints(folder) if int(checkpoint.name[5:]) <= step]
    for checkpoint in done[:-keep] if keep else ():
        shutil.rmtree(checkpoint)


TRACKERS = dict(tensorboard="torch.utils.tensorboard", wandb="wandb")  # flag: the module that it needs


def check_trackers(cfg):
    """fail() if --tensorboard or --wandb is given without its package."""
    for flag, module in TRACKERS.items():
        try:
            getattr(cfg, flag) and importlib.import_module(module)
        except ImportError as error:
            fail(f"--{flag} needs its package: pip install {error.name or flag}")


def trackers(cfg) -> list:
    """Functions f(metrics, step), one for each of --tensorboard and --wandb that is given."""
    logs = []
    if cfg.tensorboard:
        board = importlib.import_module(TRACKERS["tensorboard"]).SummaryWriter(cfg.out)
        logs.append(lambda metrics, step: [board.add_scalar(name, x, step) for name, x in metrics.items()])
    if cfg.wandb:
        logs.append(importlib.import_module("wandb").init(project="nanorlvr", name=cfg.out, config=vars(cfg)).log)
    return logs
