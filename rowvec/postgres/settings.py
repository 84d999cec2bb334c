"""The server's settings that each transaction of ours makes, and the reason for each; and those that it leaves alone.

A setting of the database or of the role must not change what a value means, how it is read or printed, or how long a
run may take. The settings are made inside each transaction, because a pooler gives the session to others afterwards.
``tests/integration/postgres/test_settings.py`` compares both tables with ``pg_settings``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import LiteralString


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting that every transaction of ours makes."""

    name: LiteralString
    value: LiteralString
    why: str
    since: int = 0
    """The first version of the server that has it, as ``server_version_num``."""


# The limits come first: until they are made, those of the role hold, and the role's may be a millisecond. That of the
# transaction counts from its beginning, and that of a statement for each SET LOCAL alone.
PINNED = (
    Setting("transaction_timeout", "0", "a limit meant for a web server's queries must not end a long merge", 170_000),
    Setting("statement_timeout", "0", "likewise, for each statement"),
    Setting("idle_in_transaction_session_timeout", "0", "the client computes between two statements of a transaction"),
    Setting("lock_timeout", "30s", "a run that waits for ever reports nothing and blocks the runs after it"),
    Setting("client_encoding", "UTF8", "bytes of texts are compared and hashed on both sides"),
    Setting("standard_conforming_strings", "on", "a backslash in a literal is a backslash"),
    Setting("backslash_quote", "safe_encoding", "likewise, in literals with E before them"),
    Setting("quote_all_identifiers", "off", "types are compared as the server prints them"),
    Setting("array_nulls", "on", "NULL in an array's text is NULL"),
    Setting("transform_null_equals", "off", "x = NULL is never true"),
    Setting("DateStyle", "ISO, YMD", "dates are printed and read in one way"),
    Setting("IntervalStyle", "postgres", "intervals are printed and read in one way"),
    Setting("TimeZone", "UTC", "timestamps are printed and read in one way"),
    Setting("timezone_abbreviations", "Default", "abbreviations of time zones are read in one way"),
    Setting("extra_float_digits", "1", "floats are printed with all their digits"),
    Setting("bytea_output", "hex", "bytes are printed in one way"),
    Setting("lc_monetary", "C", "amounts of type money are printed in one way"),
    Setting("lc_numeric", "C", "to_char prints numbers in one way"),
    Setting("lc_time", "C", "to_char prints the names of days and months in one way"),
    Setting("xmlbinary", "base64", "bytes inside XML are printed in one way"),
    Setting("xmloption", "content", "a text becomes XML in one way"),
    Setting("gin_fuzzy_search_limit", "0", "a search by words finds all rows, not a random part"),
    Setting("exit_on_error", "off", "an error that rowvec expects must not end the session"),
    Setting("client_min_messages", "warning", "notices of the server are not what a run prints"),
)

_PLANNER = "it changes which plan is used, not what the plan finds; the operator may have a reason"
_PLACE = "it says where and how data is kept, which is the operator's to say"
_SERVER = "it is about the server's own work, logs and statistics, not about values"
_NETWORK = "it is about the connection as a network sees it"
_RIGHTS = "only a superuser may set it, and then has a reason"

