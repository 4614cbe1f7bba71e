"""A key that is a word, as people set for servers without keys, alters no text."""

import json
from pathlib import Path

from tests.llm_server import LlmServer
from tests.mill import mill, recipe, write_prompts

WORDS = "none, x, EMPTY, ollama, lm-studio, dummy, not-needed, token-abc123, sk-no-key-required"
ANSWERS = (f"Set the key to one of {WORDS}.", f"It is none of: {WORDS}")
RATIONALES = (f"Names {WORDS}", f"none x EMPTY ollama lm-studio: {WORDS}")
KEYS = {
    "KEY_A": "none",
    "KEY_B": "ollama",
    "KEY_JUDGE": "lm-studio",
    "HF_TOKEN": "x",
    "ARGILLA_API_KEY": "EMPTY",
}


def test_a_key_that_is_a_word_alters_no_text(tmp_path: Path, llm: LlmServer) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 3)
    data = recipe(llm.base_url, {"file": "prompts.jsonl"}, judging={"order": "as-given"})
    for model, name in ((data["generators"][0], "KEY_A"), (data["generators"][1], "KEY_B")):
        data["endpoints"][name.lower().replace("_", "-")] = {
            "base_url": llm.base_url,
            "api_key_env": name,
        }
        model["endpoint"] = name.lower().replace("_", "-")
    data["endpoints"]["mock"]["api_key_env"] = "KEY_JUDGE"
    ratings = [
        {"id": number, "rationale": rationale, "rating": 6 - 2 * number}
        for number, rationale in enumerate(RATIONALES, 1)
    ]
    replies = dict(zip(("model-a", "model-b"), ANSWERS, strict=True))
    replies["judge-model"] = json.dumps({"texts": ratings})
    llm.script(
        [
            {"model": model, "contains": None, "times": None, "reply": {"content": content}}
            for model, content in replies.items()
        ]
    )
    with mill(tmp_path, data, **KEYS) as one:
        done = one.call("run")
        assert done.returncode == 0, done.stderr + one.logs()
        one.environment["PREFMILL_DATABASE_URL"] = "sqlite:///prefmill-data/ledger.db"
        full, default = one.rows("full"), one.rows("default")
        tried = one.call("try", "Which key?")
    assert len(full) == 3
    for row in full:
        assert tuple(row["generations"]) == ANSWERS
        assert tuple(row["rationales"]) == RATIONALES
    for row in default:
        assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ANSWERS
    assert all(text in tried.stdout for text in (*ANSWERS, *RATIONALES))
    assert "***" not in done.stdout + tried.stdout
