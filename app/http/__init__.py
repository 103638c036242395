"""HTTP itself: connections, their limits, the bodies of requests."""
