"""Planted bugs in encoder-decoders: which way distances count, what is shared, scaled, masked, kept, and where an answer begins."""

from tests.mutants.mutant import Mutant

RELATIVE, CROSS, PAIR = "minift/models/relative.py", "minift/models/cross.py", "minift/models/encoder_decoder.py"
TRANSFORMER, ATTENTION, BLOCK, NAMES = "minift/models/transformer.py", "minift/models/attention.py", "minift/models/block.py", "minift/models/names.py"
FAMILIES, FOLDER, GENERATE, TOKENIZER = "minift/models/t5_families.py", "minift/models/folder.py", "minift/generate.py", "minift/tokenizer/folder.py"
TEST, PARITY, SFT = "tests/models/test_t5.py", "tests/parity/test_t5.py", "tests/recipes/test_sft_t5.py"

MUTANTS = [
    Mutant("distances_the_wrong_way", RELATIVE, "distance = keys[:, None, :] - queries[:, :, None]", "distance = queries[:, :, None] - keys[:, None, :]", TEST),
    Mutant("ahead_and_behind_in_one_bucket", RELATIVE, "first = buckets * (distance > 0).long()", "first = 0 * (distance > 0).long()", TEST),
    Mutant("an_encoder_with_a_decoders_buckets", RELATIVE, "table(bucket(distance, not config.causal,", "table(bucket(distance, False,", TEST),
    Mutant("all_buckets_one_distance_wide", RELATIVE, "near = buckets // 2", "near = buckets", TEST),
    Mutant("the_last_bucket_out_of_the_table", RELATIVE, ".clamp(max=buckets - 1)", ".clamp(max=buckets)", TEST),
    Mutant("the_bias_in_place_of_the_mask", RELATIVE, "return bias if seen is None else bias.masked_fill", "return bias if True else bias.masked_fill", TEST),
    Mutant("a_decoder_without_its_mask", ATTENTION, 'config.position not in ("alibi", "relative") and (window', 'config.position != "alibi" and (window', TEST),
    Mutant("scores_divided_all_the_same", ATTENTION, ", scale=self.config.attention_scale)", ")", PARITY),
    Mutant("crossed_scores_divided", CROSS, "attn_mask=memory.seen, scale=self.scale)", "attn_mask=memory.seen)", PARITY),
    Mutant("the_answer_reads_pads", CROSS, "attn_mask=memory.seen, scale", "attn_mask=None, scale", TEST),
    Mutant("the_prompt_read_anew_at_every_step", CROSS, "            memory.kept[self.layer] = made\n", "            pass\n", TEST),
    Mutant("rows_keep_others_prompts", CROSS, "{layer: (k[rows], v[rows]) for", "{layer: (k[: len(rows)], v[: len(rows)]) for", TEST),
    Mutant("rows_leave_and_their_prompts_stay", PAIR, "        super().keep_rows(rows)\n        self.memory = self.memory.rows(rows)\n", "        super().keep_rows(rows)\n", TEST),
    Mutant("prompts_in_the_order_of_the_row", PAIR, "batch_first=True)[back.to(weight.device)]", "batch_first=True)", TEST),
    Mutant("pads_of_a_ragged_prompt_seen", PAIR, "seen = None if there.all() else", "seen = None if True else", TEST),
    Mutant("the_encoder_sees_pads", PAIR, "segments = None if there is None else (~there).long()", "segments = None", TEST),
    Mutant("the_heads_scale_forgotten", PAIR, "cache=cache) * self.config.head_scale", "cache=cache)", TEST),
    Mutant("the_cross_branch_on_the_raw_stream", BLOCK, "self.cross(self.cross_norm(x), context.memory)", "self.cross(x, context.memory)", PARITY),
    Mutant("slots_in_place_of_places_with_a_cache", TRANSFORMER, "return relative_bias(self.config, self.relative, places, slot, seen)", "return relative_bias(self.config, self.relative, slot[:, : places.shape[1]], slot, seen)", TEST),
    Mutant("recomputing_in_one_stack_only", PAIR, "self.encoder.checkpointing = self.decoder.checkpointing = on", "self.decoder.checkpointing = on", TEST),
    Mutant("t5s_mlp_where_its_cross_attention_is", NAMES, '"2" if cross else "1"', '"2" if not cross else "1"', PARITY),
    Mutant("the_gate_and_the_value_swapped", NAMES, '"blocks.{}.mlp.up": "block.{}.layer.LAST.DenseReluDense.wi_1"', '"blocks.{}.mlp.up": "block.{}.layer.LAST.DenseReluDense.wi_0"', PARITY),
    Mutant("flans_head_scaled_too", FAMILIES, 'take(hf, ("tie_word_embeddings",), True))', "True)", TEST),
    Mutant("mt5s_head_scaled", FAMILIES, 'scaled = kind == "t5" and', "scaled =", TEST),
    Mutant("gated_gelu_taken_for_the_exact_one", FAMILIES, '"gelu_new" if said == "gated-gelu" else act', "act", TEST),
    Mutant("tied_where_the_file_says_so", FOLDER, "tie_embeddings=head is None or embed is None or same(head, embed))", "tie_embeddings=config.tie_embeddings)", TEST),
    Mutant("the_prompt_penalised", GENERATE, "seen[row, torch.tensor(begins(model, prompt))]", "seen[row, torch.tensor(prompt)]", TEST),
    Mutant("the_prompts_end_taken_off", GENERATE, "pair = model.config.decoder_layers > 0 ", "pair = False ", TEST),
    Mutant("t5s_text_without_its_end", TOKENIZER, 'config["add_bos_token"], config["add_eos_token"] = False, True\n', 'config["add_bos_token"], config["add_eos_token"] = False, False\n', TEST),
    Mutant("sentinels_counted_upwards", TOKENIZER, "for token in reversed(sentinels):", "for token in sentinels:", TEST),
    Mutant("no_word_start_behind_a_sentinel", TOKENIZER, 'config.get("add_prefix_space"), after_special=True)', 'config.get("add_prefix_space"), after_special=False)', TEST),
    Mutant("blanks_lost_in_the_middle_of_an_answer", "minift/tokenizer/vocabulary.py", "DUMMY_SPACE[False] + EVERY_SPACE)", "DUMMY_SPACE[False])", TEST),
    Mutant("the_start_token_learned", "minift/data/examples.py", "return Example(ids, [t > 0 for t in range(len(ids))], prompt)", "return Example([ids[0], *ids], [t > 0 for t in range(len(ids) + 1)], prompt)", SFT),
    Mutant("pads_of_a_prompt_taken_for_tokens", "minift/data/batches.py", "return Batch(token_ids, loss_mask, None, prompts, there)", "return Batch(token_ids, loss_mask, None, prompts, there | True)", SFT),
    Mutant("pairs_packed", "minift/recipes/sft.py", 'config.batching == "bucketed" or examples[0].prompt else', 'config.batching == "bucketed" else', SFT),
    Mutant("only_answers_fill_a_batch", "minift/data/batches.py", "return len(self.ids) + len(self.prompt)", "return len(self.ids)", SFT),
    Mutant("the_encoders_blocks_for_the_last", "minift/peft/own.py", 'if path.startswith("decoder.")}', 'if path.startswith("encoder.")}', SFT),
    Mutant("chat_takes_a_pair", "minift/folder.py", "config.decoder_layers and not pairs:", "config.decoder_layers and False:", TEST),
]    # fmt: skip
