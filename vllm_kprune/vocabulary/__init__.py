"""Which tokens a language profile keeps, and why."""
