"""What the papers say, and what we see: the prose of docs/lab.md, which holds for the committed docs/lab.json. When its
numbers change, read this again."""

PAPERS = {  # title, arXiv, what it says, what we see
    "minimalist": ("A minimalist approach to LLM reasoning", "2504.11343", """
Training on right answers alone (RAFT) is nearly as good as GRPO, above all with ratio and clip (RAFT++). What
GRPO gains over Reinforce comes from dropping prompts whose answers are all wrong, not from its normalisation.
Dropping all-right ones as well gives Reinforce-Rej.""", """
Right answers alone are not nearly as good but better: RAFT and RAFT++ end above GRPO and Reinforce-Rej, by 6
points or more, and nobody passes them within 30 steps. Ratio and clip do not help RAFT; they cost it two
points, with or without the clip, which hardly ever binds. All-wrong prompts do harm Reinforce, much as the
paper says. GRPO and Reinforce-Rej can't be told apart."""),
    "sober": ("A sober look at progress in language model reasoning", "2504.07086", """
With small benchmarks and few seeds results are a matter of luck; templates and length limits move them; wrong
answers are longer.""", """
All of it, as far as five seeds can tell. Without its template the base falls from 25 to 2 %."""),
    "spurious": ("Spurious rewards", "2506.10947", """
Random or wrong rewards can make a model better, if they send it back to a strategy that it was good at;
clipping is what gives noise that direction.""", """
Votes are as good as the truth, and what the truth teaches the model is above all to switch to python. Random
rewards teach nothing: both models get worse, with and without the clip, and the share of python goes up in
some seeds and down in others. The mechanism itself is real (28), but the clip binds on so few tokens that the
noise of eight steps of Adam per rollout outweighs it. So that random rewards harm the model whose frequent
strategy is the worse one (26) says little here: they harm the other one as well."""),
    "limit": ("Does RL really incentivize reasoning beyond the base model?", "2504.13837", """
RL makes the first sample better. What it solves within many samples the base solved already, and some of that
is lost.""", """
The curves of pass@k cross, at a k below 10, and GRPO's pass@256 lies below the base's; but how far differs so
much from seed to seed, on 48 problems, that five seeds are few. Algorithms differ little."""),
    "behaviors": ("Cognitive behaviors that enable self-improving reasoners", "2503.01307", """
A base that verifies and backtracks gains more from RL; whether the examples that taught it were right matters
little.""", """
"""),
    "reflection": ("Rethinking reflection in pre-training", "2504.04022", """
A model can correct a wrong solution when it is told to wait, and learns this during pretraining.""", """
"""),
    "others": ("Dr. GRPO, one-shot RLVR, TTRL", "2503.20783, 2504.20571, 2504.16084", """
How the loss is normalised decides how long wrong answers get; one example, or votes in place of labels, are
enough to learn.""", """
The weights are what Dr. GRPO says, but our problems fix the length of a solution, and nothing grows. One
example, sampled again and again, does teach something, in most seeds."""),
}  # fmt: skip

TENSION = """**A tension inside this paper.** It credits GRPO's gain over Reinforce to dropping all-wrong prompts, and
finds that subtracting the mean (+ mean zero) raises the KL without a gain. Yet subtracting the mean gives all-right and
all-wrong prompts an advantage of exactly 0, so it silences both; with 4 responses and rewards of -1 and 1 its
advantages (1.5 and -0.5 with one right, 1 and -1 with two) differ from GRPO's by a factor of at most 1.155. A method
that is GRPO up to that factor can't do badly for a reason that lies in the advantages. What is left: one seed per
curve; the learning rate, since larger advantages are larger steps where the optimizer does not undo it; the KL and
entropy terms of the released code, which are not in the paper's formulas; the normalisation, since that code counts
silenced responses in its mean over tokens and dropped ones may not be; code for the variants was not released. The
figure of the variants and claims 6 to 9 show what happens here, where nothing but the advantage differs."""
