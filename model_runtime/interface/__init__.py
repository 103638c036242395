"""The part of the runtime that the rest of the program may import. Imports no torch."""
