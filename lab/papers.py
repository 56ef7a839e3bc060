"""The prose of docs/lab.md: what each paper says, and what we see. It describes the committed lab/results.json. When
those numbers change, read this prose again."""

PAPERS = {  # title, arXiv, what it says, what we see
    "minimalist": ("A minimalist approach to LLM reasoning", "2504.11343", """
Training on right answers alone (RAFT) is nearly as good as GRPO, above all with ratio and clip (RAFT++). What
GRPO gains over Reinforce comes from dropping prompts whose answers are all wrong, not from its normalisation.
Dropping all-right ones as well gives Reinforce-Rej.""", """
Right answers alone are not nearly as good but better: RAFT ends at 52 %, RAFT++ at 50 %, GRPO and Reinforce-Rej
at 44 %, and within 30 steps nobody passes anybody. RAFT++ stays three points below RAFT, with its clip or
without; the clip binds on about one token in 1,500, too few to help or to harm. All-wrong prompts do harm
Reinforce, by 13 points, as the paper says. But silencing them by subtracting the mean helps as well, by 9
points, and Reinforce-Rej and GRPO cannot be told apart in accuracy."""),
    "sober": ("A sober look at progress in language model reasoning", "2504.07086", """
With small benchmarks and few seeds results are a matter of luck; templates and length limits move them; wrong
answers are longer.""", """
All of it, as far as five seeds can tell. Without its template the base falls from 28 to 2 %. Wrong answers are
3 tokens longer than right ones in the base and 12 after GRPO, which stops guessing: what is wrong then are long
problems."""),
    "spurious": ("Spurious rewards", "2506.10947", """
Random or wrong rewards can make a model better, if they send it back to a strategy that it was good at;
clipping is what gives noise that direction.""", """
Votes are as good as the truth, and what the truth teaches is above all to switch to python, where that is the
better style. One example and even wrong labels shift the model to python too, by 19 to 33 points; wrong labels
gain nothing by it. Random rewards only harm, by 12 points with the clip and 19 without it, and the share of
python goes up in some seeds and down in others. The mechanism is real (28), but the clip binds on one token in
three thousand, and the noise of eight steps of Adam per rollout outweighs it. That random rewards harm the
model whose frequent style is the worse one (26) says little here: they harm the other one as well."""),
    "limit": ("Does RL really incentivize reasoning beyond the base model?", "2504.13837", """
RL makes the first sample better. What it solves within many samples the base solved already, and some of that
is lost.""", """
So it is: GRPO is ahead of the base by 13 points at k = 1, behind it from k = 5 on, and 13 points behind at k =
256, while distillation from a teacher that makes no mistakes is ahead everywhere. How much is lost differs from
seed to seed, so that most claims about its details stay undecided on 48 problems. Not one problem is solved by
all of 256 samples, before or after, which leaves one part of claim 20 without a number."""),
    "behaviors": ("Cognitive behaviors that enable self-improving reasoners", "2503.01307", """
A base that verifies and backtracks gains more from RL; whether the examples that taught it were right matters
little.""", """
Being right matters here. Primed with right searches the model starts at 54 % and RL takes it to 63 %; with
direct answers from 30 to 38 %. So RL adds as much to answers as to search, and the lead is what imitation gave.
Primed with searches that end wrong it starts at 22 % and reaches 26 %, and it stops searching: from one
rejected attempt per response to a quarter of one. Its verdicts were shown to be worthless, so nothing rewards
them. A large model may know better than the examples that prime it; this one knows only what it was shown."""),
    "reflection": ("Rethinking reflection in pre-training", "2504.04022", """
A model can correct a wrong solution when it is told to wait, and learns this during pretraining.""", """
Yes, in the small: told to wait, the base solves 5 % of the problems whose solution has gone wrong, told nothing
3 %, and both rise in the course of pretraining. (After 300 steps of it; the base of this project had 1,000.)"""),
    "others": ("Dr. GRPO, one-shot RLVR, TTRL", "2503.20783, 2504.20571, 2504.16084", """
How the loss is normalised decides how long wrong answers get; one example, or votes in place of labels, are
enough to learn.""", """
The weights are what Dr. GRPO says, but our problems fix the length of a solution, and a difference of a token
in the length of wrong answers is not established. One example gains 7 points, which is not clearly more than
the 2 points of rewarding the format."""),
    "real": ("Real models on real benchmarks", "the papers above", """
What the papers measured on models of 1.5 to 72 billion parameters.""", """
Of Qwen's single responses 18 % are right (GSM8K 23 %, MATH-500 7 %). The vote of 16 is right for 33 % of the problems,
and for 66 % at least one of the 16 is. SmolLM2 and Gemma were right in two of 1,536 responses each, too few to compare
their conditions. Seeds scatter by 5.6 to 7.1 points on 30 problems; chance alone gives 4.8 to 6.6. Qwen's right answers
are 45 tokens shorter, but most of them are to GSM8K, which is easier. Without a template 12.5 % are right, with one 15
to 20 % (sober 20, qwen-math 19, cot 18, chat 15). Which of these four is best remains open.

Qwen uses Python in 31 % of its responses, SmolLM2 in 2 %, Gemma in 0.4 %. But of its responses with Python only 10 %
are right, and 21 % of the others. That comes from GSM8K (12 and 29 %); on MATH-500 both are 7 %. Harder problems are
not the reason: compared within each problem, Python is 12 points worse. A likely one: nothing runs the code, so Qwen
has to guess what it prints. In the third and the fifth response below it guesses 4.0 for 8, and 255 for 570. Without a
template, 61 % of the responses use Python. If every response has to begin with "Let's solve this using Python.", 88 %
do, and 12 % are right in place of 18 %. (SmolLM2 and Gemma then use Python in only 27 and 22 %, so they test nothing.)
In the paper, Python helps Qwen2.5-Math. But forced, Qwen2.5-7B falls there too, from 42 to 22 %.

With "Wait," Qwen mends 7 of 384 wrong solutions, without it 1. That is undecided. And without it, Qwen mostly stops at
once, so this compares going on with stopping: it does not test the word. SmolLM2 mends 0 and 1.

Claims 42 and 43 are ten steps of RL, with 64 responses each. The prompt has three worked examples, and a response has
room for 64 tokens. If right answers are rewarded, Qwen goes from 22 to 82 % with GRPO and to 87 % with RAFT++, and
SmolLM2 from 16 to 43 and 45 %. Qwen learns to go step by step: it writes 3.3 equations per response in place of 1.9.
(More boxes, in 100 % of its responses in place of 85, explain only 4 points of its gain.)

If random responses are rewarded, Qwen falls from 22 to 17 % and writes fewer equations (1.5). The clip acts on 0.8 % of
the tokens, about as often as if right answers are rewarded (0.7 %). In the paper, random rewards bring Qwen back to
Python. Here they can't: Qwen uses Python in 1 % of these responses. So this does not test the paper's explanation.
SmolLM2 falls from 16 to 11 %: it writes fewer boxes.

If a box is rewarded, whatever is in it, both models soon write one in nearly every response. SmolLM2 gains 12 points,
of which the new boxes alone explain 7. The seeds of Qwen disagree: with two of them it falls to 9 and 11 % and writes
fewer equations (0.9 and 1.2), with the third it rises to 35 % and writes a few more (2.2)."""),
}

