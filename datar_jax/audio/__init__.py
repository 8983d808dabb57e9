"""From a sound file to samples to log-mel spectrograms, on host and device."""
