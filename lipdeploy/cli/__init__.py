"""The command line: one module per command, ``main`` for exit codes, ``report`` for everything that is printed."""
