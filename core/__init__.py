"""Everything that a reader of the algorithms need not open; common.py is the door.

data       problems, prompt templates, the order in which a run draws problems
sampler    responses from plain torch or from vLLM
answers    the final answer of a response, written in one way
verify     is a response right?
rewards    what is rewarded
rollout    the batch of prompts and responses, the same on every process
packing    sequences of unequal length in one row, and attention over it
policy     the trainable model
processes  torchrun's processes
evaluation statistics of evaluations, and the files in which they are saved
"""
