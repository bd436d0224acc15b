"""Planted bugs in embeddings: which texts, which tokens, which vector, which rows together, what is measured."""

from tests.mutants.mutant import Mutant

EMBED, POOLING, RECIPE, ROWS = "minift/embed.py", "minift/models/pooling.py", "minift/recipes/embed.py", "minift/recipes/embed_rows.py"
TEXTS, REPORT, ENCODE, SENTENCE = "minift/data/texts.py", "minift/recipes/embed_report.py", "minift/recipes/encode.py", "minift/models/sentence_folder.py"
TEST, TEST_POOLING, TEST_RECIPE, TEST_TEXTS = "tests/test_embed.py", "tests/models/test_pooling.py", "tests/recipes/test_embed.py", "tests/data/test_texts.py"
TEST_ENCODE, TEST_TEACHER = "tests/recipes/test_encode.py", "tests/recipes/test_embed_teacher.py"
TEACHER, LOSSES, TRANSFORMER = "minift/recipes/embed_teacher.py", "minift/recipes/embed_losses.py", "minift/models/transformer.py"

MUTANTS = [
    Mutant("vectors_in_the_order_of_their_lengths", EMBED, "found[places] = shortened", "found[places.sort().values] = shortened", TEST),
    Mutant("dropout_while_embedding", EMBED, "    model.eval()\n", "    pass\n", TEST),
    Mutant("a_cut_text_loses_its_end", EMBED, "[*own[: limit - 1], own[-1]] if tokenizer.adds_eos else own[:limit]", "own[:limit]", TEST),
    Mutant("the_default_prompt_forgotten", EMBED, 'pooling.prompts.get(pooling.default_prompt, "")', '""', TEST),
    Mutant("positions_end_after_the_text", EMBED, "limit -= model.virtual_count()", "limit += model.virtual_count()", TEST),
    Mutant("rows_of_any_size", EMBED, "size + more > tokens", "size > tokens", TEST),
    Mutant("length_made_one_before_the_cut", POOLING, "    vectors = vectors if dim is None else vectors[..., :dim]\n    return F.normalize(vectors, dim=-1) if normalize else vectors",
           "    vectors = F.normalize(vectors, dim=-1) if normalize else vectors\n    return vectors if dim is None else vectors[..., :dim]", TEST_POOLING),
    Mutant("weights_from_zero", POOLING, "torch.arange(1, states.shape[1] + 1,", "torch.arange(0, states.shape[1],", TEST_POOLING),
    Mutant("a_mean_in_bfloat16", POOLING, "stream.to(torch.promote_types(stream.dtype, torch.float32))", "stream", TEST_POOLING),
    Mutant("the_last_instead_of_the_first", POOLING, "        return states[:, 0]\n", "        return states[:, -1]\n", TEST_POOLING),
    Mutant("normalize_not_written", SENTENCE, '*(["Normalize"] if pooling.normalize else [])', '"Normalize"', TEST_POOLING),
    Mutant("the_longest_text_not_read", SENTENCE, 'body.get("max_seq_length")', 'body.get("max_length")', TEST_POOLING),
    Mutant("two_poolings_taken_as_the_first", SENTENCE, "if len(found) != 1 or found[0] not in FLAGS:", "if found[0] not in FLAGS:", TEST_POOLING),
    Mutant("scores_not_scaled", TEXTS, "return [(row.score - low) / (high - low) for row in rows]", "return [row.score / high for row in rows]", TEST_TEXTS),
    Mutant("the_negative_may_be_the_positive", TEXTS, 'if shape == "pairs" and texts[1].strip() in', "if False and texts[1].strip() in", TEST_TEXTS),
    Mutant("docstrings_left_in_the_code", TEXTS, "lines[node.lineno - 1 : documented.lineno - 1] + lines[documented.end_lineno : node.end_lineno]", "lines[node.lineno - 1 : node.end_lineno]", TEST_TEXTS),
    Mutant("functions_of_every_module", TEXTS, "if split_of(module) == split:", "if True:", TEST_TEXTS),
    Mutant("a_text_twice_in_a_batch", ROWS, "                if there & texts:", "                if False:", TEST_RECIPE),
    Mutant("rows_that_had_to_wait_are_lost", ROWS, "                    later.append(i)\n", "                    pass\n", TEST_RECIPE),
    Mutant("every_epoch_in_one_order", ROWS, "dice = random.Random(seed)", "dice = random.Random(0)", TEST_RECIPE),
    Mutant("positives_behind_the_anchors_prompt", ROWS, 'return "document" if self.shape == "pairs" and column else "query"', 'return "query"', TEST_RECIPE),
    Mutant("negatives_too_near", ROWS, "score <= own[anchor] - margin", "score <= own[anchor]", TEST_RECIPE),
    Mutant("another_positive_taken_as_negative", ROWS, "if j not in right[anchor] and score", "if score", TEST_RECIPE),
    Mutant("columns_in_the_order_of_their_lengths", RECIPE, "torch.cat(parts)[torch.cat(places).argsort().to(parts[0].device)]", "torch.cat(parts)", TEST_RECIPE),
    Mutant("an_adapter_without_its_pooling", RECIPE, "        write_pooling(pooling, model.config.hidden_size, written)\n", "        pass\n", TEST_RECIPE),
    Mutant("the_temperature_not_taken_off", RECIPE, "        model._modules.pop(name, None)\n", "        pass\n", TEST_RECIPE),
    Mutant("the_nearest_text_is_itself", REPORT, "next(int(j) for j in own if j != i)", "int(own[0])", TEST_RECIPE),
    Mutant("both_ways_forgotten_while_embedding", EMBED, 'both = {"bidirectional": True} if', "both = {} if", TEST),
    Mutant("both_ways_in_the_first_run_only", TRANSFORMER, "(all_seen,) * len(ragged.runs)", "(all_seen, *[None] * (len(ragged.runs) - 1))", TEST),
    Mutant("both_ways_forgotten_behind_learned_tokens", TRANSFORMER, "capture, None, token_types, bidirectional", "capture, None, token_types, False", TEST),
    Mutant("a_window_taken_for_both_ways", TRANSFORMER, " and not any(self.config.windows)", "", TEST),
    Mutant("texts_do_not_see_their_learned_tokens", EMBED, "model.hidden(**dict(zip(given, run)), **both)", "model.hidden(**dict(zip(given, run)), segments=torch.zeros_like(run[0]))", TEST),
    Mutant("an_adapter_does_not_say_both_ways", SENTENCE, '**({"config_args": {"is_causal": False}} if pooling.bidirectional else {})', "", TEST_RECIPE),
    Mutant("transformers_not_told_of_both_ways", SENTENCE, '"is_causal": False})', '"is_causal": True})', TEST_POOLING),
    Mutant("a_decoder_that_looks_both_ways_read_at_its_end", RECIPE, 'replace(model.pooling or Pooling("mean"), bidirectional=True)', "replace(pooling_of(model), bidirectional=True)", TEST_RECIPE),
    Mutant("classes_counted_in_each_part", ROWS, "return [classes.index(row.label) for row in self.rows]", "return [sorted({r.label for r in self.rows}).index(row.label) for row in self.rows]", TEST_RECIPE),
    Mutant("the_classifiers_first_columns", LOSSES, "relation.weight.unflatten(1, (3, -1))[..., :width].flatten(1)", "relation.weight[:, : 3 * width]", TEST_RECIPE),
    Mutant("the_classifier_not_taken_off", RECIPE, 'BESIDE = ("temperature", "relation")', 'BESIDE = ("temperature",)', TEST_RECIPE),
    Mutant("pairs_aligned_with_their_neighbours", REPORT, "vectors[[place[row.texts[1]] for row in rows]]", "vectors[[place[row.texts[1]] for row in rows[::-1]]]", TEST_RECIPE),
    Mutant("a_teacher_read_along_its_least_directions", TEACHER, "directions[:, -width:].flip(1)", "directions[:, :width].flip(1)", TEST_TEACHER),
    Mutant("a_teachers_directions_from_held_out_texts", TEACHER, "every = torch.cat(list(own[0].values()))", "every = torch.cat(list(own[1].values()))", TEST_TEACHER),
    Mutant("a_teacher_without_its_prompts", TEACHER, "prompt=prompt_of(pooling, side)", "prompt=None", TEST_TEACHER),
    Mutant("a_student_on_the_sphere_told_shorter_vectors", TEACHER, "F.normalize(found, dim=-1) if pooling.normalize else found", "found", TEST_TEACHER),
    Mutant("columns_follow_each_others_teachers", LOSSES, "zip(columns[:half], columns[half:])", "zip(columns[:half], columns[half:][::-1])", TEST_TEACHER),
    Mutant("each_row_told_of_the_first_columns_side", ROWS, "self.taught[self.side(i)][text]", "self.taught[self.side(0)].get(text, torch.zeros(32))", TEST_TEACHER),
    Mutant("a_fingerprint_of_the_shape_only", EMBED, "        seen.update(tensor.detach()", "        (lambda x: None)(tensor.detach()", TEST_ENCODE),
    Mutant("a_fingerprint_that_forgets_the_pooling", EMBED, "repr((model.config, pooling_of(model)))", "repr(model.config)", TEST_ENCODE),
]    # fmt: skip
