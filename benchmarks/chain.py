"""SFT -> reward -> DPO -> merge -> evaluate: ours in one process, beside the same chain with TRL, in one run.

python -m benchmarks.chain

TRL's chain is run twice: by hand as separate `trl` verbs (with the two small scripts a person needs between them), and
as the same trainers in one process. All start from the same base model, demonstrations and preferences, with the same
adapters, epochs, batches and learning rates, one torch thread, one after another. The quality reached is printed beside
the time.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measured import ROOT, fresh_home, keep, rlhf, show
from flows.recipe import LifecycleRecipe
from tasks.artifact import Work, read_jsonl
from tasks.recipe import load_recipe
from tasks.training.direct import DpoRecipe

RECIPE = ROOT / "deployments" / "recipes" / "demo.toml"
ONLY_DPO = ["--set", 'policy=[{method="dpo"}]']


def main() -> None:
    work = Path(tempfile.mkdtemp(prefix="rlhf-chain-"))
    with fresh_home() as environment:
        rlhf(environment, "up")
        document, _ = rlhf(environment, "run", str(RECIPE), *ONLY_DPO)
        for stage in document["stages"]:
            if stage["name"] in ("base", "data", "preferences"):
                shutil.copytree(Path(environment["RLHF_HOME"]) / "store" / stage["artifact"], work / stage["name"])
    _prepare(work)
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    result: dict[str, Any] = {}
    for name, commands in _chains(work).items():
        started = time.monotonic()
        for command in commands:
            done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        quality = json.loads((work / name / "quality.json").read_text())
        result[name] = {"seconds": time.monotonic() - started, "processes": len(commands), **quality}
    ours = result["ours"]["seconds"]
    for chain in result.values():
        chain["times_ours"] = chain["seconds"] / ours
    columns = ["seconds", "times_ours", "processes", "reward_accuracy", "win_rate", "correct"]
    show("the chain", ["", *columns], [[name, *(chain[c] for c in columns)] for name, chain in result.items()])
    keep("chain", result)
    shutil.rmtree(work)


def _prepare(work: Path) -> None:
    """The files as TRL takes them: one model folder, and one folder of JSON lines per dataset."""
    shutil.copytree(work / "base" / "model", work / "start")
    shutil.copytree(work / "base" / "tokenizer", work / "start", dirs_exist_ok=True)
    columns = {"sft": ("data/sft.jsonl", ["messages"])}
    columns["preferences_trl"] = ("preferences/train.jsonl", ["prompt", "chosen", "rejected"])
    for name, (source, kept) in columns.items():
        (work / name).mkdir(exist_ok=True)
        rows = read_jsonl(work / source)
        text = "".join(json.dumps({column: row[column] for column in kept}) + "\n" for row in rows)
        (work / name / "train.jsonl").write_text(text)


def _chains(work: Path) -> dict[str, list[list[str]]]:
    trl = str(Path(sys.executable).with_name("trl"))
    own = [sys.executable, "-m", "benchmarks.chain"]
    cli = work / "trl_cli"
    verbs = _trl_arguments(work)

    def verb(name: str, model: Path) -> list[str]:
        flags: list[str] = []
        for key, value in verbs[name].items():
            flags += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
        return [trl, name, "--model_name_or_path", str(model), "--output_dir", str(cli / name), *flags]

    return {
        "trl_cli": [
            verb("sft", work / "start"),
            [*own, "merge", str(work / "start"), str(cli / "sft"), str(cli / "merged")],
            verb("reward", cli / "merged"),
            verb("dpo", cli / "merged"),
            [*own, "judge", str(work), "trl_cli"],
        ],
        "trl_one_process": [[*own, "trl", str(work)]],
        "ours": [[*own, "ours", str(work)]],
    }


def _trl_arguments(work: Path) -> dict[str, dict[str, Any]]:
    """What each TRL trainer is told: the demo's values where they exist on both sides, TRL's defaults elsewhere."""
    recipe = load_recipe(LifecycleRecipe, RECIPE, ONLY_DPO[1:])
    [dpo] = recipe.policy
    assert isinstance(dpo, DpoRecipe)
    pairs = read_jsonl(work / "preferences" / "train.jsonl")
    per_prompt = len(pairs) / len({row["prompt_id"] for row in pairs})  # our reward and DPO batches count prompts
    shared = {
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "use_peft": True,
        "disable_tqdm": True,
    }
    found = {}
    for name, part in (("sft", recipe.sft), ("reward", recipe.reward), ("dpo", dpo)):
        assert part.adapter.kind == "lora"
        found[name] = {
            **shared,
            "dataset_name": str(work / ("sft" if name == "sft" else "preferences_trl")),
            "learning_rate": part.learning_rate,
            "num_train_epochs": part.epochs,
            "per_device_train_batch_size": round(part.batch_size * (1 if name == "sft" else per_prompt)),
            "lora_r": part.adapter.rank,
            "lora_alpha": int(part.adapter.alpha),
            "lora_dropout": part.adapter.dropout,
            "lora_target_modules": "all-linear",
        }
    found["sft"]["assistant_only_loss"] = True
    found["reward"] |= {"lora_task_type": "SEQ_CLS", "lora_modules_to_save": "score"}
    found["reward"]["center_rewards_coefficient"] = recipe.reward.centering
    found["dpo"] |= {"beta": dpo.beta, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, dpo.sft_weight]}
    return found


def merge(base: str, adapter: str, out: str) -> None:
    """The script a person writes between `trl sft` and the next verb: an adapter into its base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload()  # type: ignore[operator]
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)


