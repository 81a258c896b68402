"""`python -m foldlog` is the `foldlog` command."""

from foldlog.scripts.main import main

if __name__ == "__main__":
    main()
