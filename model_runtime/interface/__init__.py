"""What the rest of the program may know of the runtime. Imports no torch."""
