"""rowvec keeps vectors in Postgres (pgvector) consistent with the rows they were computed from."""