def trl(folder: str) -> None:
    """TRL's trainers, one after the other in this process."""
    from datasets import load_dataset
    from peft import LoraConfig
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    work, out = Path(folder), Path(folder) / "trl_one_process"
    trainers: dict[str, tuple[Any, Any]] = {
        "sft": (SFTConfig, SFTTrainer),
        "reward": (RewardConfig, RewardTrainer),
        "dpo": (DPOConfig, DPOTrainer),
    }
    for name, (config, trainer) in trainers.items():
        told = _trl_arguments(work)[name]
        lora = LoraConfig(
            r=told.pop("lora_r"),
            lora_alpha=told.pop("lora_alpha"),
            lora_dropout=told.pop("lora_dropout"),
            target_modules=told.pop("lora_target_modules"),
            task_type=told.pop("lora_task_type", "CAUSAL_LM"),
            modules_to_save=[told.pop("lora_modules_to_save")] if name == "reward" else None,
        )
        told.pop("use_peft")
        data = load_dataset(told.pop("dataset_name"), split="train")
        model = str(work / "start") if name == "sft" else str(out / "merged")
        fitted = trainer(
            model=model, args=config(output_dir=str(out / name), **told), train_dataset=data, peft_config=lora
        )
        fitted.train()
        fitted.save_model(str(out / name))
        if name == "sft":
            merge(str(work / "start"), str(out / "sft"), str(out / "merged"))
    judge(folder, "trl_one_process")


