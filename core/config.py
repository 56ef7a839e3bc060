"""From the command line to a configuration: its fields, the table of models, and how bad input is refused."""

import argparse
import contextlib
import difflib
import functools
import importlib.util
import inspect
import math
import re
import shutil
import sys
import textwrap
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin

import numpy as np
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, HfArgumentParser
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from core import hub
from core.files import checksum
from core.processes import fail


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
    "qwen3-0.6b-base": ("Qwen/Qwen3-0.6B-Base", _REAL),
    "qwen3-1.7b-base": ("Qwen/Qwen3-1.7B-Base", _REAL),
    "qwen3-4b-base": ("Qwen/Qwen3-4B-Base", _REAL),
    "qwen3-8b-base": ("Qwen/Qwen3-8B-Base", _REAL),
    "llama-3.2-3b-instruct": ("meta-llama/Llama-3.2-3B-Instruct", _REAL),
    "llama-3.1-8b-instruct": ("meta-llama/Llama-3.1-8B-Instruct", _REAL),
    "olmo-2-7b": ("allenai/OLMo-2-1124-7B", _REAL | _SHORT | dict(template="plain")),
    "r1-distill-qwen-1.5b": ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", _REAL | dict(max_new_tokens=8192)),
    "r1-distill-qwen-7b": ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", _REAL | dict(max_new_tokens=8192)),
}


def find_model(name: str, flag: str) -> tuple:
    """(folder or hub id, its transformers config, its tokenizer) of the model that a flag names. A folder models/ALIAS
    is used before the hub. fail() if it can't be loaded, or if a run with it would fail later or learn nonsense."""
    hub.show_downloads()
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
        if name in MODELS and Path(source).is_dir():
            fail(f"--{flag} {name}: the folder {source} is broken ({reason}); restore it")
        if name in MODELS:
            fail(f"--{flag} {name}: {source} could not be downloaded ({reason}); give a local folder, or put one at "
                 f"models/{name}")
        hint = f"did you mean {near[0]}?" if near else f"give a folder, a hub id or one of {', '.join(MODELS)}"
        fail(f"--{flag} {name}: {reason}; {hint}")
    if problem := why_unfit(source, config, tokenizer):
        fail(f"--{flag} {name}: {problem}")
    if not has_weights:
        fail(f"--{flag} {name}: {source} has no weights in safetensors; give a model with a model.safetensors, or "
             "convert it with transformers' save_pretrained()")
    hub.announce_download(source)
    return source, config, tokenizer


def choose_template(template: str, tokenizer) -> str:
    """The template's name; "auto" is cot, or plain for a model without a chat template."""
    if template != "auto":
        return template
    return "cot" if tokenizer.chat_template else "plain"


# What a tokenizer has to give back. transformers 5 breaks some: "we need to add" becomes "w ene ed to add".
PROBE = "we need to add 12 and 345:\n(x + 1)^2 = \\frac{1}{2}, so the answer is \\boxed{-7}.\n"


