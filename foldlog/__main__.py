"""`python -m foldlog` is the `foldlog` command."""

from .scripts.main import cli

if __name__ == "__main__":
    cli()
