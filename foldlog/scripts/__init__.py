"""The command line program `foldlog`, with commands for operators, auditors and devices."""
