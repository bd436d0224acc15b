"""One technique, one file that reads top to bottom; a recipe's Config is its command line and `run(config)` does it."""
