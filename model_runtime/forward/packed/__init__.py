"""What a packed forward gives the layers, and takes back, for each of its conversations apart."""
