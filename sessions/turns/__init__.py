"""One answer, from its limits to its receipt; and requests that resend their whole history."""
