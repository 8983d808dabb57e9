"""Models and train states on disk, in every format that is read or written."""
