"""The commands beside `serve`: what a person runs in a terminal."""