TENSION = """
**A tension inside this paper.** It credits GRPO's gain over Reinforce to dropping all-wrong prompts. It also finds that
subtracting the mean (+ mean zero) raises the KL without a gain. But subtracting the mean gives all-right and all-wrong
prompts an advantage of exactly 0. So they have no gradient, as if they were dropped. And with 4 responses and rewards
of -1 and 1, its advantages (1.5 and -0.5 with one right, 1 and -1 with two) differ from GRPO's by a factor of at most
1.155. So if one does well and the other doesn't, the reason can't be the advantages. Possible reasons:

- chance: no seeds are reported;
- the learning rate: larger advantages are larger steps, unless the optimizer undoes it, as Adam does with a constant
  factor;
- the KL and entropy terms of the released code, which are not in the paper's formulas;
- the normalisation: a prompt without a gradient counts in the mean over tokens, a dropped one may not. Code for the
  variants was not released.

Here prompts without a gradient count in the mean over tokens too."""

OPENING = """
# The lab: do the papers' claims hold here?

Of {claims} claims: {tally}. Claims 10, 12, 27 and 28 need no model: they are computed from the formulas."""

TOOK = """
What it took (two runs at a time on two cores halve the hours):

- for the verdicts: {counted}
- for learning rates, by `python -m lab tune`: {rates}
- for the spread over seeds, by `python -m lab all --seeds 100-101`: {spread}
- to repeat some claims with other seeds: {again}

`python -m lab 17 --results out/mine.json --out out/mine` repeats claim 17 from nothing; with `all` in place of 17, all
claims of sections 1 to 7. This page is written by `python -m lab --report` from lab/results.json alone."""

