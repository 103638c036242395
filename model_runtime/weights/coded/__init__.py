"""Block-quantised matrices of every format as one thing: codes and the scales of runs of columns."""
