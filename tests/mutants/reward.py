"""Planted bugs in reward models: where the score is read, what trains, what is saved, which answer is the better one."""

from tests.mutants.mutant import Mutant

SCORER, TEST_SCORER = "minift/models/scorer.py", "tests/models/test_scorer.py"
HEAD, TEST_HEAD = "minift/peft/head.py", "tests/peft/test_head.py"
REWARD, TEST = "minift/recipes/reward.py", "tests/recipes/test_reward.py"
SCORING, REPORT = "minift/evaluate/scoring.py", "minift/recipes/reward_report.py"

MUTANTS = [
    Mutant("score_before_the_last_token", SCORER, "* T + lengths - 1", "* T + (lengths - 2).clamp(min=0)", TEST_SCORER),
    Mutant("score_at_the_end_of_the_row", SCORER, "return self.at(batch.ends,", "return self.at(batch.ends // batch.token_ids.shape[1] * batch.token_ids.shape[1] + batch.token_ids.shape[1] - 1,", TEST_SCORER),
    Mutant("rewards_rounded_to_bf16", SCORER, "with torch.autocast(stream.device.type, enabled=False):", "with torch.autocast(stream.device.type):", TEST_SCORER),
    Mutant("answers_see_each_other_in_a_scorer", SCORER, "branches=None if one_each else batch.branches", "branches=None", TEST_SCORER),
    Mutant("the_scorer_keeps_the_output_head", SCORER, '            if name != "head":\n', "            if True:\n", TEST_SCORER),
    Mutant("a_new_head_without_its_seed", SCORER, "start(scorer.score, torch.Generator().manual_seed(seed))", "start(scorer.score)", TEST_SCORER),
    Mutant("a_new_head_twice_as_large", SCORER, "std=(head.in_features + 1) ** -0.5", "std=2 * (head.in_features + 1) ** -0.5", TEST_SCORER),
    Mutant("a_scorers_head_is_rounded_with_the_rest", "minift/folder.py", "        model.score.float()", "        pass", TEST_SCORER),
    Mutant("labels_not_written", "minift/models/families.py", '"id2label": names, ', "", TEST_SCORER),
    Mutant("head_frozen_beside_an_adapter", HEAD, "    if not has_head(model):\n        return {}\n    heads", "    if True:\n        return {}\n    heads", TEST_HEAD),
    Mutant("head_not_saved", "minift/peft/files.py", "    return own_head | {\n", "    return {\n", TEST_HEAD),
    Mutant("head_of_bottlenecks_not_saved", "minift/peft/files.py", "        found |= head.tensors(method.peft_type, small)\n", "", TEST_HEAD),
    Mutant("an_adapter_without_a_head_gets_a_random_one", HEAD, "    if names and not stored:", "    if False:", TEST_HEAD),
    Mutant("the_loop_asks_the_head_for_a_budget", "minift/peft/training.py", "if not isinstance(module, NewHead)", "if True", TEST_HEAD),
    Mutant("heads_are_mixed_by_a_fusion", "minift/peft/fusion.py", " and not isinstance(wrapper.adapters[name], NewHead)", "", TEST_HEAD),
    Mutant("chosen_and_rejected_swapped", REWARD, "bradley_terry(scores[:, 0], scores[:, 1], margin=batch", "bradley_terry(scores[:, 1], scores[:, 0], margin=batch", TEST),
    Mutant("center_ignored", REWARD, 'margin=batch.values.get("margin"), center=self.center', 'margin=batch.values.get("margin")', TEST),
    Mutant("margins_ignored", REWARD, 'rows.values["margin"] = ', "_ = ", TEST),
    Mutant("margins_of_other_pairs", REWARD, "self.margins[torch.tensor(indices)]", "self.margins[: len(indices)]", TEST),
    Mutant("equal_rewards_count_as_right", REWARD, '"accuracy": chosen > rejected', '"accuracy": chosen >= rejected', TEST),
    Mutant("held_out_pairs_are_trained_on", REWARD, "train, valid, loss = Pairs(train_set,", "train, valid, loss = Pairs(valid_set,", TEST),
    Mutant("the_reward_model_pads_with_its_end", REWARD, "    pad_apart_from_end(model, tokenizer)\n", "", "tests/recipes/test_reward.py"),
    Mutant("samples_are_the_least_clear", REPORT, "right = [i for i in reversed(order) if", "right = [i for i in order if", TEST),
    Mutant("rewards_in_the_order_of_their_batches", SCORING, "out[torch.cat([torch.arange(counts[i]) + starts[i] for i in chosen])] = found",
           "out[int(counts[: 1].sum()) * 0 : len(found)] = found", TEST),
    Mutant("an_adapters_base_is_loaded_in_full", SCORING, 'quantize = quantize or _json(folder / "base.json").get("quantize")', "pass", TEST),
]    # fmt: skip