WORLD = """
## The world

Except in section 8, the model has 0.7 million parameters, and a problem is a nested sum such as `(7+5)*3`. So a verdict
says whether a claim carries over to this world, not whether it is true in the paper's.

The base was pretrained on solutions with mistakes. About half of its responses are in a python style, one step per
line: `python`, `7+5 #12`, `12*3 #36`, `\\boxed{36}`. The others are in words: `7+5=12`, `12*3=36`, `\\boxed{36}`. In
python fewer steps are wrong. (In the other base, tiny-badcode, more.) Some responses only guess, some mend a step
(`12*3=38 wait 36`), and some have no box, so that no answer counts. The base solves 45 % of the problems with two to
five operations, and 28 % of those with two to eight. It was pretrained on at most five.

What the words mean here. Rollout: the responses that a step samples. The clip binds on a token if it changes its
gradient. A group: the responses to one prompt. Mean zero: the group's mean reward is subtracted from each reward. KL:
how far a policy is from the base, in nats per token. pass@k: the chance that at least one of k responses is right."""

VERDICTS = """
## How a verdict is made

The seed is the unit. Differences are taken between runs of the same seed. The interval is the 95 % interval of their
mean, by Student's t over seeds. A claim has parts, each with a criterion such as "> 0, 0.03 matters":

- A part **holds** if its whole interval lies where the criterion says, however near to the border.
- It **fails** if the whole interval lies elsewhere. It also fails if the interval contains 0 and ends below 0.03: if
  there is a difference, it is too small to matter.
- Else it is **undecided**. If the criterion names a size, the row then says how many seeds would find a difference of
  that size in 80 % of the cases. ("near a border": as many as were run, but the true value seems to be smaller.)

A claim holds if all of its parts hold, and fails if one fails. Each part is wrongly said to hold, or to fail, in at
most 2.5 % of the cases. So a claim with five parts may fail wrongly in up to 12.5 %.

"Within 0.03": the whole interval lies between -0.03 and 0.03, so these are two one-sided tests at 2.5 %. The last
column is the p-value of the part that decides, adjusted by Holm's method over all sampled claims. (Section 8 is
adjusted separately. If parts fail, their smallest p is multiplied by the number of sampled parts.) The verdicts are not
adjusted. But for claim 34, base and test problems are the same for all seeds. So the intervals say nothing about other
bases."""

TUNED = """
## What was fixed beforehand

Criteria, seeds and sizes were chosen after the first report, on tuning seeds, and committed (8f8ca4c). They were
amended twice (29716b4 and fc5b540), when the first runs of seed 0 were in the file, but nobody had looked at a result.
Since then no criterion has changed; remarks and labels have. (Claims 16, 33 and 34 are those of the first report.
Section 8: lab/real.py says how.) The sentences after the counts under "We see" were written by hand, for the results in
lab/results.json.

## How it was made fair

The learning rate of each method is the best of a grid. `python -m lab tune` tries the rates of the third table, with
seeds 100 and 101, which no verdict uses, but on the same test problems. Accuracy is that of the last evaluation: mean
and standard deviation of the two seeds. Of two rates that are less than half a point apart, which two seeds can't tell,
the lower one counts as better. Where the best rate was the lowest or the highest, the next one was tried as well.

The words in capitals are the regimes. A step has 64 problems with 4 responses each (iterative DPO: 128 problems, 15
steps, 8 updates).

| word | operations in a problem | updates per step | steps | clip |
|---|---|---|---|---|
| WIDE | 2 to 8 | 2 | 30 | 0.2 |
| LONG | 2 to 8 | 2 | 150 | 0.2 |
| MANY | 2 to 8 | 8 | 30 | 0.2 |
| CLIPPED | 2 to 8 | 8 | 30 | 0.02 |
| PLAIN | 2 to 5 | 8 | 30 | 0.02 |
| HABIT: PLAIN on a base that was trained on, until two thirds of its responses are python | 2 to 5 | 8 | 30 | 0.02 |

Settings that are not in the third table have the rate of another one:

| setting | has the rate of |
|---|---|
| `sequence`, `constant`, `grpo_positive`, `grpo_no_std` | `grpo` |
| `raft_pp_mixed` | `raft_pp` |
| `distilled` | `raft` |
| `grpo_kl`, `raft_pp_same` | `grpo_long` |
| `clip_higher` | `raft_pp_clipped` |
| all in section 3, whatever is rewarded, and one example | `true_good` (5e-5) |

PPO's critic has ten times the rate of its policy. Section 5 was not tuned (1e-4, as in the first report)."""

