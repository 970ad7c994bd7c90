"""The command line, one file a command: parse, call, render, exit code."""

from adamtune.cli.app import main as main