LEFT_ALONE: dict[str, str] = {
    **dict.fromkeys(
        (
            "constraint_exclusion",
            "cpu_index_tuple_cost",
            "cpu_operator_cost",
            "cpu_tuple_cost",
            "cursor_tuple_fraction",
            "default_statistics_target",
            "effective_cache_size",
            "effective_io_concurrency",
            "from_collapse_limit",
            "geqo",
            "geqo_effort",
            "geqo_generations",
            "geqo_pool_size",
            "geqo_seed",
            "geqo_selection_bias",
            "geqo_threshold",
            "hash_mem_multiplier",
            "io_combine_limit",
            "jit",
            "jit_above_cost",
            "jit_expressions",
            "jit_inline_above_cost",
            "jit_optimize_above_cost",
            "jit_tuple_deforming",
            "join_collapse_limit",
            "maintenance_io_concurrency",
            "max_parallel_maintenance_workers",
            "max_parallel_workers",
            "max_parallel_workers_per_gather",
            "min_parallel_index_scan_size",
            "min_parallel_table_scan_size",
            "parallel_leader_participation",
            "parallel_setup_cost",
            "parallel_tuple_cost",
            "plan_cache_mode",
            "random_page_cost",
            "recursive_worktable_factor",
            "seq_page_cost",
            "synchronize_seqscans",
            "work_mem",
        ),
        _PLANNER,
    ),
    **dict.fromkeys(
        (
            "allow_in_place_tablespaces",
            "backend_flush_after",
            "default_table_access_method",
            "default_tablespace",
            "default_toast_compression",
            "file_copy_method",
            "gin_pending_list_limit",
            "logical_decoding_work_mem",
            "maintenance_work_mem",
            "temp_buffers",
            "temp_file_limit",
            "temp_tablespaces",
            "vacuum_buffer_usage_limit",
            "vacuum_cost_delay",
            "vacuum_cost_limit",
            "vacuum_cost_page_dirty",
            "vacuum_cost_page_hit",
            "vacuum_cost_page_miss",
            "vacuum_failsafe_age",
            "vacuum_freeze_min_age",
            "vacuum_freeze_table_age",
            "vacuum_max_eager_freeze_failure_rate",
            "vacuum_multixact_failsafe_age",
            "vacuum_multixact_freeze_min_age",
            "vacuum_multixact_freeze_table_age",
            "vacuum_truncate",
            "wal_compression",
            "wal_consistency_checking",
            "wal_init_zero",
            "wal_recycle",
            "wal_skip_threshold",
        ),
        _PLACE,
    ),
    **dict.fromkeys(
        (
            "backtrace_functions",
            "commit_delay",
            "commit_siblings",
            "compute_query_id",
            "createrole_self_grant",
            "deadlock_timeout",
            "escape_string_warning",
            "icu_validation_level",
            "lc_messages",
            "log_connections",
            "log_disconnections",
            "log_duration",
            "log_error_verbosity",
            "log_executor_stats",
            "log_lock_failures",
            "log_lock_waits",
            "log_min_duration_sample",
            "log_min_duration_statement",
            "log_min_error_statement",
            "log_min_messages",
            "log_parameter_max_length",
            "log_parameter_max_length_on_error",
            "log_parser_stats",
            "log_planner_stats",
            "log_replication_commands",
            "log_statement",
            "log_statement_sample_rate",
            "log_statement_stats",
            "log_temp_files",
            "log_transaction_sample_rate",
            "max_stack_depth",
            "md5_password_warnings",
            "password_encryption",
            "scram_iterations",
            "stats_fetch_consistency",
            "trace_notify",
            "trace_sort",
            "track_activities",
            "track_cost_delay_timing",
            "track_counts",
            "track_functions",
            "track_io_timing",
            "track_wal_io_timing",
            "update_process_title",
        ),
        _SERVER,
    ),
    **dict.fromkeys(
        (
            "client_connection_check_interval",
            "tcp_keepalives_count",
            "tcp_keepalives_idle",
            "tcp_keepalives_interval",
            "tcp_user_timeout",
            "wal_sender_timeout",
        ),
        _NETWORK,
    ),
    **dict.fromkeys(
        (
            "allow_system_table_mods",
            "dynamic_library_path",
            "event_triggers",
            "extension_control_path",
            "ignore_checksum_failure",
            "ignore_system_indexes",
            "lo_compat_privileges",
            "local_preload_libraries",
            "post_auth_delay",
            "restrict_nonsystem_relation_kind",
            "session_preload_libraries",
            "session_replication_role",
            "zero_damaged_pages",
        ),
        _RIGHTS,
    ),
    "application_name": "every BEGIN sets it, to what the transaction is for",
    "check_function_bodies": "the functions that rowvec makes are right either way",
    "default_text_search_config": "every search by words names its configuration",
    "default_transaction_deferrable": "it matters for serializable transactions, of which there are none",
    "default_transaction_isolation": "every BEGIN names its isolation level",
    "default_transaction_read_only": "the operator who sets it wants no writes: the run says so and stops",
    "idle_session_timeout": "a session that was idle too long is opened again at its next transaction",
    "row_security": "with off, a query that would see only a part of the rows fails, and says so",
    "search_path": "every BEGIN sets it, by what the schemas of the role's own path allow others",
    "synchronous_commit": "how durable a commit has to be is the operator's to say",
    "transaction_deferrable": "it is a property of the running transaction",
    "transaction_isolation": "it is a property of the running transaction",
    "transaction_read_only": "it is a property of the running transaction",
}
"""Every other setting that a database or a role may have, with the reason; ``enable_*`` and ``debug_*`` are as the
planner's."""


def statements(version: int, different: dict[str, str]) -> list[tuple[LiteralString, str]]:
    """The name and value of each setting for a server of this version; ``different``: other values, by name."""
    return [(s.name, different.get(s.name, s.value)) for s in PINNED if version >= s.since]
