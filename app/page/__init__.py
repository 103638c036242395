"""Everything a person sees: the page, its scripts, and the handlers that answer them."""
