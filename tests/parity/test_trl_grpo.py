"""Whole runs of grpo against trl's GRPOTrainer and RLOOTrainer, set up as their users set them up: the same folder, written by minift and read by
transformers, the same reward function, the same texts. trl's answers are ours: where it would generate, it is handed what we rolled out.

Three rounds of 3 prompts with 4 answers each, learned from once or twice: from the second step on, ratios are not 1 and the policy is not its
reference. What is compared: the loss of each round's first step, the gradient's norm in its last, reward, entropy, and all weights in the end.
float32 on both sides, eps 1.2e-7: losses agree to 1e-6. Gradients are sums of some hundred products; AdamW divides each by its own size, so that
errors are those of the smallest: the way that a tensor went may differ by a thousandth of its length."""

import runpy

import pytest
import torch
import transformers
from datasets import Dataset
from safetensors.torch import load_file
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from minift.folder import save
from minift.recipes import on_policy
from minift.recipes.grpo import Config, run
from minift.train.log import read_metrics
from tests.conftest import random_model

ROUNDS, PROMPTS, GROUP, LONGEST, LR = 3, 3, 4, 9, 3e-3
REWARD = """
def odd(completion_ids, **_):
    return [sum(i % 2 for i in ids) / (len(ids) + 0.7) + 0.001 * ids[0] for ids in completion_ids]
"""
TRAINERS = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}


@pytest.fixture(scope="module")
def folder(small_tokenizer, tmp_path_factory):
    home, model = tmp_path_factory.mktemp("grpo"), random_model(small_tokenizer)
    model.embed.weight.data[2] *= 10                                     # the end token, now and then far likelier: answers have many lengths
    save(model, small_tokenizer, home / "model")
    (home / "reward.py").write_text(REWARD)
    (home / "prompts.csv").write_text("prompt\n" + "".join(f"{'say ' * (i % 4)}the word {i}\n" for i in range(20)))
    return home


@pytest.fixture
def ours(folder, tmp_path, monkeypatch):
    """(options) -> (numbers of each round, weights, what was rolled out)."""

    def learn(**options):
        drawn, honest = [], on_policy.roll_out
        monkeypatch.setattr(on_policy, "roll_out", lambda *given: drawn.append(honest(*given)) or drawn[-1])
        config = Config(
            data=(str(folder / "prompts.csv"),), out=tmp_path / "ours", rewards={f"{folder / 'reward.py'}:odd": 1.0}, model=str(folder / "model"),
            method="full", precision="fp32", lr=LR, schedule="constant", warmup=0.0, weight_decay=0.1, betas=(0.9, 0.99), clip=0.5, max_steps=ROUNDS,
            prompts=PROMPTS, group=GROUP, new_tokens=LONGEST, judged=1, **options,
        )  # fmt: skip
        run(config, quiet=True)
        lines = [line for line in read_metrics(tmp_path / "ours") if "loss" in line]
        return lines, load_file(tmp_path / "ours/model/model.safetensors"), [rollout for rollout in drawn if rollout.group == GROUP]

    return learn


@pytest.fixture
def theirs(folder, tmp_path):
    """(kind of trainer, rollouts, settings) -> (numbers of each step, weights)."""

    def learn(kind, rollouts, passes=1, **settings):
        config, trainer = TRAINERS[kind]
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        words = transformers.AutoTokenizer.from_pretrained(folder / "model")
        made = trainer(
            model, runpy.run_path(folder / "reward.py")["odd"], train_dataset=Dataset.from_list(
                [{"prompt": words.decode(prompt, skip_special_tokens=True)} for rollout in rollouts for prompt in rollout.prompts]
            ), processing_class=words, args=config(
                output_dir=str(tmp_path / "trl"), num_generations=GROUP, max_completion_length=LONGEST,
                num_iterations=passes, max_steps=ROUNDS * passes, shuffle_dataset=False, learning_rate=LR, lr_scheduler_type="constant", weight_decay=0.1,
                adam_beta2=0.99, max_grad_norm=0.5, bf16=False, use_cpu=True, report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True,
                activation_checkpointing=False, **{"per_device_train_batch_size": PROMPTS * GROUP, **settings},
            ),
        )  # fmt: skip
        left = list(rollouts)

        def answers(prompt_ids, *_):
            rollout = left.pop(0)
            assert prompt_ids == [prompt for prompt in rollout.prompts for _ in range(GROUP)]
            return (rollout.answers, None) if kind == "grpo" else rollout.answers

        made._generate_single_turn = answers
        made.train()
        assert not left
        return [line for line in made.state.log_history if "loss" in line], {name: p.detach() for name, p in made.model.named_parameters()}

    return learn


