"""The rules of Foldlog as pure code. This package is free of clocks, I/O, databases and HTTP.

Read the modules in this order: `changesets` (the input), `events` (the content of the log),
`proofs` (commitments and leaves), `merge` (the fold), `push_decider` (decides a push), `ports` (the
interfaces to databases and other outside parts).
"""