def why_unfit(source, config, tokenizer) -> str:
    """Why a run with this model and tokenizer would fail or learn nonsense; "" if it would not."""
    back = tokenizer.decode(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    if not back.strip():
        return "there is no tokenizer in it"
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
        with contextlib.suppress(OSError):  # a few models name it only there
            config = GenerationConfig.from_pretrained(source)
        if not end_tokens(config, tokenizer):
            return "neither model nor tokenizer names an end token; set eos_token in its tokenizer_config.json"
    return ""


def end_tokens(config, tokenizer) -> set[int]:
    """Ids that end a response: the tokenizer's, and those of the config (of the model or its generation), one or a
    list. 0 is a valid id."""
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
    """Stores a number. argparse has no min and max: this action swallows the bounds, check_bounds() enforces them."""

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
    """Defaults that suit a model: its alias's; those of a real model for any other one, unless it lies in the folder of
    a training run; for the built-in ones also those in the class's `on_tiny`."""
    from_run = (Path(model).parent / "config.json").is_file()
    defaults = dict(MODELS[model][1]) if model in MODELS else {} if from_run else _REAL | dict(template="auto")
    if model.startswith("tiny"):
        defaults |= getattr(config_class, "on_tiny", {})
    names = {item.name for item in fields(config_class)}  # eval.py has fewer
    return {name: value for name, value in defaults.items() if name in names}


model_defaults = suited


def about(cfg) -> dict:
    """What a configuration does not tell: the script that runs, and its unusual settings, {flag: its line in --help}:
    those that are neither the file's defaults nor the model's."""
    usual, lines = suited(type(cfg), cfg.model), {}
    for item in fields(cfg):
        name = item.name
        if name not in ("model", "out", "resume") and getattr(cfg, name) != usual.get(name, item.default):
            lines[name] = item.metadata.get("help", "").replace("%%", "%")
    check = checksum(cfg.check) if find_check(cfg.check) else 0  # of its text
    return dict(script=Path(sys.argv[0]).stem, unusual=lines, check=check)


def parse(config_class, doc: str, argv: list[str] | None = None):
    """The resolved configuration: the defaults of the class, over them those that suit the model, over them explicit
    flags."""
    parser = HfArgumentParser(config_class, allow_abbrev=False)
    parser.error = refuse
    argv = sys.argv[1:] if argv is None else argv
    model = parser.parse_known_args([flag for flag in argv if flag not in ("-h", "--help")])[0].model
    usual = suited(config_class, model)
    parser.set_defaults(**usual)
    parser.format_help = lambda: help_page(config_class, doc, model, usual)
    cfg, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    if unknown:
        fail(f"unknown argument {unknown[0]}" + nearest(unknown[0].split("=")[0], flags_of(config_class)))
    check_bounds(cfg)
    cfg.out = str(Path(cfg.out)) if cfg.out else default_out(cfg)
    return cfg


def flags_of(config_class) -> list[str]:
    return [f"--{item.name}" for item in fields(config_class)]


def nearest(word: str, words: list[str]) -> str:
    """The end of an error about a word that is none of these words."""
    near = difflib.get_close_matches(word, words, 1)
    return f", did you mean {near[0]}?" if near else " (--help lists the flags)"


def refuse(message: str):
    """fail() with argparse's message; of choices it names the nearest one."""
    message = re.sub(r"^argument (--\w+)\S*: ", r"\1: ", message)
    message = re.sub(r"Truthy value expected: got (.*) but .*", r"invalid value '\1', give true or false", message)
    choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
    word, words = (choice[1], choice[2].replace("'", "").split(", ")) if choice else ("", [])
    fail(message + nearest(word, words))


# ------------------------------------------------------------------------------------------------ --help
def headings(config_class) -> dict[str, str]:
    """{field: its heading in --help}. The headings are the comments in the class's source; what a class adds to the
    Config that it extends comes first, under the name of the script."""
    base = next(kind for kind in reversed(config_class.__mro__) if is_dataclass(kind))
    heading, found = "flags", {item.name: "flags" for item in fields(base)}
    with contextlib.suppress(OSError):  # no source
        for line in inspect.getsource(base).splitlines():
            heading = line[6:] if line.startswith("    # ") else heading
            if name := re.match(r"    (\w+):", line):
                found[name[1]] = heading
    own = [item.name for item in fields(config_class) if item.name not in found]
    return dict.fromkeys(own, f"{Path(sys.argv[0]).name} alone") | found


def reflow(text: str, width: int) -> list[str]:
    """The lines of a docstring at this width. Prose is filled again; an indented block keeps its lines."""
    lines = []
    for paragraph in text.strip().split("\n\n"):
        kept = paragraph.startswith("    ")
        if any(len(line) > width for line in paragraph.splitlines()) and kept:
            paragraph = re.sub(r"(?<=\S) {3,}", "  ", paragraph)  # the columns of a table
        elif not kept:
            paragraph = re.sub(r"(?<=.{100})\n +(?! *- )|(?<=.{100})\n(?=\S)", " ", paragraph)
        for line in paragraph.splitlines():
            indent = re.match(r" *(- )?", line).end() * " "
            lines += textwrap.wrap(line, width, subsequent_indent=indent + "    " * kept, break_on_hyphens=False)
        lines.append("")
    return lines[:-1]


def number(x: float) -> str:
    """1e-4 for 0.0001; 0.28 and 1 as they are."""
    return np.format_float_scientific(x, trim="-", exp_digits=1) if 0 < x < 0.01 else f"{x:g}"


def help_page(config_class, doc: str, model: str, usual: dict) -> str:
    """What --help prints, as wide as the terminal: the docstring, and the flags under headings, each with its default.
    usual: the defaults that suit the model, which come before those of the class."""
    width = min(120, shutil.get_terminal_size((100, 24)).columns)
    lines = [f"usage: python {Path(sys.argv[0]).name} [--flag value] [--switch] ...", "", *reflow(doc, width)]
    what = f"Flags, each with its default for --model {model}. A switch is off with --switch false."
    lines += ["", *textwrap.wrap(what, width)]
    items, last = {item.name: item for item in fields(config_class)}, None
    for name, heading in headings(config_class).items():
        if heading != last:
            lines += ["", f"{heading}:"]
        last, value = heading, usual.get(name, items[name].default)
        value = number(value) if isinstance(value, float) else "..." if value is None else str(value) or '""'
        value = value.lower() if items[name].type is bool else value
        flag, text = f"  --{name} {value}", items[name].metadata.get("help", "").replace("%%", "%")
        if get_origin(items[name].type) is Literal:
            text += f"; one of {', '.join(get_args(items[name].type))}"
        parts = textwrap.wrap(text, max(20, width - 27), break_on_hyphens=False)
        lines += [f"{flag:<26} {parts[0]}"] if len(flag) < 27 else [flag, " " * 27 + parts[0]]
        lines += [" " * 27 + part for part in parts[1:]]
    return "\n".join(lines) + "\n"


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
    except (Exception, SystemExit) as error:  # whatever somebody else's file raises
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        fail(f"--check {file}: {reason}; give a Python file that defines check(response, problem)")
