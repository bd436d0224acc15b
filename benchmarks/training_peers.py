"""The other sides of benchmarks/training.py: transformers' Trainer (with peft), trl's SFTTrainer, and a bare loop on transformers' models.

Trainers are set so that they lose nothing by their defaults (benchmarks/trainers.py), all with SDPA attention; where they have modes of their own for rows of real lengths,
each mode is a side. bf16 is their own mixed precision. QLoRA is bitsandbytes' nf4 with its scales quantized too, as minift's. As their users have them
(`..._unasked`): nothing is set but where it runs and that it need not end, so trl computes in bf16 and recomputes activations, as it does by default."""

from pathlib import Path

from benchmarks import trainers
from benchmarks.bare_loop import bare_loop
from benchmarks.training_case import CASES, END, PAD, RATE, Sizes, adapter, base, exact_rows, real_rows
from benchmarks.trainers import ticking
from benchmarks.turns import Gate


def trainer(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str, **own) -> None:
    from transformers import TrainingArguments

    args = trainers.arguments(TrainingArguments, folder / "out", precision, sizes.rows, learning_rate=RATE, **own)
    run(gate, _hugging_face(gate, folder, sizes, case, precision, args), case)


def trainer_grouped(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str) -> None:
    trainer(gate, folder, sizes, case, precision, train_sampling_strategy="group_by_length")


def trainer_unasked(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str) -> None:
    from transformers import TrainingArguments

    args = TrainingArguments(output_dir=str(folder / "out"), max_steps=100_000, use_cpu=True, report_to="none")
    run(gate, _hugging_face(gate, folder, sizes, case, precision, args), case)


def trl(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str, **own) -> None:
    from trl import SFTConfig

    length = sizes.longest if CASES[case].real else sizes.length
    args = trainers.arguments(SFTConfig, folder / "out", precision, sizes.rows, learning_rate=RATE, **{"max_length": length} | own)
    run(gate, _trl(gate, folder, sizes, case, precision, args), case)


def trl_grouped(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str) -> None:
    trl(gate, folder, sizes, case, precision, train_sampling_strategy="group_by_length")


def trl_bfd(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str) -> None:
    """Whole rows packed (best fit, longest first), end to end, kept apart by their positions."""
    trl(gate, folder, sizes, case, precision, packing=True)


def trl_wrapped(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str) -> None:
    """One stream cut into pieces: rows are torn, and see each other."""
    trl(gate, folder, sizes, case, precision, packing=True, packing_strategy="wrapped")


def trl_padding_free(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str) -> None:
    trl(gate, folder, sizes, case, precision, padding_free=True, max_length=None)          # it refuses another; the rows are cut already


def trl_unasked(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str) -> None:
    from trl import SFTConfig

    args = SFTConfig(output_dir=str(folder / "out"), max_steps=100_000, use_cpu=True, report_to="none")
    run(gate, _trl(gate, folder, sizes, case, precision, args), case)


def loop(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str) -> None:
    """Nothing but the step."""
    net = model(folder, case, precision)
    bare_loop(gate, net.train(), lambda ids: net(input_ids=ids, labels=ids, use_cache=False).loss, exact_rows(sizes, case), precision, RATE)


def model(folder: Path, case: str, precision: str):
    """transformers' model; of LoRA inside peft's; of QLoRA in bitsandbytes' 4 bits."""
    import torch
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    method, four_bits = CASES[case].method, {}
    if method == "qlora":
        compute = torch.bfloat16 if precision == "bf16" else torch.float32
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute)
        four_bits = dict(quantization_config=config, device_map={"": "cpu"})
    net = LlamaForCausalLM.from_pretrained(base(folder, case), dtype=torch.float32, attn_implementation="sdpa", **four_bits)
    if method == "full":
        return net
    from peft import PeftModel, prepare_model_for_kbit_training

    if method == "qlora":
        net = prepare_model_for_kbit_training(net, use_gradient_checkpointing=False)
    return PeftModel.from_pretrained(net, adapter(folder, case), is_trainable=True)


def dataset(folder: Path, sizes: Sizes, case: str):
    """input_ids and labels, -100 where nothing is learned."""
    from datasets import Dataset

    if CASES[case].real:
        return Dataset.from_list([{"input_ids": asked + answer, "labels": [-100] * len(asked) + answer} for asked, answer in real_rows(folder)])
    ids = exact_rows(sizes, case).flatten(0, 1).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def tokenizer(sizes: Sizes, case: str):
    """A tokenizer for which each word is one token; trainers ask it for the pad and the end."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(sizes.shapes[CASES[case].shape].vocab)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w3")), pad_token=f"w{PAD}", bos_token="w1", eos_token=f"w{END}", unk_token="w3")


def _hugging_face(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str, args):
    from transformers import DataCollatorForSeq2Seq, Trainer, default_data_collator

    rows, collate = dataset(folder, sizes, case), DataCollatorForSeq2Seq(tokenizer(sizes, case))      # pads ids and labels to the longest of the batch
    if not CASES[case].real:                                                # nothing to pad, so not even a mask is made
        rows, collate = rows.with_format("torch"), default_data_collator
    return Trainer(model(folder, case, precision), args, train_dataset=rows, data_collator=collate, callbacks=[ticking(gate)])


def _trl(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str, args):
    from trl import SFTTrainer

    return SFTTrainer(model(folder, case, precision), args, train_dataset=dataset(folder, sizes, case), processing_class=tokenizer(sizes, case),
                      callbacks=[ticking(gate)])  # fmt: skip


def run(gate: Gate, made, case: str) -> None:
    """Where steps are not alike, the work is counted in thousands of real tokens."""
    trainers.train(gate, made, (lambda inputs: inputs["input_ids"].count_nonzero().item() / 1000) if CASES[case].real else None)
