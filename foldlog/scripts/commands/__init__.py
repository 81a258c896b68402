"""The commands of `foldlog`, one file per command or group of commands."""
