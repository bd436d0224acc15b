"""Planted bugs in the door for virtual tokens and in the methods that come through it."""

from tests.mutants.mutant import Mutant

TRANSFORMER, ATTENTION, CACHE = "minift/models/transformer.py", "minift/models/attention.py", "minift/models/cache.py"
GENERATE, PROMPT, PREFIX = "minift/generate.py", "minift/peft/prompt.py", "minift/peft/prefix.py"
PTUNING, PTUNING_V2, DOOR = "minift/peft/ptuning.py", "minift/peft/ptuning_v2.py", "tests/models/test_virtual.py"
TEST_PROMPT, TEST_PREFIX = "tests/peft/test_prompt.py", "tests/peft/test_prefix.py"
TEST_PTUNING, TEST_PTUNING_V2 = "tests/peft/test_ptuning.py", "tests/peft/test_ptuning_v2.py"

MUTANTS = [
    Mutant(
        name="virtual_tokens_leave_the_text_at_position_0", file=TRANSFORMER, test=DOOR,
        old="return (virtual + place).expand(B, T)", new="return place.expand(B, T)",
    ),
    Mutant(
        name="virtual_tokens_forgotten_in_packed_positions", file=TRANSFORMER, test=DOOR,
        old="            return virtual + place - first\n", new="            return place - first\n",
    ),
    Mutant(
        name="virtual_outputs_kept", file=TRANSFORMER, test=DOOR,
        old="bidirectional, memory)[:, V:])", new="bidirectional, memory)[:, :-V])",
    ),
    Mutant(
        name="virtual_rows_scaled_like_tokens", file=TRANSFORMER, test=DOOR,
        old="virtual.embeds.to(x.dtype).expand", new="(virtual.embeds * self.config.embed_scale).to(x.dtype).expand",
    ),
    Mutant(
        name="virtual_tokens_added_at_every_cached_step", file=TRANSFORMER, test=DOOR,
        old="virtual = self.virtual() if cache is None else None ", new="virtual = self.virtual() ",
    ),
    Mutant(
        name="virtual_tokens_never_put_into_a_users_cache", file=TRANSFORMER, test=DOOR,
        old="if cache is not None and not cache.lengths.any():", new="if False:",
    ),
    Mutant(
        name="virtual_tokens_have_no_room_in_the_cache", file=TRANSFORMER, test=DOOR,
        old="capacity + self.virtual_count(), ", new="capacity, ",
    ),
    Mutant(
        name="virtual_tokens_seen_by_the_first_packed_text_only", file=ATTENTION, test=DOOR,
        old="same = F.pad(same, (slots - T, 0), value=True) ", new="virtual, same = 0, F.pad(same, (slots - T, 0), value=False) ",
    ),
    Mutant(
        name="virtual_tokens_are_as_far_as_the_row_is_long", file=ATTENTION, test=DOOR,
        old="if segments is not None and virtual:", new="if False:",
    ),
    Mutant(
        name="virtual_prefix_attended_causally_from_the_left", file=ATTENTION, test=DOOR,
        old="query_slot = torch.arange(slots - T, slots, device=device)", new="query_slot = torch.arange(T, device=device)",
    ),
    Mutant(
        name="virtual_prefix_leaves_attention_plain_causal", file=ATTENTION, test=DOOR,
        old="(cache is None and slots == T or alone)", new="(cache is None or alone)",
    ),
    Mutant(
        name="virtual_tokens_not_counted_in_the_window", file=ATTENTION, test=DOOR,
        old="seen = seen & (back < window)", new="seen = seen & ((back < window) | (key_slot < virtual))",
    ),
    Mutant(
        name="virtual_keys_and_values_swapped_in_the_cache", file=CACHE, test=DOOR,
        old="enumerate(keys_values):\n", new="enumerate((v, k) for k, v in keys_values):\n",
    ),
    Mutant(
        name="virtual_tokens_overwritten_by_the_text", file=CACHE, test=DOOR,
        old="        self.lengths = self.lengths + self.virtual\n", new="",
    ),
    Mutant(
        name="virtual_tokens_forgotten_after_the_prompt", file=GENERATE, test=DOOR,
        old="cache.lengths = cache.virtual + lengths ", new="cache.lengths = lengths ",
    ),
    Mutant(
        name="virtual_tokens_not_taken_off_the_learned_positions", file=GENERATE, test=DOOR,
        old="model.config.max_positions - model.virtual_count() if", new="model.config.max_positions if",
    ),
    Mutant(
        name="prompt_starts_from_unscaled_rows", file=PROMPT, test=TEST_PROMPT,
        old=" * torch.tensor(scale, dtype=weight.dtype)).to(", new=" * 1.0).to(",
    ),
    Mutant(
        name="prompt_cut_but_not_repeated", file=PROMPT, test=TEST_PROMPT,
        old="[ids[place % len(ids)] for place in range(length)]", new="[ids[min(place, len(ids) - 1)] for place in range(length)]",
    ),
    Mutant(
        name="prompt_starts_from_rare_tokens_too", file=PROMPT, test=TEST_PROMPT,
        old="min(FREQUENT, config.vocab_size)", new="config.vocab_size",
    ),
    Mutant(
        name="prompt_in_the_bases_dtype", file=PROMPT, test=TEST_PROMPT,
        old="return torch.promote_types(weight.dtype, torch.float32) ", new="return weight.dtype ",
    ),
    Mutant(
        name="prompt_random_rows_are_normal", file=PROMPT, test=TEST_PROMPT,
        old=".uniform_(-0.5, 0.5)", new=".normal_()",
    ),
    Mutant(
        name="prompt_may_fill_the_context", file=PROMPT, test=TEST_PROMPT,
        old="if length >= model.config.max_positions:", new="if length > model.config.max_positions:",
    ),
    Mutant(
        name="prefix_table_read_values_first", file=PREFIX, test=TEST_PREFIX,
        old="[(k, v) for k, v in parts]", new="[(k, v) for v, k in parts]",
    ),
    Mutant(
        name="prefix_table_read_heads_first", file=PREFIX, test=TEST_PREFIX,
        old=".view(-1, layers, 2, K, D).permute(1, 2, 3, 0, 4)", new=".view(-1, layers, K, 2, D).permute(1, 3, 2, 0, 4)",
    ),
    Mutant(
        name="prefix_network_without_its_tanh", file=PREFIX, test=TEST_PREFIX,
        old="nn.Tanh()", new="nn.Identity()",
    ),
    Mutant(
        name="prefix_file_holds_what_the_network_reads", file=PREFIX, test=TEST_PREFIX,
        old='small["virtual"].flat()}', new='small["virtual"].table}',
    ),
    Mutant(
        name="prefix_words_read_with_dropout", file=PREFIX, test=TEST_PREFIX,
        old="        model.eval()\n", new="        pass\n",
    ),
    Mutant(
        name="prefix_words_read_by_the_adapted_model", file=PREFIX, test=TEST_PREFIX,
        old="disabled(model) if names(model) else contextlib.nullcontext()", new="contextlib.nullcontext()",
    ),
    Mutant(
        name="prefix_of_other_heads_accepted", file=PREFIX, test=TEST_PREFIX,
        old="if self.made_for not in (None, shape):", new="if False:",
    ),
    Mutant(
        name="ptuning_lstm_reads_one_way", file=PTUNING, test=TEST_PTUNING,
        old="rows = self.lstm(rows)[0] ", new="rows = torch.cat([self.lstm(rows)[0].chunk(2, -1)[0]] * 2, dim=-1) ",
    ),
    Mutant(
        name="ptuning_rows_are_the_lstms_batch", file=PTUNING, test=TEST_PTUNING,
        old="rows = self.lstm(rows)[0] ", new="rows = self.lstm(rows[None])[0][0] ",
    ),
    Mutant(
        name="ptuning_file_holds_what_the_network_reads", file=PTUNING, test=TEST_PTUNING,
        old='small["virtual"].rows()}', new='small["virtual"].table}',
    ),
    Mutant(
        name="ptuning_mlp_forgets_its_second_relu", file=PTUNING, test=TEST_PTUNING,
        old="nn.Linear(S, S, **own), nn.ReLU()\n", new="nn.Linear(S, S, **own), nn.Identity()\n",
    ),
    Mutant(
        name="ptuning_lstm_twice_the_papers_width", file=PTUNING, test=TEST_PTUNING,
        old="S, own = self.hidden_size or C // 2,", new="S, own = self.hidden_size or C,",
    ),
    Mutant(
        name="ptuning_loads_with_a_fresh_network", file=PTUNING, test=TEST_PTUNING,
        old='encoder="none")', new='encoder="mlp")',
    ),
    Mutant(
        name="ptuning_v2_learns_through_a_network", file=PTUNING_V2, test=TEST_PTUNING_V2,
        old="projection: bool = False", new="projection: bool = True",
    ),
    Mutant(
        name="ptuning_v2_ignores_its_projection", file=PTUNING_V2, test=TEST_PTUNING_V2,
        old="Prefix(self.length, self.projection, self.projection_size)", new="Prefix(self.length, False)",
    ),
    Mutant(
        name="ptuning_v2_ignores_its_length", file=PTUNING_V2, test=TEST_PTUNING_V2,
        old="Prefix(self.length, self.projection, self.projection_size)", new="Prefix(3, self.projection, self.projection_size)",
    ),
]  # fmt: skip
