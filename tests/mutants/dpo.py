"""Planted bugs in learning from preferences: the reference, the order of the answers, what counts as an answer, what is trained on, what is said."""

from tests.mutants.mutant import Mutant

DPO, OBJECTIVES, REFERENCE = "minift/recipes/dpo.py", "minift/recipes/objectives.py", "minift/recipes/reference.py"
ROWS, PLOTS, ANSWERS = "minift/recipes/preference_rows.py", "minift/recipes/preference_plots.py", "minift/train/answers.py"
TEST, TEST_ANSWERS, TEST_TRL = "tests/recipes/test_dpo.py", "tests/train/test_answers.py", "tests/parity/test_trl_dpo.py"

MUTANTS = [
    Mutant("the_live_reference_is_trained", DPO, "with torch.no_grad(), peft.disabled(model):", "with torch.no_grad():", TEST),
    Mutant("the_reference_keeps_the_adapters", REFERENCE, "return peft.disabled(model) if keeps_base(model) else", "return contextlib.nullcontext() if True else", TEST),
    Mutant("the_reference_with_dropout", REFERENCE, "    model.eval()  ", "    pass  ", TEST),
    Mutant("the_policys_own_dropout_stays_on", DPO, "    set_dropout(model, 0.0)\n", "", TEST),
    Mutant("own_dropout_is_lost_in_what_is_written", DPO, "    set_dropout(model, dropout)  ", "    pass  ", TEST),
    Mutant("the_policy_is_left_in_eval_mode", REFERENCE, "        model.train(was_training)\n", "        pass\n", TEST),
    Mutant("reference_in_the_order_of_its_batches", REFERENCE, "found[places] = per_answer(", "found[places.sort().values] = per_answer(", TEST),
    Mutant("references_of_other_pairs", DPO, "self.reference.view(-1, 2)[some].flatten()", "self.reference.view(-1, 2)[: len(some)].flatten()", TEST),
    Mutant("reference_of_other_data_taken", REFERENCE, 'if (opened.metadata() or {}).get("answers") != _mark(trees):', "if False:", TEST),
    Mutant("reference_computed_again_on_resume", REFERENCE, "    if file.exists():\n", "    if False:\n", TEST),
    Mutant("another_vocabulary_is_found_once_the_earlier_run_is_gone", DPO, "    if theirs != model.config.vocab_size:", "    if False:", TEST),
    Mutant("a_named_model_is_not_asked", REFERENCE, "found = sums(other, trees, tokens, precision)", "found = sums(model, trees, tokens, precision)", TEST),
    Mutant("chosen_and_rejected_swapped_in_dpo", OBJECTIVES, "return self.policy[0::2], self.policy[1::2], self.reference[0::2], self.reference[1::2]",
           "return self.policy[1::2], self.policy[0::2], self.reference[1::2], self.reference[0::2]", TEST_TRL),
    Mutant("swapped_without_a_reference", OBJECTIVES, "(a.policy[0::2], a.policy[1::2], a.tokens[0::2], a.tokens[1::2])",
           "(a.policy[1::2], a.policy[0::2], a.tokens[1::2], a.tokens[0::2])", TEST),
    Mutant("mean_for_sum", OBJECTIVES, "return lambda a: paired[config.loss](*a.paired(), beta=beta)[0]",
           "return lambda a: paired[config.loss](*[x / t for x, t in zip(a.paired(), (a.tokens[0::2], a.tokens[1::2]) * 2)], beta=beta)[0]", TEST_TRL),
    Mutant("ipo_by_the_other_answers_lengths", OBJECTIVES, "a.tokens[0::2], a.tokens[1::2], beta=beta)[0]", "a.tokens[1::2], a.tokens[0::2], beta=beta)[0]", TEST_TRL),
    Mutant("beta_ignored", OBJECTIVES, "return BETAS.get(config.loss, 0.1) if config.beta is None else config.beta", "return BETAS.get(config.loss, 0.1)", TEST_TRL),
    Mutant("label_smoothing_of_dpo_ignored", OBJECTIVES, "        if config.loss not in losses and getattr", "        if False and getattr", TEST),
    Mutant("ktos_labels_shifted", DPO, 'rows.values["desirable"] = self.desirable[some]', 'rows.values["desirable"] = self.desirable[some - 1]', TEST),
    Mutant("ktos_kl_of_its_own_answers", OBJECTIVES, "kto_kl(a.policy[1::2], a.reference[1::2])", "kto_kl(a.policy[0::2], a.reference[0::2])", TEST),
    Mutant("an_other_answer_of_the_same_prompt", ROWS, "if trees[(i + step) % len(trees)].prompt != tree.prompt)", ")", TEST),
    Mutant("an_other_answer_beyond_the_last_position", ROWS, "other.answers[0][:room]", "other.answers[0]", TEST),
    Mutant("held_out_pairs_trained_on_by_dpo", DPO, "epoch = lambda number: train.batches", "epoch = lambda number: valid.batches", TEST),
    Mutant("one_prompt_on_both_sides", ROWS, "key=lambda pair: pair.question", "key=lambda pair: pair.where", TEST),
    Mutant("loss_by_answers_instead_of_pairs", DPO, "penalty(model)\n        return (scored.loss", "penalty(model)\n        return (scored.loss / batch.trees", TEST_TRL),
    Mutant("a_pair_split_over_groups", DPO, "pairs = batch.lengths.view(-1, 2).sum(1)", "pairs = batch.lengths", TEST),
    Mutant("ties_before_the_first_step_are_wrong", DPO, "right = (lead.sign() + 1) / 2", "right = (lead > 0).float()", TEST),
    Mutant("evaluation_mixes_with_trainings_numbers", DPO, "held, loss.seen = loss.seen, []", "held = loss.seen", TEST),
    Mutant("samples_show_bad_answers", ROWS, "reversed(good or self.questions)", "reversed(self.questions)", TEST),
    Mutant("the_picture_starts_elsewhere", PLOTS, 'm[f"eval_{name}"] - before[name]', 'm[f"eval_{name}"]', TEST),
    Mutant("answers_read_one_place_late", ANSWERS, "stream.index_select(0, batch.places)", "stream.index_select(0, (batch.places + 1) % len(stream))", TEST_ANSWERS),
    Mutant("an_adapter_on_the_head_forgotten", ANSWERS, "    logits = head(hidden) ", "    logits = hidden @ head.weight.T ", TEST_ANSWERS),
    Mutant("temperature_lost_by_a_called_head", ANSWERS, "of_tokens(logits, batch.tokens, temperature, allowed)", "of_tokens(logits, batch.tokens, 1.0, allowed)", TEST_ANSWERS),
    Mutant("the_end_token_not_counted", "minift/losses/logprobs.py", "index_add(0, owner, logprobs)",
           "index_add(0, owner, logprobs.index_fill(0, lengths.cumsum(0) - 1, 0.0))", TEST_ANSWERS),
    Mutant("answer_of_off_by_one", "minift/data/branches.py", "return slice(first, last + 1)", "return slice(first, last)", TEST_TRL),
]    # fmt: skip
