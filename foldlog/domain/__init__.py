"""The product itself, as pure code. The clock, I/O, databases and HTTP are outside this package.

Read the modules in this order: `changesets` (the input), `events` (the content of the log),
`proofs` (commitments and leaves), `merge` (the fold), `push_decider` (decides a push), `ports`
(interfaces to the outside).
"""
