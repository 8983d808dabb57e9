"""Published data sets by name: one small file each."""
