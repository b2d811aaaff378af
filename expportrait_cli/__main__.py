"""Entry point of `python -m expportrait_cli`, the same as the command `expportrait`."""

from expportrait_cli.cli.app import main

if __name__ == "__main__":
    main()
