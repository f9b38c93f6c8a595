"""Token by Token: an LLM inference engine, built one measured step at a time. Introduced in chapter 1."""

from lib.engine.llm import LLM
from lib.engine.params import SamplingParams

__all__ = ["LLM", "SamplingParams"]
