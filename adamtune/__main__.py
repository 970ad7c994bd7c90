"""`python -m adamtune` is the command line."""

from adamtune.cli import main

main()
