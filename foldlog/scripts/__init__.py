"""The `foldlog` command: what an operator and an auditor type."""
