"""How texts are judged: what a judge is asked, and what its replies say. Pure."""

from workers.judging.expectation import expected_ratings
from workers.judging.juries import Verdict, flips, rationales, verdict
from workers.judging.replies import parse_reply
from workers.judging.requests import (
    aspect_hash,
    correction,
    judge_prompt,
    presentation_orders,
    response_format,
    template_hash,
)

__all__ = [
    "Verdict",
    "aspect_hash",
    "correction",
    "expected_ratings",
    "flips",
    "judge_prompt",
    "parse_reply",
    "presentation_orders",
    "rationales",
    "response_format",
    "template_hash",
    "verdict",
]
