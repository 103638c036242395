"""One web server: its site, its socket, its health, its end."""
