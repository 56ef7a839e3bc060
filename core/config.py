"""From the command line to a configuration: its fields, the table of models, and how bad input is refused."""

import argparse
import contextlib
import difflib
import functools
import importlib.util
import math
import re
import sys
from dataclasses import field, fields
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, HfArgumentParser
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from core import hub
from core.files import disk_is_full
from core.processes import first_to_say, leave, rank, world


# ------------------------------------------------------------------------------------------------ bad input
def fail(message: str):
    """Bad input: one line on stderr that says what, where and what to do; exit status 2. Any process may fail alone; of
    those that fail alike one speaks."""
    if first_to_say(message):
        who = f" (rank {rank()})" if world() > 1 else ""
        tqdm.write(f"error: {message}{who}", file=sys.stderr)  # which clears a progress bar
    leave(2)
    raise SystemExit(2)


@contextlib.contextmanager
def bad_input(where="", kinds=(OSError, ValueError)):
    """Errors of these kinds inside are bad input: fail() with `where` and the first line of the error."""
    try:
        yield
    except kinds as error:
        fail(where + str(error).splitlines()[0])


def advise(kind, error, trace, show=sys.excepthook):
    """Python's own report of an error; if GPU memory ran out, with the flags to lower. A full disk is one line."""
    if disk_is_full(error):
        words = " ".join(str(error).split())[-200:]
        return print(f"error: the disk is full ({words}); make room, then --resume continues", file=sys.stderr)
    show(kind, error, trace)
    if issubclass(kind, torch.OutOfMemoryError):
        print("error: out of GPU memory; lower --tokens_per_micro (training) or --vllm_memory (sampling), or give "
              "--offload true", file=sys.stderr)


sys.excepthook = advise


# ------------------------------------------------------------------------------------------------ models
ROOT = Path(__file__).parents[1]
# alias: (hub id or folder, the defaults that suit it). Explicit flags win over these, and these over Config's.
_TINY = dict(data="tiny", eval_data="tiny-test", eval_every=10, steps=40, prompts_per_step=64, lr=1e-4,
             max_new_tokens=64, tokens_per_micro=4096, reference=True)  # fmt: skip
_EASY = dict(data="easy", eval_data="easy-test", template="easy", eval_every=10, eval_problems=100, steps=20,
             prompts_per_step=16, samples_per_prompt=8, lr=1e-5, max_prompt_tokens=256, max_new_tokens=32,
             tokens_per_micro=2048, save_every=10, keep=1)  # fmt: skip
_REAL = dict(template="cot", eval_data="math500", eval_every=20, save_every=20, keep=2)
_SHORT = dict(max_new_tokens=3072)  # with 1,024 prompt tokens this fills a context of 4,096
MODELS = {
    "tiny": (str(ROOT / "models/tiny"), _TINY),
    "tiny-badcode": (str(ROOT / "models/tiny-badcode"), _TINY),
    "smollm2-135m-instruct": ("HuggingFaceTB/SmolLM2-135M-Instruct", _EASY),
    "qwen2.5-math-1.5b": ("Qwen/Qwen2.5-Math-1.5B", _REAL | _SHORT | dict(template="qwen-math")),
    "qwen2.5-math-7b": ("Qwen/Qwen2.5-Math-7B", _REAL | _SHORT | dict(template="qwen-math")),
    "qwen2.5-0.5b": ("Qwen/Qwen2.5-0.5B", _REAL),
    "qwen2.5-1.5b": ("Qwen/Qwen2.5-1.5B", _REAL),
    "qwen2.5-3b": ("Qwen/Qwen2.5-3B", _REAL),
    "qwen2.5-7b": ("Qwen/Qwen2.5-7B", _REAL),
    "llama-3.2-3b-instruct": ("meta-llama/Llama-3.2-3B-Instruct", _REAL),
    "llama-3.1-8b-instruct": ("meta-llama/Llama-3.1-8B-Instruct", _REAL),
    "olmo-2-7b": ("allenai/OLMo-2-1124-7B", _REAL | _SHORT | dict(template="plain")),
    "r1-distill-qwen-1.5b": ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", _REAL | dict(max_new_tokens=8192)),
    "r1-distill-qwen-7b": ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", _REAL | dict(max_new_tokens=8192)),
}