CASES = {
    "the paper's": ("grpo", 2, dict(kl_coef=0.3, temperature=0.8), dict(loss_type="grpo", beta=0.3, temperature=0.8, use_bias_correction_kl=False)),
    "Dr. GRPO": ("grpo", 2, dict(std="none", aggregation="constant", kl_coef=0.0), dict(loss_type="dr_grpo", scale_rewards="none")),
    "DAPO in micro-batches": ("grpo", 2, dict(aggregation="token", clip_high=0.28, kl_coef=0.0, batch_tokens=60), dict(
        loss_type="dapo", epsilon_high=0.28, per_device_train_batch_size=PROMPTS * GROUP // 2, gradient_accumulation_steps=2)),
    "RLOO": ("rloo", 1, dict(algorithm="rloo", kl_coef=0.3, temperature=0.8), dict(beta=0.3, temperature=0.8)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_trls(ours, theirs, folder, case):
    """trl's RLOO clips the ratio of a whole answer and ours that of each token: they are the same where answers are learned from once, whose
    gradients are equal then, but for the value of the loss: a token's ratio is 1, and ours counts n of them."""
    kind, passes, options, settings = CASES[case]
    lines, weights, rollouts = ours(passes=passes, **options)
    judge, wanted = theirs(kind, rollouts, passes, **settings)
    assert len({len(answer) for rollout in rollouts for answer in rollout.answers}) >= 4 and 0.1 < lines[0]["finished"] < 0.9
    for line, first, last in zip(lines, judge[::passes], judge[passes - 1 :: passes], strict=True):
        assert line["reward"] == pytest.approx(first["reward"], abs=1e-6) and line["grad_norm"] == pytest.approx(last["grad_norm"], rel=1e-4)
        assert kind == "rloo" or line["loss"] == pytest.approx(first["loss"], abs=1e-6)
        if "gradient_accumulation_steps" not in settings:               # trl logs means of micro-batches' means
            assert line["entropy"] == pytest.approx(first["entropy"], abs=1e-5) and line["clipped"] == pytest.approx(last["clip_ratio/region_mean"], abs=1e-6)
        assert (line["clipped"] > 0.05) == (passes > 1)
    start = load_file(folder / "model/model.safetensors")
    assert weights.keys() == wanted.keys() == start.keys()
    for name, before in start.items():
        way = (wanted[name] - before).norm()
        assert way > 0.5 * LR * before.numel() ** 0.5 and (weights[name] - wanted[name]).norm() < 1e-3 * way, name


def test_trls_own_distance_is_another_term(ours, theirs):
    """It multiplies k3 by the ratio unless it is told not to: the same in the first step, where both are 0 and flat, and no longer in the second."""
    _, options, settings = CASES["the paper's"][1:]
    lines, weights, rollouts = ours(passes=2, **options)
    judge, wanted = theirs("grpo", rollouts, 2, **{**settings, "use_bias_correction_kl": True})
    assert lines[0]["loss"] == pytest.approx(judge[0]["loss"], abs=1e-6) and lines[0]["grad_norm"] != pytest.approx(judge[1]["grad_norm"], rel=1e-2)
    name = "model.embed_tokens.weight"
    assert (weights[name] - wanted[name]).norm() > 0.01 * wanted[name].norm()
