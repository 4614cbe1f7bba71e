# /// script
# requires-python = ">=3.11"
# dependencies = ["datasets>=4", "pyarrow>=20", "torch==2.13.0", "transformers>=5", "trl>=1"]
# ///
"""Trains a few steps with TRL on datasets just as they are, to show that they need no change.

The model is tiny and random, the tokenizer is made from the dataset's own texts, so nothing is
fetched but a dataset that is named instead of given as a folder. It knows nothing of prefmill and
runs in an environment of its own, because TRL and torch are no part of prefmill's.

    python tests/trl/train.py prefmill-data/dataset --configuration default --kto kto.parquet

Prints one JSON object a trainer and dataset: `steps` and `loss`, or the `error`. Exit code 1 if
there was one.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import transformers
import trl
from datasets import Dataset, load_dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|begin|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)

Train = Callable[[Dataset, str, int, str], float]


def texts(value: Any) -> Iterator[str]:
    """Every string in a row."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


def save_model(folder: str, rows: Dataset) -> None:
    """A random Llama of 2 layers, and a byte-level BPE of 400 tokens made from the rows' texts."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[BEGIN, END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts(rows.to_list()), trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BEGIN, eos_token=END, pad_token=PAD
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    transformers.set_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def trained(trainer_class: type, config_class: type, model: Any, tokenizer: Any) -> Train:
    """What trains some steps with one of TRL's trainers and returns the final loss."""

    def _train(rows: Dataset, folder: str, steps: int, out: str) -> float:
        config = config_class(
            output_dir=out,
            max_steps=steps,
            per_device_train_batch_size=2,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
        )
        trainer = trainer_class(
            model=model(folder),
            args=config,
            train_dataset=rows,
            processing_class=tokenizer(folder),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        result = trainer.train()
        assert result.global_step == steps
        return float(result.training_loss)

    return _train


def known_trainers() -> dict[str, Train]:
    """The trainers of preference data that this TRL has."""
    tokenizer = transformers.AutoTokenizer.from_pretrained
    causal = transformers.AutoModelForCausalLM.from_pretrained
    by_path = {
        "DPOTrainer": (trl.DPOTrainer, trl.DPOConfig),
        "RewardTrainer": (trl.RewardTrainer, trl.RewardConfig),
        "KTOTrainer": (trl.KTOTrainer, trl.KTOConfig),
    }
    found = {name: trained(*both, str, tokenizer) for name, both in by_path.items()}
    try:
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer
    except ImportError:
        try:
            from trl import ORPOConfig, ORPOTrainer
        except ImportError:
            return found
    return found | {"ORPOTrainer": trained(ORPOTrainer, ORPOConfig, causal, tokenizer)}


def attempt(name: str, train: Train, rows: Dataset, steps: int) -> dict[str, Any]:
    """Train, and say what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder, rows)
        try:
            loss = train(rows, folder, steps, f"{folder}/out")
        except Exception as exc:  # noqa: BLE001, whatever TRL raises is the answer
            lines = str(exc).strip().splitlines()
            return {"trainer": name, "error": f"{type(exc).__name__}: {lines[0] if lines else ''}"}
    return {"trainer": name, "rows": rows.num_rows, "steps": steps, "loss": round(loss, 4)}


def loaded(dataset: str, configuration: str | None) -> Dataset:
    """A folder's or a repository's rows, or those of one file."""
    path = Path(dataset)
    if path.is_file():
        form = {".jsonl": "json", ".json": "json"}.get(path.suffix, path.suffix[1:])
        return load_dataset(form, data_files=dataset, split="train")
    return load_dataset(dataset, configuration, split="train")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("datasets", nargs="*", help="folder, repository id or file of pairs")
    parser.add_argument("--configuration", help="default: the dataset's own default")
    parser.add_argument("--kto", action="append", default=[], help="file of unpaired texts")
    parser.add_argument("--only", action="append", help="a trainer; default: all there are")
    parser.add_argument("--steps", type=int, default=2)
    given = parser.parse_args()
    trainers_known = known_trainers()
    kto = trainers_known.pop("KTOTrainer")
    wanted = {
        name: train for name, train in trainers_known.items() if name in (given.only or [name])
    }
    failed = False
    work = [(dataset, wanted) for dataset in given.datasets]
    work += [(dataset, {"KTOTrainer": kto}) for dataset in given.kto]
    for dataset, chosen in work:
        configuration = given.configuration if chosen is wanted else None
        rows = loaded(dataset, configuration)
        for name, train in chosen.items():
            result = attempt(name, train, rows, given.steps)
            failed = failed or "error" in result
            print(json.dumps({"dataset": dataset, **result}), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
