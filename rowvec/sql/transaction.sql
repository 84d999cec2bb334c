-- name: begin -- for a transaction that compares whole tables: one snapshot, enough memory, parallel workers
-- A join stays in memory if it fits (4 MB, the default, spills at 40,000 rows). The planner takes sha256 for as cheap
-- as an addition and expects most rows to differ, so without the third setting it uses no parallel workers.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;
SET LOCAL work_mem = '256MB';
SET LOCAL parallel_tuple_cost = 0.001;
SET LOCAL lock_timeout = '1s'
