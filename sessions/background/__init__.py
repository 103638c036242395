"""Threads that work while no one waits."""
