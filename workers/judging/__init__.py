"""How texts are judged: what a judge is asked, and what its replies say. Pure."""

from workers.judging.replies import parse_reply
from workers.judging.requests import (
    judge_prompt,
    presentation_order,
    response_format,
    template_hash,
)

__all__ = ["judge_prompt", "parse_reply", "presentation_order", "response_format", "template_hash"]
