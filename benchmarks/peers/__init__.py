"""Other systems that devices sync with, given the same work: a module each.

They are started as their own documentation says, on this machine, and driven by the same
generator. Nothing is installed here: docs/explanation/benchmarks.md says how that is done.
"""
