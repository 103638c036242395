"""Who is let in: passwords, cookies, API keys, hosts and origins, the public link."""