def find_model(name: str, flag: str) -> tuple:
    """(folder or hub id, its transformers config, its tokenizer) of the model that a flag names. For an alias a folder
    of that name in models/ comes before the hub. fail() for a model that can't be had, or with which a run would fail
    later or learn nonsense."""
    source = MODELS.get(name, (name,))[0]
    if name in MODELS and (ROOT / "models" / name).is_dir():
        source = str(ROOT / "models" / name)
    try:
        if not Path(source).is_dir():
            if source.count("/") != 1 or source[0] in "./~":
                raise OSError("no such folder")
            hub.look_for_hub()
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        has_weights = any(hub.has_file(source, file) for file in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
    except Exception as error:  # whatever a broken folder or a hub raises
        reason, near = hub.why(error, source), difflib.get_close_matches(name, MODELS, 1, 0.5)
        if name in MODELS:
            fail(f"--{flag} {name}: {source} could not be downloaded ({reason}); give a local folder, or put one at "
                 f"models/{name}")
        hint = f"did you mean {near[0]}?" if near else f"give a folder, a hub id or one of {', '.join(MODELS)}"
        fail(f"--{flag} {name}: {reason}; {hint}")
    if problem := unfit(source, config, tokenizer):
        fail(f"--{flag} {name}: {problem}")
    if not has_weights:
        fail(f"--{flag} {name}: {source} has no weights in safetensors, which alone are read here; give a model with a "
             "model.safetensors, or convert it by transformers' save_pretrained")
    return source, config, tokenizer


# What a tokenizer has to give back. transformers 5 breaks some: "we need to add" becomes "w ene ed to add".
PROBE = "we need to add 12 and 345:\n(x + 1)^2 = \\frac{1}{2}, so the answer is \\boxed{-7}.\n"


def unfit(source, config, tokenizer) -> str:
    """Why a tokenizer does not fit its model or itself; "" if it does."""
    back = tokenizer.decode(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    if back.strip() != PROBE.strip():
        return f"its tokenizer does not give back what it reads, {back[:20]!r} for {PROBE[:15]!r}; give another model"
    rows = config.get_text_config().vocab_size
    # Placeholders of images and the like, which no text contains, may lie beyond: Gemma 3 has one.
    beyond = [token for token, number in tokenizer.get_vocab().items()
              if number >= rows and not re.search("image|audio|video", token)]
    if beyond:
        return (f"its tokenizer has {len(tokenizer)} tokens, its embedding {rows} rows, none for {beyond[0]!r}; resize "
                "the embedding, or give the tokenizer that belongs to the model")
    if not end_tokens(config, tokenizer):
        with contextlib.suppress(OSError):  # few models have their end token there alone
            config = GenerationConfig.from_pretrained(source)
        if not end_tokens(config, tokenizer):
            return "neither model nor tokenizer names an end token; set eos_token in its tokenizer_config.json"
    return ""


def end_tokens(config, tokenizer) -> set[int]:
    """Ids of the tokens that end a response: the tokenizer's, and the one or the several that a model's config names,
    or its generation config. 0 is an id like others."""
    named = getattr(config, "eos_token_id", None)
    named = named if isinstance(named, list | tuple) else [named]
    return {number for number in [*named, tokenizer.eos_token_id] if number is not None}


def longest_sequence(config, windows: bool) -> float:
    """Tokens that prompt and response may have together: the model's context; and where sliding windows of attention
    are not computed (windows False), as on a CPU and by the torch sampler, no more than such a window."""
    context = getattr(config, "max_position_embeddings", None) or math.inf
    window = getattr(config, "sliding_window", None) or math.inf
    return context if windows else min(context, window)


# ------------------------------------------------------------------------------------------------ flags
class Number(argparse.Action):
    """Stores a number. Its bounds are for check_bounds(); argparse hands them to whatever stores the value."""

    def __init__(self, *names, least, above, most, **how):
        super().__init__(*names, **how)

    def __call__(self, parser, namespace, value, flag=None):
        setattr(namespace, self.dest, value)


def arg(default, help: str, least=None, above=None, most=None):
    """A field of Config: its default, the line that --help shows, and for a number its bounds: it must be at least
    `least`, above `above`, at most `most` (None: no such bound)."""
    bounds = dict(action=Number, least=least, above=above, most=most)
    bounds = {} if (least, above, most) == (None, None, None) else bounds
    return field(default=default, metadata={"help": help.replace("%", "%%"), **bounds})  # argparse formats the help


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """--help with every default, and the script's docstring as it stands."""


def check_bounds(cfg):
    """fail() if a number of a configuration is outside the bounds of its field, or is not a number."""
    for item in fields(cfg):
        value, (least, above, most) = getattr(cfg, item.name), map(item.metadata.get, ("least", "above", "most"))
        if least is not None and not value >= least:
            fail(f"--{item.name} {value}: must be {least} or above")
        if above is not None and not value > above:
            fail(f"--{item.name} {value}: must be above {above}")
        if most is not None and not value <= most:
            fail(f"--{item.name} {value}: must be {most} or below")


def suited(config_class, model: str) -> dict:
    """Defaults that suit a model, if it is one of the aliases; for the built-in ones with those in the class's
    `on_tiny`."""
    defaults = dict(MODELS[model][1]) if model in MODELS else {}
    if model.startswith("tiny"):
        defaults |= getattr(config_class, "on_tiny", {})
    names = {item.name for item in fields(config_class)}  # eval.py has fewer
    return {name: value for name, value in defaults.items() if name in names}


def about(cfg) -> dict:
    """What a configuration does not tell: the script that runs, and its unusual settings, {flag: its line in --help}:
    those that are neither the file's defaults nor the model's."""
    usual, lines = suited(type(cfg), cfg.model), {}
    for item in fields(cfg):
        name = item.name
        if name not in ("model", "out", "resume") and getattr(cfg, name) != usual.get(name, item.default):
            lines[name] = item.metadata.get("help", "").replace("%%", "%")
    return dict(script=Path(sys.argv[0]).stem, unusual=lines)


def parse(config_class, doc: str, argv: list[str] | None = None):
    """The resolved configuration: the defaults of the class, over them those that suit the model, over them explicit
    flags."""
    parser = HfArgumentParser(config_class, description=doc, allow_abbrev=False, formatter_class=HelpFormatter)
    parser.error = lambda message: fail(f"{message} (--help lists the flags)")
    argv = sys.argv[1:] if argv is None else argv
    model = parser.parse_known_args([flag for flag in argv if flag not in ("-h", "--help")])[0].model
    parser.set_defaults(**suited(config_class, model))
    cfg, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    if unknown:
        near = difflib.get_close_matches(unknown[0].split("=")[0], parser._option_string_actions, 1)
        fail(f"unknown argument {unknown[0]}" + (f", did you mean {near[0]}?" if near else " (--help lists the flags)"))
    check_bounds(cfg)
    cfg.out = str(Path(cfg.out)) if cfg.out else default_out(cfg)
    return cfg


def default_out(cfg) -> str:
    """The output folder of a training run for which none is named."""
    return f"out/{Path(sys.argv[0]).stem}-{Path(cfg.model).name}-s{cfg.seed}"


@functools.cache
def find_check(file: str):
    """The function check(response, problem) -> score of a Python file, which is run once; None for ""."""
    if not file:
        return None
    try:
        spec = importlib.util.spec_from_file_location(Path(file).stem, file)
        spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
        return module.check
    except Exception as error:  # whatever somebody else's file raises
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        fail(f"--check {file}: {reason}; give a Python file that defines check(response, problem)")
