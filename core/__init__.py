"""Everything that a reader of the algorithms need not open; common.py is the door.

config        fields of a configuration, the table of models, how bad input is refused
data          prompt templates, problems, the order in which a run draws them
rows          the rows of data sets: aliases, local files, the hub; easy: built-in ones for a small real model
files         local files, read row by row; locks; a full disk
hub           is the hub there, and what went wrong
sampler       responses from plain torch; vllm_sampler: from vLLM
answers       the final answer of a response, in one way of writing
verify        is a response right?
rewards       what is rewarded
rollout       the batch of prompts and responses, the same on every process
packing       sequences of unequal length in one row, and attention over it
policy        the trainable model
checkpoint    the output folder of a run
record        what a run says, and what it leaves: samples token by token, evaluations, its page
processes     torchrun's processes
plan          the memory that training needs
evaluation    statistics of evaluations and experiments, and the files in which responses are saved
experiments   the lab's runs, and the numbers that are kept of them
report        the lab's verdicts, its figures and its page; papers: its prose
worlds        a teacher, primed and half-trained models, a miniature Countdown, for the lab
"""

import sys

if sys.platform == "win32":  # before a module of core imports what Windows does not have, such as resource
    print("error: nanoRLVR runs on Linux and macOS; on Windows use WSL (in a terminal: wsl --install)", file=sys.stderr)
    sys.exit(2)
