"""The load generator for any OpenAI-compatible server: `python -m lib.loadtest --url URL`. Introduced in chapter 6."""
