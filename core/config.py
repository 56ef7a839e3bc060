"""The configuration of a run: its flags, --help, and the models that --model can name."""

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
# alias: (hub id or folder, its defaults). They replace those of Config; explicit flags win over both.
_TINY = dict(data="tiny", eval_data="tiny-test", eval_every=10, steps=40, prompts_per_step=64, lr=1e-4,
             max_new_tokens=64, tokens_per_micro=4096, reference=True)
_EASY = dict(data="easy", eval_data="easy-test", template="easy", eval_every=10, eval_problems=100, steps=20,
             prompts_per_step=16, samples_per_prompt=8, lr=1e-5, max_prompt_tokens=256, max_new_tokens=32,
             tokens_per_micro=2048, save_every=10, keep=1)
_REAL = dict(template="cot", eval_data="math500", eval_every=20, save_every=20, keep=2)
_SHORT = dict(max_new_tokens=3072)  # with 1,024 prompt tokens this fills a context of 4,096
MODELS = {
    "tiny": (str(ROOT / "models/tiny"), _TINY),
    "tiny-badcode": (str(ROOT / "models/tiny-badcode"), _TINY),
    "smollm2-135m-instruct": ("HuggingFaceTB/SmolLM2-135M-Instruct", _EASY),
    "qwen2.5-coder-0.5b-instruct": ("Qwen/Qwen2.5-Coder-0.5B-Instruct", _REAL | dict(max_new_tokens=1024)),
    "gemma-3-270m": ("google/gemma-3-270m", _REAL | dict(template="plain", max_new_tokens=1024)),
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
    """A model's name -> (folder or hub id, its transformers config, its tokenizer). flag: the one that gave the name.

    A folder models/ALIAS wins over the hub. fail() if the model can't be loaded or can't be trained."""
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
            problem = f"the folder {source} is broken ({reason}); restore it"
        elif name in MODELS:
            problem = f"{source} could not be downloaded ({reason}); give a local folder, or put one at models/{name}"
        else:
            hint = f"did you mean {near[0]}?" if near else f"give a folder, a hub id or one of {', '.join(MODELS)}"
            problem = f"{reason}; {hint}"
        fail(f"--{flag} {name}: {problem}")
    problem = why_unfit(source, config, tokenizer)
    if not problem and not has_weights:
        problem = f"{source} has no weights in safetensors; convert it with transformers' save_pretrained()"
    if problem:
        fail(f"--{flag} {name}: {problem}")
    hub.announce_download(source)
    return source, config, tokenizer


def choose_template(template: str, tokenizer) -> str:
    """The name of the template. "auto" means cot, or plain for a model without a chat template."""
    auto = "cot" if tokenizer.chat_template else "plain"
    return auto if template == "auto" else template


# Encoding and decoding must return this text. transformers 5 breaks some tokenizers: "w ene ed to add".
PROBE = "we need to add 12 and 345:\n(x + 1)^2 = \\frac{1}{2}, so the answer is \\boxed{-7}.\n"


def why_unfit(source, config, tokenizer) -> str:
    """Why this model can't be trained with this tokenizer. "" if it can."""
    back = tokenizer.decode(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    if not back.strip():
        return "there is no tokenizer in it"
    if back.strip() != PROBE.strip():
        return f"its tokenizer does not give back what it reads, {back[:20]!r} for {PROBE[:15]!r}; give another model"
    rows = config.get_text_config().vocab_size
    # Placeholders for images and the like may be beyond the last row, because no text contains them. Gemma 3 has one.
    beyond = [token for token, number in tokenizer.get_vocab().items()
              if number >= rows and not re.search("image|audio|video", token)]
    if beyond:
        return (f"its tokenizer has {len(tokenizer)} tokens, its embedding {rows} rows, none for {beyond[0]!r}; resize "
                "the embedding, or give the tokenizer that belongs to the model")
    if not end_tokens(config, tokenizer):
        with contextlib.suppress(OSError):  # some models name their end token only in the generation config
            config = GenerationConfig.from_pretrained(source)
    if not end_tokens(config, tokenizer):
        return "neither model nor tokenizer names an end token; set eos_token in its tokenizer_config.json"
    return ""


def end_tokens(config, tokenizer) -> set[int]:
    """Ids of the tokens that end a response, from the tokenizer and from a model's or generation config."""
    named = getattr(config, "eos_token_id", None)
    named = named if isinstance(named, list | tuple) else [named]
    return {number for number in [*named, tokenizer.eos_token_id] if number is not None}  # 0 is a valid id


def longest_sequence(config, windows: bool) -> float:
    """The most tokens that prompt and response may have together: the model's context.

    windows False: sliding-window attention is not computed (on a CPU, and by the torch sampler), so the window is a
    limit, too."""
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
    """A field of Config. help: its line in --help. Bounds of a number: >= least, > above, <= most; None: no bound."""
    metadata = dict(help=help.replace("%", "%%"))  # argparse formats the help
    if (least, above, most) != (None, None, None):
        metadata |= dict(action=Number, least=least, above=above, most=most)
    return field(default=default, metadata=metadata)


def check_bounds(cfg):
    """fail() if a number of the configuration is NaN or outside its bounds."""
    for item in fields(cfg):
        value, (least, above, most) = getattr(cfg, item.name), map(item.metadata.get, ("least", "above", "most"))
        if least is not None and not value >= least:
            fail(f"--{item.name} {value}: must be {least} or above")
        if above is not None and not value > above:
            fail(f"--{item.name} {value}: must be above {above}")
        if most is not None and not value <= most:
            fail(f"--{item.name} {value}: must be {most} or below")


def model_defaults(config_class, model: str) -> dict:
    """The defaults of a model, {field: value}. They replace those of the class."""
    if model in MODELS:
        defaults = dict(MODELS[model][1])
    elif (Path(model).parent / "config.json").is_file():  # the model is in the folder of a training run
        defaults = {}
    else:
        defaults = _REAL | dict(template="auto")
    if model.startswith("tiny"):  # an algorithm may have its own for the tiny models
        defaults |= getattr(config_class, "on_tiny", {})
    names = {item.name for item in fields(config_class)}  # eval.py has fewer
    return {name: value for name, value in defaults.items() if name in names}


def about(cfg) -> dict:
    """What config.json also records: the script, a checksum of the file --check, and which settings are not defaults,
    {name: its line in --help}."""
    usual, lines = model_defaults(type(cfg), cfg.model), {}
    for item in fields(cfg):
        default = usual.get(item.name, item.default)
        if item.name not in ("model", "out", "resume") and getattr(cfg, item.name) != default:
            lines[item.name] = item.metadata.get("help", "").replace("%%", "%")
    check = checksum(cfg.check) if find_check(cfg.check) else 0
    return dict(script=Path(sys.argv[0]).stem, unusual=lines, check=check)


def parse(config_class, doc: str, argv: list[str] | None = None):
    """The configuration. Explicit flags win over the defaults of the model, and these over those of the class."""
    parser = HfArgumentParser(config_class, allow_abbrev=False)
    parser.error = refuse
    argv = sys.argv[1:] if argv is None else argv
    model = parser.parse_known_args([flag for flag in argv if flag not in ("-h", "--help")])[0].model
    usual = model_defaults(config_class, model)
    parser.set_defaults(**usual)
    parser.format_help = lambda: help_page(config_class, doc, model, usual)
    cfg, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    if unknown:
        flags = [f"--{item.name}" for item in fields(config_class)]
        fail(f"unknown argument {unknown[0]}" + nearest(unknown[0].split("=")[0], flags))
    check_bounds(cfg)
    cfg.out = str(Path(cfg.out)) if cfg.out else default_out(cfg)
    return cfg


def nearest(word: str, words: list[str]) -> str:
    """How an error about an unknown word ends."""
    near = difflib.get_close_matches(word, words, 1)
    return f", did you mean {near[0]}?" if near else " (--help lists the flags)"


def refuse(message: str):
    """fail() with argparse's message in the house style. A wrong choice gets the nearest valid one."""
    message = re.sub(r"^argument (--\w+)\S*: ", r"\1: ", message)
    message = re.sub(r"Truthy value expected: got (.*) but .*", r"invalid value '\1', give true or false", message)
    choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
    word, words = (choice[1], choice[2].replace("'", "").split(", ")) if choice else ("", [])
    fail(message + nearest(word, words))


# ------------------------------------------------------------------------------------------------ --help
def headings(config_class) -> dict[str, str]:
    """{field: its heading in --help}. Headings are the comments in the source of Config. The fields that an algorithm
    adds come first, under the name of its script."""
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
    """The lines of a docstring at this width. Prose is filled again, an indented block keeps its lines."""
    lines = []
    for paragraph in text.strip().split("\n\n"):
        indented = paragraph.startswith("    ")
        if not indented:  # a full line goes on in the next one, unless that is an item of a list
            paragraph = re.sub(r"(?<=.{100})\n *(?![ -])", " ", paragraph)
        elif max(map(len, paragraph.splitlines())) > width:
            paragraph = re.sub(r"(?<=\S) {3,}", "  ", paragraph)  # a table moves its columns together
        for line in paragraph.splitlines():
            indent = re.match(r" *(- )?", line).end() * " "
            lines += textwrap.wrap(line, width, subsequent_indent=indent + "    " * indented, break_on_hyphens=False)
        lines.append("")
    return lines[:-1]


def number(x: float) -> str:
    """1e-4 for 0.0001; 0.28 and 1 as they are."""
    return np.format_float_scientific(x, trim="-", exp_digits=1) if 0 < x < 0.01 else f"{x:g}"


def help_page(config_class, doc: str, model: str, usual: dict) -> str:
    """What --help prints, as wide as the terminal. usual: the defaults of the model."""
    width = min(120, max(40, shutil.get_terminal_size((100, 24)).columns))
    column = 27 if width >= 60 else 6  # where the texts begin
    lines = textwrap.wrap(f"usage: python {Path(sys.argv[0]).name} [--flag value] [--switch] ...", width)
    what = f"Flags, each with its default for --model {model}. A switch is off with --switch false."
    lines += ["", *reflow(doc, width), "", *textwrap.wrap(what, width)]
    items, last = {item.name: item for item in fields(config_class)}, None
    for name, heading in headings(config_class).items():
        if heading != last:
            lines += ["", f"{heading}:"]
        last, item, value = heading, items[name], usual.get(name, items[name].default)
        value = number(value) if isinstance(value, float) else "..." if value is None else str(value) or '""'
        value = value.lower() if item.type is bool else value
        text = item.metadata.get("help", "").replace("%%", "%")
        if get_origin(item.type) is Literal:
            text += f"; one of {', '.join(get_args(item.type))}"
        line = f"  --{name} {value}".ljust(column - 1) + " " + text
        lines += textwrap.wrap(line, width, subsequent_indent=" " * column, break_on_hyphens=False)
    return "\n".join(lines) + "\n"


def default_out(cfg) -> str:
    """The output folder of a training run without --out."""
    return f"out/{Path(sys.argv[0]).stem}-{Path(cfg.model).name}-s{cfg.seed}"


@functools.cache
def find_check(file: str):
    """A Python file -> its function check(response, problem) -> score. None for "". The file is run once."""
    if not file:
        return None
    try:
        spec = importlib.util.spec_from_file_location(Path(file).stem, file)
        spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
        return module.check
    except (Exception, SystemExit) as error:  # whatever somebody else's file raises
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        fail(f"--check {file}: {reason}; give a Python file that defines check(response, problem)")
