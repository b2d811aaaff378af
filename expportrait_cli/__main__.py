"""`python -m expportrait_cli`: the command line, for what launches modules."""

from expportrait_cli.cli.app import main

if __name__ == "__main__":
    main()
