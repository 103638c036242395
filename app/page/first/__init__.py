"""What a browser gets first: the frame of the page with its empty state, and the files that the frame asks for."""
