"""The commands of ``rowvec``: one module per group, one function per command."""
