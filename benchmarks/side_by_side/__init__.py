"""`make bench`: DeepInfer beside what else can serve the same checkpoint, in one run.

Every contender is a file that says how it is installed, started and ended; those with a server are
all measured by the client of `deepinfer bench serve`. Figures are medians of rounds in which the
contenders take turns, so that whatever else the machine does meets all of them.
"""
