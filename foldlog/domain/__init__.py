"""The product itself, pure: no clock, no I/O, no database, no web framework.

Read in this order: `changesets` (what an app sends), `events` (what the log holds), `proofs`
(what makes it provable), `merge` (the fold), `intake` (what becomes of a push), `ports` (what
the outside must offer).
"""
