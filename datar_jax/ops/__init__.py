"""Pure array functions: sampling, attention, position bias, convolutions. Imports no flax."""
