"""Prepares published data sets: download, extract, match files, encode shards."""
