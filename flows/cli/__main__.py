"""`python -m flows.cli` is `orchestrion`."""

from flows.cli.main import main

main()
