"""Planted bugs in the losses of preferences and of reward models."""

from tests.mutants.mutant import Mutant

PAIRS, TEST = "minift/losses/preference.py", "tests/losses/test_preference.py"
FREE, TEST_FREE = "minift/losses/reference_free.py", "tests/losses/test_reference_free.py"
KTO, TEST_KTO = "minift/losses/kto.py", "tests/losses/test_kto.py"
REWARD, TEST_REWARD = "minift/losses/reward.py", "tests/losses/test_reward.py"

MUTANTS = [
    Mutant("dpo_a_mean_for_the_sum", PAIRS, "-F.logsigmoid(beta * gain).sum()", "-F.logsigmoid(beta * gain).mean()", TEST),
    Mutant("dpo_forgets_the_reference", PAIRS, "(ref_chosen - ref_rejected)                       #", "0 * (ref_chosen - ref_rejected)  #", TEST),
    Mutant("dpo_turned_round", PAIRS, "return -F.logsigmoid(beta * gain)", "return -F.logsigmoid(-beta * gain)", TEST),
    Mutant("cdpo_ignores_label_smoothing", PAIRS, "return -((1 - label_smoothing) * F.logsigmoid(m) + label_smoothing * F.logsigmoid(-m))", "return -(F.logsigmoid(m))", TEST),
    Mutant("robust_is_cdpo_over_1_minus_2e", PAIRS, "F.logsigmoid(m) - label_smoothing * F.logsigmoid(-m)) /", "F.logsigmoid(m) + label_smoothing * F.logsigmoid(-m)) /", TEST),
    Mutant("robust_not_scaled_back", PAIRS, " / (1 - 2 * label_smoothing)", "", TEST),
    Mutant("half_the_labels_may_be_wrong", PAIRS, "0 <= label_smoothing < 0.5", "0 <= label_smoothing <= 0.5", TEST),
    Mutant("ipo_on_sums", PAIRS, "gap = (policy_chosen - ref_chosen) / chosen_tokens - (policy_rejected - ref_rejected) / rejected_tokens",
           "gap = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)", TEST),
    Mutant("ipo_one_length_for_both", PAIRS, "(policy_rejected - ref_rejected) / rejected_tokens", "(policy_rejected - ref_rejected) / chosen_tokens", TEST),
    Mutant("ipo_aims_at_one_over_beta", PAIRS, "(gap - 1 / (2 * beta))", "(gap - 1 / beta)", TEST),
    Mutant("hinge_has_no_floor", PAIRS, "torch.relu(1 - beta * gain)", "(1 - beta * gain)", TEST),
    Mutant("apo_zero_raises_both", PAIRS, "+ torch.sigmoid(down))", "- torch.sigmoid(down))", TEST),
    Mutant("apo_down_without_the_comparison", PAIRS, "1 - torch.sigmoid(chosen - rejected)", "1 - torch.sigmoid(-rejected)", TEST),
    Mutant("simpo_multiplies_gamma_by_beta", FREE, "F.logsigmoid(beta * lead - gamma)", "F.logsigmoid(beta * (lead - gamma))", TEST_FREE),
    Mutant("simpo_on_sums", FREE, "lead = policy_chosen / chosen_tokens - policy_rejected / rejected_tokens", "lead = policy_chosen - policy_rejected", TEST_FREE),
    Mutant("cpo_learns_a_sum_of_chosen_tokens", FREE, "sft_weight * policy_chosen / chosen_tokens", "sft_weight * policy_chosen", TEST_FREE),
    Mutant("cpo_unlearns_the_chosen_answer", FREE, "(policy_chosen - policy_rejected)) - sft_weight", "(policy_chosen - policy_rejected)) + sft_weight", TEST_FREE),
    Mutant("orpo_compares_probabilities_for_odds", FREE, "(chosen - _log_one_minus_exp(chosen)) - (rejected - _log_one_minus_exp(rejected))", "chosen - rejected", TEST_FREE),
    Mutant("orpo_without_its_own_loss", FREE, "losses = -sft_weight * chosen - beta", "losses = -beta", TEST_FREE),
    Mutant("orpo_infinite_where_an_answer_is_certain", FREE, "    x = x.clamp(max=-(2.0**-24))\n", "", TEST_FREE),
    Mutant("orpo_rounds_before_it_subtracts", FREE, "torch.log(-torch.expm1(torch.where(near, x, -1.0)))", "torch.log(1 - torch.exp(torch.where(near, x, -1.0)))", TEST_FREE),
    Mutant("kto_kl_below_zero", KTO, ".mean().clamp(min=0).detach()", ".mean().detach()", TEST_KTO),
    Mutant("kto_kl_learns", KTO, ".clamp(min=0).detach()", ".clamp(min=0)", TEST_KTO),
    Mutant("kto_kl_a_sum", KTO, "ref_mismatched).mean()", "ref_mismatched).sum()", TEST_KTO),
    Mutant("kto_without_its_kl", KTO, "torch.where(desirable, gain - kl, kl - gain)", "torch.where(desirable, gain, -gain)", TEST_KTO),
    Mutant("kto_labels_turned_round", KTO, "torch.where(desirable, gain - kl, kl - gain)", "torch.where(desirable, kl - gain, gain - kl)", TEST_KTO),
    Mutant("kto_weights_swapped", KTO, "desirable_weight * losses, undesirable_weight * losses", "undesirable_weight * losses, desirable_weight * losses", TEST_KTO),
    Mutant("kto_mismatched_by_reversing", KTO, "return [*range(1, n), 0]", "return [*range(n)][::-1]", TEST_KTO),
    Mutant("kto_takes_one_row", KTO, "if n < 2:", "if n < 1:", TEST_KTO),
    Mutant("margin_added_to_the_lead", REWARD, "chosen - rejected - margin", "chosen - rejected + margin", TEST_REWARD),
    Mutant("centring_the_difference", REWARD, "center * (chosen + rejected).square()", "center * (chosen - rejected).square()", TEST_REWARD),
    Mutant("bradley_terry_a_mean", REWARD, "    return losses.sum(), losses.numel()", "    return losses.mean(), losses.numel()", TEST_REWARD),
    Mutant("k_wise_compares_an_answer_with_itself", REWARD, "offset=1", "offset=0", TEST_REWARD),
    Mutant("k_wise_sums_over_pairs", REWARD, ".mean(1).sum(), B", ".sum(1).sum(), B", TEST_REWARD),
    Mutant("k_wise_worst_first", REWARD, "scores[:, better] - scores[:, worse]", "scores[:, worse] - scores[:, better]", TEST_REWARD),
]
