"""From labelled files to grain batches. Imports no jax of its own."""
