"""Other systems that devices sync with, under the same work: a module each.

They start as their documentation says, on this machine, and get the same load. They must be
installed beforehand: see docs/explanation/benchmarks.md.
"""
