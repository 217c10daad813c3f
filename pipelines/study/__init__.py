"""Does the cached teacher teach? Students that differ in nothing but what they learn from, on text that is at hand.

    text -> teacher -> for each seed all arms in lock-step -> metrics -> docs/distillation.md

One process without Ray. The students of one seed start from the same weights and take the same rows in the same steps;
the teacher sees each step's rows once for all of them. `python -m pipelines.study` says how to run it.
"""
