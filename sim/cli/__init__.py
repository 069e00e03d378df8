"""The command line's parts: options, commands, and the help of a run."""
