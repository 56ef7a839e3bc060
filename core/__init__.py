"""Everything that a reader of the algorithms need not open. common.py is the door. One noun of the loop per file:

config        flags, the table of models, --help
data          prompt templates, problems, the order in which a run draws them
rows          the rows of data sets: aliases, local files, the hub
tiny          all built-in problems and models
hub           is the hub there, and what went wrong
streams       the random numbers of each response
sampler       responses from plain torch; vllm_sampler: from vLLM
rollout       a batch of prompts and responses, the same on every process
answers       the final answer of a response, in one way of writing
verify        is a response right?
rewards       grading, and what is rewarded
minibatches   a batch cut into updates and micro-batches
packing       sequences of unequal length in one row, and attention over it
linear        the layers of a model on a CPU
head          logits, a chunk of tokens at a time
policy        the trainable model
memory        what training and an engine need of a GPU, and the choices that follow
meter         the numbers of the step that is running
checkpoint    the output folder of a run
record        what a run says and leaves: samples token by token, evaluations, its pictures
saved         files of saved responses
stats         statistics of evaluations and experiments
files         reading, writing and locking files
processes     torchrun's processes, and how bad input is refused
"""

import os
import sys

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # torch's threads should not spin for long while they wait for work
if sys.platform == "win32":  # before a module of core imports what Windows does not have, such as resource
    print("error: nanoRLVR runs on Linux and macOS; on Windows use WSL (in a terminal: wsl --install)", file=sys.stderr)
    sys.exit(2)
