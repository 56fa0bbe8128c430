"""Words in, tables out, an exit code: one file per command."""
