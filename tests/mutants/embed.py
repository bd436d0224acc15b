"""Planted bugs in embeddings: which texts, which tokens, which vector, which rows together, what is measured."""

from tests.mutants.mutant import Mutant

EMBED, POOLING, RECIPE, ROWS = "minift/embed.py", "minift/models/pooling.py", "minift/recipes/embed.py", "minift/recipes/embed_rows.py"
TEXTS, REPORT, ENCODE, SENTENCE = "minift/data/texts.py", "minift/recipes/embed_report.py", "minift/recipes/encode.py", "minift/models/sentence_folder.py"
TEST, TEST_POOLING, TEST_RECIPE, TEST_TEXTS = "tests/test_embed.py", "tests/models/test_pooling.py", "tests/recipes/test_embed.py", "tests/data/test_texts.py"
TEST_ENCODE = "tests/recipes/test_encode.py"

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
    Mutant("the_longest_text_not_read", SENTENCE, '.get("max_seq_length") if', '.get("max_length") if', TEST_POOLING),
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
    Mutant("the_temperature_not_taken_off", RECIPE, "        del model.temperature\n", "        pass\n", TEST_RECIPE),
    Mutant("the_nearest_text_is_itself", REPORT, "next(int(j) for j in own if j != i)", "int(own[0])", TEST_RECIPE),
    Mutant("a_fingerprint_of_the_shape_only", EMBED, "        seen.update(tensor.detach()", "        (lambda x: None)(tensor.detach()", TEST_ENCODE),
    Mutant("a_fingerprint_that_forgets_the_pooling", EMBED, "repr((model.config, pooling_of(model)))", "repr(model.config)", TEST_ENCODE),
]    # fmt: skip
