-- name: begin -- for a transaction that compares whole tables: one snapshot, enough memory, parallel workers
-- A join stays in memory if it fits (4 MB, the default, spills at 40,000 rows). The planner takes sha256 for as cheap
-- as an addition and expects most rows to differ, so without the third setting it uses no parallel workers.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;
SET LOCAL work_mem = '256MB';
SET LOCAL parallel_tuple_cost = 0.001;
SET LOCAL lock_timeout = '1s'

-- name: few_keys -- for a transaction that looks up the keys of a queue of changes: each by an index
-- The planner takes neighbouring pages and rows for so cheap that for 1,000 keys of 300,000 rows it reads the whole table,
-- by a scan or through an index from end to end. Then a run costs what the table is, and not what has changed.
SET LOCAL seq_page_cost = 100;
SET LOCAL random_page_cost = 1;
SET LOCAL cpu_index_tuple_cost = 1;
SET LOCAL jit = off;
SET LOCAL max_parallel_workers_per_gather = 0
