"""`python -m megalign`."""

from megalign.cli import main

if __name__ == "__main__":
    main()
