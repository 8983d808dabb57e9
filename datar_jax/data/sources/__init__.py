"""Random access to clips: cached features, or ArrayRecord shards."""
