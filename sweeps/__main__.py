"""`python -m sweeps` is the command `sweeps`."""

from sweeps.cli.main import main

if __name__ == "__main__":
    main()
