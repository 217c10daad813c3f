"""The distillation study: whether a cached teacher teaches. Its students differ only in what they learn from.

    text -> teacher -> for each seed all arms in lock-step -> metrics -> docs/distillation.md

One process without Ray, on the standard library of Python. The students of one seed start from the same weights and
take the same rows in the same steps. The teacher sees the rows of each step once for all students. The commands are in
`python -m pipelines.study --help`.
"""