def judge(folder: str, chain: str) -> None:
    """Merge the DPO adapter and evaluate as a person would: `generate`, utility, reward model, bootstrap."""
    from transformers import AutoTokenizer

    work, out = Path(folder), Path(folder) / chain
    merge(str(out / "merged"), str(out / "dpo"), str(out / "final"))
    tokenizer = AutoTokenizer.from_pretrained(out / "merged", padding_side="left")
    rows = read_jsonl(work / "data" / "evaluation.jsonl")
    texts = {name: _generate(out / name, tokenizer, rows) for name in ("merged", "final")}
    score = _reward_model(out, tokenizer)
    for said in texts.values():  # as our evaluation does, for the win rate by the reward model
        score([[*row["prompt"], _said(text)] for row, group in zip(rows, said, strict=True) for text in group])
    pairs = read_jsonl(work / "preferences" / "validation.jsonl")
    chosen = score([[*row["prompt"], *row["chosen"]] for row in pairs])
    rejected = score([[*row["prompt"], *row["rejected"]] for row in pairs])
    _keep_quality(
        out,
        rows,
        texts["merged"],
        texts["final"],
        sum(c > r for c, r in zip(chosen, rejected, strict=True)) / len(pairs),
    )


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _generate(model_folder: Path, tokenizer: Any, rows: list[dict[str, Any]]) -> list[list[str]]:
    """As many samples per prompt as our evaluation takes, with transformers' own `generate`."""
    import torch
    from transformers import AutoModelForCausalLM

    recipe = load_recipe(LifecycleRecipe, RECIPE).evaluate
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    torch.manual_seed(0)
    texts: list[list[str]] = []
    size = max(1, recipe.batch_size // recipe.samples_per_prompt)
    for start in range(0, len(rows), size):
        chats = [
            tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
            for row in rows[start : start + size]
        ]
        batch = tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.no_grad():
            out = model.generate(
                **{k: batch[k] for k in ("input_ids", "attention_mask")},
                do_sample=True,
                temperature=recipe.temperature,
                top_k=0,
                max_new_tokens=recipe.max_new_tokens,
                num_return_sequences=recipe.samples_per_prompt,
                pad_token_id=tokenizer.pad_token_id,
            )
        said = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        n = recipe.samples_per_prompt
        texts += [said[i : i + n] for i in range(0, len(said), n)]
    return texts


def _reward_model(out: Path, tokenizer: Any) -> Callable[[list[list[dict[str, str]]]], list[float]]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(out / "merged", num_labels=1)
    base.config.pad_token_id = tokenizer.pad_token_id
    model = PeftModel.from_pretrained(base, str(out / "reward")).eval()

    def score(conversations: list[list[dict[str, str]]]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(conversations), 64):
            texts = tokenizer.apply_chat_template(conversations[start : start + 64], tokenize=False)
            batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
            with torch.no_grad():
                logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            scores += logits[:, 0].tolist()
        return scores

    return score


def ours(folder: str) -> None:
    """Our stages, called one after the other in this process."""
    import torch

    from tasks.evaluation.evaluate import evaluate_models
    from tasks.merging import merge_policy
    from tasks.training.direct import train_direct
    from tasks.training.reward import train_reward
    from tasks.training.sft import train_sft

    torch.set_num_threads(1)
    recipe = load_recipe(LifecycleRecipe, RECIPE, ONLY_DPO[1:])
    [dpo] = recipe.policy
    assert isinstance(dpo, DpoRecipe)
    work, out = Path(folder), Path(folder) / "ours"
    given = {name: work / name for name in ("base", "data", "preferences")}
    metrics: dict[str, Mapping[str, float]] = {}

    def stage(name: str, function: Callable[..., None], part: Any, **inputs: Path) -> Path:
        (out / name).mkdir(parents=True)
        (out / f"{name}.scratch").mkdir()
        doing = Work(out / name, out / f"{name}.scratch", seed=recipe.seed)
        function(part, inputs, doing)
        metrics[name] = doing.metrics
        return out / name

    base, data, preferences = given["base"], given["data"], given["preferences"]
    sft = stage("sft", train_sft, recipe.sft, base=base, data=data)
    reward = stage("reward", train_reward, recipe.reward, base=base, sft=sft, preferences=preferences)
    policy = stage("dpo", train_direct, dpo, base=base, sft=sft, preferences=preferences, data=data)
    merged = stage("merge", merge_policy, recipe.merge, base=base, sft=sft, policy=policy)
    candidate = {"candidate.dpo": merged}
    result = stage(
        "evaluate", evaluate_models, recipe.evaluate, base=base, sft=sft, data=data, reward=reward, **candidate
    )
    models = json.loads((result / "evaluation.json").read_text())["models"]
    quality = {
        "reward_accuracy": metrics["reward"]["validation/accuracy"],
        "win_rate": models["dpo"]["win_rate_vs_sft"]["judge"]["mean"],
        "correct": models["dpo"]["checks"]["correct"]["mean"],
    }
    (out / "quality.json").write_text(json.dumps(quality))


def _keep_quality(
    out: Path, rows: list[dict[str, Any]], before: list[list[str]], after: list[list[str]], accuracy: float
) -> None:
    from tasks.data.shop import correct, utility

    wins = []
    for row, old, new in zip(rows, before, after, strict=True):
        for a in new:
            for b in old:
                ours_, theirs = utility(row, a), utility(row, b)
                wins.append(1.0 if ours_ > theirs else 0.5 if ours_ == theirs else 0.0)
    right = [correct(row, text) for row, group in zip(rows, after, strict=True) for text in group]
    quality = {
        "reward_accuracy": accuracy,
        "win_rate": sum(wins) / len(wins),
        "correct": sum(right) / len(right),
    }
    (out / "quality.json").write_text(json.dumps(quality))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        {"merge": merge, "trl": trl, "judge": judge, "ours": ours}[sys.argv[1]](*sys.argv[2:])
    else:
        main()
