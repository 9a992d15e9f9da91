"""The derivations: one file each; `Walker` shows one line by line, and checks every line."""
