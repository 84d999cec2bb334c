"""The programs that the peers' documentation tells a user to write; each runs in a virtual environment of its own."""
