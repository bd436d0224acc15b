"""Planted bugs in encoders and in texts laid end to end: who sees whom, where positions begin, what is read where."""

from tests.mutants.mutant import Mutant

ENCODER, RAGGED, BLOCK = "minift/models/encoder.py", "minift/models/ragged.py", "minift/models/block.py"
ATTENTION, TRANSFORMER, FOLDER = "minift/models/attention.py", "minift/models/transformer.py", "minift/models/folder.py"
TEST, PARITY = "tests/models/test_encoder.py", "tests/parity/test_encoders.py"

MUTANTS = [
    Mutant("short_attention_stays_bfloat16", ATTENTION, "if wants_float32(q, k.shape[2]):", "if False:", "tests/models/test_transformer.py"),
    Mutant("a_text_scored_twice_has_two_scores", ATTENTION, 'torch.is_autocast_enabled("cpu")', "torch.is_grad_enabled()", "tests/models/test_transformer.py"),
    Mutant("an_encoder_looks_back_only", ATTENTION, "causal = bias is None and self.config.causal", "causal = bias is None", TEST),
    Mutant("an_encoder_sees_pads", ATTENTION, "        if segments is None:\n            return None\n        return F.pad(segments", "        if True:\n            return None\n        return F.pad(segments", TEST),
    Mutant("the_norm_before_the_sum", BLOCK, "x = self.norm1(x + attended)", "x = x + self.norm1(attended)", PARITY),
    Mutant("rows_of_positions_not_left_out", TRANSFORMER, "self.positions(config.first_position + positions)", "self.positions(positions)", TEST),
    Mutant("types_forgotten_where_none_are_given", TRANSFORMER, "x = x + (self.types.weight[0] if token_types is None", "x = x + (0.0 if token_types is None", TEST),
    Mutant("texts_in_a_row_count_on", RAGGED, "torch.arange(length).repeat(count) for count, length in self.runs", "torch.arange(length * count) for count, length in self.runs", TEST),
    Mutant("texts_of_one_length_mixed", RAGGED, "part.unflatten(0, run) for part, run", "part.unflatten(0, run[::-1]).transpose(0, 1) for part, run", TEST),
    Mutant("the_first_token_of_another_text", RAGGED, "return lengths.cumsum(0) - lengths", "return lengths.cumsum(0) - 1", TEST),
    Mutant("the_order_of_the_row_lost", RAGGED, "Ragged(runs), torch.tensor(order)", "Ragged(runs), torch.arange(len(order))", TEST),
    Mutant("a_class_read_at_the_last_token", ENCODER, "first = stream[:, 0] if ragged is None", "first = stream[:, -1] if ragged is None", TEST),
    Mutant("no_tanh_on_the_pooler", ENCODER, "else torch.tanh(out)", "else out", TEST),
    Mutant("distilberts_relu_forgotten", ENCODER, 'return F.relu(out) if self.config.family == "distilbert" else', "return", PARITY),
    Mutant("the_transform_without_its_activation", ENCODER, "self.transform_norm(ACTIVATIONS[self.config.activation](self.transform(stream)))", "self.transform_norm(self.transform(stream))", PARITY),
    Mutant("a_new_pooler_in_place_of_the_learned_one", ENCODER, '({} if model.pooler is not None else {"pooler"', '({} if False else {"pooler"', TEST),
    Mutant("prefixes_lost_in_a_row", ATTENTION, "                before = [part.to(k.dtype).expand(len(k), -1, -1, -1)", "                continue\n                before = [part.to(k.dtype).expand(len(k), -1, -1, -1)", TEST),
    Mutant("distilberts_eps_from_the_file", "minift/models/bert_families.py", '{**hf, **named, "layer_norm_eps": 1e-12}', "{**hf, **named}", "tests/models/test_families.py"),
    Mutant("robertas_pad_row_used", "minift/models/bert_families.py", 'first = (ids["pad_token_id"] or 0) + 1', "first = 2", PARITY),
]    # fmt: skip
