"""What host memory and the disk hold, and what is on its way to them."""