CLIP = """
Where a claim is about the clip, it has to bind. So there are 8 updates per rollout, and a token whose ratio is beyond
0.98 or 1.02 is clipped. Share of the tokens on which it binds, on the tuning seeds: {binding}. So part 1 of claim 1,
with 2 updates and the usual clip, compares RAFT with RAFT++ almost without a clip."""

POWER = """
## How it was made decisive

How many seeds does a verdict take? Seeds 100 and 101 say how much a number differs from seed to seed: its spread. It is
pooled over the parts that measure the same thing and have to know it to the same size. If the true difference is
exactly what matters, so many seeds find it in 80 % of the cases. For "within" and for margins, the true difference is
taken to be 0. (It can't be 0 in claim 23, nor in the first part of 19: these need more.)

What matters was chosen by hand: three points of accuracy (in table 1 of the first paper, RAFT++ gains 3.8 and 1.7
points on RAFT), a tenth of the entropy, a fifth of the KL, two tokens. With 8 updates per rollout it is five points,
and after 150 steps seven: seeds scatter more there, and ten seeds can't show less. All claims got ten seeds, though
some need fewer: the runs are shared.

Where a row has one part, its spread comes from two numbers, and the true one may be many times larger. And the 80 % are
those of a part: a claim with three parts has less. Claim 18 was not tried on tuning seeds. Claim 28 is a simulation
whose spread is known to be 1: it would need 13 seeds.

Claims 16, 33 and 34 were decided before, with five seeds. Their settings are the same as then, so they were not run
again."""

BEFORE = """
## What changed since the first report

The first report had five seeds, one learning rate for all methods, 32 x 4 responses, 8 updates per rollout, 30 steps,
and 48 problems for pass@256. It left 17 claims undecided. Now each method is tuned, and an interval that excludes every
difference that matters counts as a failure. Margins of accuracy are 0.03 in place of 0.02: ten seeds can show those."""

HELD, FAILED = (10, 12, 14, 15, 16, 17, 22, 23, 26, 27, 28, 30, 31, 34), (1, 3, 33)  # then; the others were undecided
CHANGED = {  # what is different in the experiment: claims
    "tuned": (6, 7, 11),
    "tuned; KL as a ratio": (8, 9),
    "tuned; a margin, since the paper says 'at least'; also with a clip that binds": (1,),
    "tuned; a clip that binds": (2,),
    "tuned; 150 steps, not 30; entropy as a ratio, at the same rate": (3,),
    "the first 50 of 150 steps, not 10 of 30; KL as a ratio, at the same rate": (4,),
    "tuned; a clip that binds; entropy as a ratio": (5,),
    "tuned; 128 problems, not 48; 0.1 in place of 0.25": (23,),
    "128 problems, not 48; says 1 / sqrt(m); chance is taken from the same problems": (13,),
    "within 1 standard error, not 3": (28,),
    "disjoint groups of samples in place of draws; four sets of 30 problems, not one": (14,),
    "150 steps, not 30; 128 problems, not 48": (15, 17, 18, 19, 22, 24),
    "150 steps, not 30; 128 problems, not 48; without a part that arithmetic decides": (21,),
    "150 steps, not 30; 128 problems, not 48; nearly always in place of always": (20,),
    "tuned; 64 x 4 responses; a clip that binds": (31, 32),
    "tuned; 64 x 4 responses; a clip that binds; a base with a habit; entropy as a ratio; as many updates with a small "
    "rollout": (25,),
    "tuned; 64 x 4 responses; a clip that binds; two bases with the habit; compared with the other base": (26,),
    "tuned; 64 x 4 responses; a clip that binds; 'nearly as good' is a margin of 0.05 (before: votes are not better by "
    "0.02)": (29,),
    "tuned; 64 x 4 responses; a clip that binds; a margin of 0.02 in place of 0.05, and a gain": (30,),
}

WHY = """
**Does RAFT beat GRPO here, and why?** To be written when the runs are in."""
