"""The live half of each system, as pieces for child processes: one module a system, the same pieces in each.

``hear_latencies`` and ``hear_all`` listen, ``publish_at_leisure`` and ``publish_in_batches`` are heard. A module imports
its own system and :mod:`tests.benchmarks.hearing.load`, and nothing else: it may run where nothing else is installed.
"""
