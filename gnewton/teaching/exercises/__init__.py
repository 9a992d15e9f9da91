"""The course's exercises, one module ``notebook_NN`` per notebook with its ``EXERCISES``; ``check`` finds them by number."""
