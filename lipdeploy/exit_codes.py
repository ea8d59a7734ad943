"""Exit codes that no exception of lipdeploy carries. ``lipdeploy.errors`` has the others, beside what they mean."""

INTERNAL_ERROR = 5
INTERRUPTED = 130
BROKEN_PIPE = 141
