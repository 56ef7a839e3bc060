"""Why GRPO and RAFT++ end differently: each with one difference between them less, and what they teach, by token.

    python lab/why.py positive ...     grpo.py without its wrong answers: a negative advantage is 0
    python lab/why.py mixed ...        raft_pp.py without prompts whose answers are all right, which GRPO cannot see
    python lab/why.py tokens RUN RUN   which tokens of the base's responses the models of these runs find more likely

The flags of the first two are those of grpo.py and of raft_pp.py. They differ from these in what is divided by, too:
GRPO's mean is over all tokens, RAFT++'s over those that it keeps. A RUN is the folder of a run of the lab on WIDE."""

import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)
import common  # before torch
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import grpo
import raft_pp
from core import tiny
from core.processes import bad_input, fail
from core.saved import read_responses


def positive(rewards, cfg, usual=grpo.advantages):
    """rewards [P, n] -> GRPO's (adv [P, n], keep [P, n]), with 0 in place of negative advantages."""
    adv, keep = usual(rewards, cfg)
    return adv.clamp(min=0), keep


def mixed(rewards, cfg, usual=raft_pp.advantages):
    """rewards [P, n] -> RAFT++'s (adv [P, n], keep [P, n]), without prompts that are all right."""
    adv, keep = usual(rewards, cfg)
    return adv, keep & common.mixed(rewards)[:, None]


def kinds(problem: str, response: str) -> dict[int, str]:
    """{place of a character in a response: its kind}, for the characters that decide: the value of a step, right or
    wrong for the numbers before it, with all of its digits; a box, in time or before all operations are done; the word
    python. Of a step that is mended, `38 wait 36`, the value is the last one."""
    found, operations = {0: "python"} if response.startswith("python") else {}, len(tiny.parse(problem)[1])
    steps = list(re.finditer(r"^(\d+)([-+*])(\d+)(?: #|=)(?:\d+ wait )?(\d+)", response, re.MULTILINE))
    for step in steps:
        a, op, k, value = step.groups()
        word = "right value" if tiny.OPERATORS[op](int(a), int(k)) == int(value) else "wrong value"
        found |= dict.fromkeys(range(*step.span(4)), word)
    if (place := response.find("\\boxed{")) >= 0:
        found[place] = "box in time" if len(steps) >= operations else "box too early"
    return found


@torch.no_grad()
def tokens(folders):
    """Print for each kind: tokens, their mean logprob under the base, and by how much each model's mean is higher."""
    saved = read_responses(Path(folders[0]) / "eval/step_000000/tiny-wide-test.jsonl")
    tokenizer, found = AutoTokenizer.from_pretrained(ROOT / "models/tiny"), defaultdict(list)
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
              for path in (ROOT / "models/tiny", *(f"{folder}/final" for folder in folders))]
    for problem, response in zip(saved["problem"].flat, saved["response"].flat):
        prompt = tiny.USER + problem + tiny.ASSISTANT
        both = tokenizer(prompt + response, return_offsets_mapping=True, return_tensors="pt")
        ids, places = both.input_ids, both.offset_mapping[0, 1:, 0].tolist()
        rows = [model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0] for model in models]
        of = kinds(problem, response)
        for place, logprobs in zip(places, torch.stack(rows, 1).tolist()):
            if place >= len(prompt):
                found[of.get(place - len(prompt), "other")].append(logprobs)
    for kind, logprobs in sorted(found.items()):
        base, *others = np.mean(logprobs, 0)
        print(f"{kind:14} {len(logprobs):6} {base:8.3f}", *(f"{other - base:+8.3f}" for other in others))


VARIANTS = dict(positive=(grpo, positive), mixed=(raft_pp, mixed))

if __name__ == "__main__":
    word, folders = "".join(sys.argv[1:2]), sys.argv[2:]
    if word == "tokens" and folders:
        with bad_input():
            raise SystemExit(tokens(folders))
    if word not in VARIANTS:
        fail("lab/why.py: give positive or mixed and flags, or tokens and the folders of runs")
    algorithm, algorithm.advantages = VARIANTS[sys.argv.pop(1)]
    algorithm.main()
