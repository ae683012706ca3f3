"""Run the command line: `python -m leaf`."""

from leaf.commands.main import main

main()
