"""GRPO and RAFT++ with one difference between them less, to see which difference decides.

    python lab/why.py positive ...  grpo.py without its wrong answers: a negative advantage is 0
    python lab/why.py mixed ...     raft_pp.py without the prompts whose answers are all right, which GRPO cannot see

The flags are those of grpo.py and of raft_pp.py."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parent.parent)
import common  # before torch

import grpo
import raft_pp


def positive(rewards, cfg, usual=grpo.advantages):
    """rewards [P, n] -> GRPO's (adv [P, n], keep [P, n]), with 0 in place of negative advantages."""
    adv, keep = usual(rewards, cfg)
    return adv.clamp(min=0), keep


def mixed(rewards, cfg, usual=raft_pp.advantages):
    """rewards [P, n] -> RAFT++'s (adv [P, n], keep [P, n]), without prompts that are all right."""
    adv, keep = usual(rewards, cfg)
    return adv, keep & common.mixed(rewards)[:, None]


VARIANTS = dict(positive=(grpo, positive), mixed=(raft_pp, mixed))

if __name__ == "__main__":
    algorithm, advantages = VARIANTS[sys.argv.pop(1)]
    algorithm.advantages = advantages
    algorithm.main()
