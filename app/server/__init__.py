"""The web server: its site, its socket, its health, its shutdown."""
