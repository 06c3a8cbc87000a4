"""Benchmarks: ours beside others on the same work, in one run, as a ratio. ``python -m tests.benchmarks`` lists them.

Absolute numbers are those of a machine and an hour; ratios of interleaved rounds travel better. On a shared two-core
machine a gap under 30 % is a tie.
"""
