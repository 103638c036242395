"""The command line, the web server, the page and the API. Holds no torch and no SQL."""
