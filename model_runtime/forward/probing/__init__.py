"""How a model earns packed forwards: what its layers ask for is read off, and packed is compared with alone."""
