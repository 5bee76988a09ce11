"""What a configuration costs before it is run, in parameters, bytes and floating-point operations, and whether that is so."""
