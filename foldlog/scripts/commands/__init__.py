"""The commands of the `foldlog` program. Each module has one command or one group of commands."""
