"""Everything that needs a GPU, by one command: `make gpu`. See __main__.py."""
