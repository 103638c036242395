"""Who may come in: passwords, cookies, API keys, hosts and origins, the public link."""
