"""`python -m megalign.cli`: the command line where its script is not on the path."""

from megalign.cli.app import main

main()
