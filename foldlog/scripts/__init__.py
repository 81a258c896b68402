"""The `foldlog` command: commands for operators, auditors and devices."""
