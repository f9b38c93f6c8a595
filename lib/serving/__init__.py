"""The engine behind HTTP: `python -m lib.serving` speaks the OpenAI protocol. Introduced in chapter 5."""
