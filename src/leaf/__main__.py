"""Run the command line: `python -m leaf`."""

from leaf.cli import main

main()
