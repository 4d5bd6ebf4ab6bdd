"""Options of the commands, a module each, without PyTorch: `--help` and mistakes are answered before it loads."""
