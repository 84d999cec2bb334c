"""What the peers' documentation has a user write to keep a table in step; each runs in an environment of its own."""
