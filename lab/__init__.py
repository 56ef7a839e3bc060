"""The lab: claims of six papers about RLVR, each an experiment that you can repeat on a laptop, with a verdict.

    python -m lab                        list the claims, with the last verdicts
    python -m lab 17 25                  run what these claims need, and judge them
    python -m lab tune                   try the learning rates of RATES, on seeds of their own: 1.5 hours on two cores
    python -m lab all                    everything else: about 4 hours on two cores
    python -m lab real                   the claims on real models (lab/real.py says what that needs): hours
    python -m lab --report               write docs/lab.md and its figures from lab/results.json; run nothing
    python -m lab 1 3 --model qwen2.5-math-1.5b --data numina-math --launcher "torchrun --nproc-per-node 8"

The heart is two tables in claims.py. SETTINGS are command lines of our own scripts. CLAIMS are what the papers say:
what to measure in each seed, and where the mean over seeds has to be. The verdict comes from the 95 % interval of that
mean (verdicts.verdict): `holds` if it is where the claim says, `fails` if it is elsewhere, else `undecided`. Learning
rates and the number of seeds come from tuning seeds. Criteria are fixed before anyone looks at the seeds that count.
The prose of the report is page.md.
"""
