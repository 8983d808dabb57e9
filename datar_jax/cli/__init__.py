"""Command-line interface: one file per command; options in, library call, exit status out."""
