"""The launcher: stock celery beat, fenced in its own process and known to tick."""
