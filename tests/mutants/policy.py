"""Planted bugs in the policy's losses, in advantages and in the distance to a reference."""

from tests.mutants.mutant import Mutant

POLICY, TEST = "minift/losses/policy.py", "tests/losses/test_policy.py"
ADVANTAGES, GAE = "minift/losses/advantages.py", "tests/losses/test_advantages.py"
KL, DISTANCE = "minift/losses/kl.py", "tests/losses/test_kl.py"

MUTANTS = [
    Mutant("ppo_max_for_min_in_the_clip", POLICY, "return -torch.minimum(", "return -torch.maximum(", TEST),
    Mutant("ppo_clip_bounds_swapped", POLICY, "ratio.clamp(1 - clip_low, 1 + clip_high)", "ratio.clamp(1 - clip_high, 1 + clip_low)", TEST),
    Mutant("ppo_loss_that_makes_good_tokens_unlikely", POLICY, "return -torch.minimum(ratio * advantages,", "return torch.minimum(ratio * advantages,", TEST),
    Mutant("ppo_ratio_upside_down", POLICY, "    ratio = (logprobs - old).exp()\n    return", "    ratio = (old - logprobs).exp()\n    return", TEST),
    Mutant("ppo_clip_share_of_all_outside", POLICY, "(ratio > 1 + clip_high) & (advantages > 0)", "(ratio > 1 + clip_high)", TEST),
    Mutant("ppo_value_loss_takes_the_smaller", POLICY, "0.5 * torch.maximum(", "0.5 * torch.minimum(", TEST),
    Mutant("ppo_value_loss_not_halved", POLICY, "0.5 * torch.maximum(", "torch.maximum(", TEST),
    Mutant("ppo_value_clipped_around_the_return", POLICY, "near = old_values + (values - old_values)", "near = returns + (values - old_values)", TEST),
    Mutant("grpo_answers_averaged_by_all_tokens", POLICY, "each = 1.0 / (A * lengths) ", "each = torch.full((A,), 1.0 / n) ", TEST),
    Mutant("dapo_tokens_averaged_over_answers", POLICY, "torch.full((A,), 1.0 / n)", "torch.full((A,), 1.0 / A)", TEST),
    Mutant("dr_grpo_divides_by_the_longest_answer_there_is", POLICY, "1.0 / (A * max_length)", "1.0 / (A * lengths.max())", TEST),
    Mutant("rloo_mean_for_sum", POLICY, "each = torch.full((A,), 1.0 / A)", "each = 1.0 / (A * lengths)", TEST),
    Mutant("weights_of_the_wrong_answer", POLICY, ".repeat_interleave(lengths)", ".flip(0).repeat_interleave(lengths.flip(0))", TEST),
    Mutant("gae_sees_pads", ADVANTAGES, "rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0) ", "rewards, values ", GAE),
    Mutant("gae_value_after_the_end", ADVANTAGES, "rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0) ", "rewards.masked_fill(~mask, 0.0), values ", GAE),
    Mutant("gae_value_after_the_last_column_repeated", ADVANTAGES, "F.pad(values[:, 1:], (0, 1))", "torch.cat([values[:, 1:], values[:, -1:]], 1)", GAE),
    Mutant("gae_without_lam", ADVANTAGES, "delta + gamma * lam * later", "delta + gamma * later", GAE),
    Mutant("gae_value_not_discounted", ADVANTAGES, "rewards + gamma * F.pad", "rewards + F.pad", GAE),
    Mutant("gae_backwards", ADVANTAGES, "torch.stack(found[::-1], dim=1)", "torch.stack(found, dim=1)", GAE),
    Mutant("gae_returns_without_the_value", ADVANTAGES, "return advantages, advantages + values", "return advantages, advantages", GAE),
    Mutant("ppo_reward_after_the_end", ADVANTAGES, "place == lengths[:, None] - 1", "place == lengths[:, None].clamp(max=kl.shape[1] - 1)", GAE),
    Mutant("ppo_reward_in_the_last_column", ADVANTAGES, "place == lengths[:, None] - 1", "place == kl.shape[1] - 1", GAE),
    Mutant("ppo_paid_for_its_distance", ADVANTAGES, "(-kl_coef * kl)", "(kl_coef * kl)", GAE),
    Mutant("ppo_distance_of_pads_counted", ADVANTAGES, ".masked_fill(place >= lengths[:, None], 0.0)", "", GAE),
    Mutant("ppo_penalty_for_those_that_ended", ADVANTAGES, "torch.where(ended, scores, scores - missing_eos_penalty)",
           "torch.where(ended, scores - missing_eos_penalty, scores)", GAE),
    Mutant("whitening_over_pads", ADVANTAGES, "    real = x[mask]\n", "    real = x.flatten()\n", GAE),
    Mutant("whitening_always_moves_the_mean", ADVANTAGES, "(white if shift_mean else white + mean)", "white", GAE),
    Mutant("whitening_of_one_token_is_nan", ADVANTAGES, "correction=min(1, max(0, len(real) - 1))", "correction=1", GAE),
    Mutant("explained_variance_without_its_mean", ADVANTAGES, "(returns - values)[mask].var(correction=0)", "((returns - values)[mask] ** 2).mean()", GAE),
    Mutant("grpo_std_biased_for_unbiased", ADVANTAGES, '{"unbiased": 1, "biased": 0}', '{"unbiased": 0, "biased": 1}', GAE),
    Mutant("grpo_mean_over_the_whole_batch", ADVANTAGES, "beyond.mean(1, keepdim=True)", "beyond.mean()", GAE),
    Mutant("grpo_equal_rewards_rounded_to_a_push", ADVANTAGES, "return rewards - rewards[:, :1]", "return rewards", GAE),
    Mutant("rloo_leaves_nobody_out", ADVANTAGES, "(beyond.sum(1, keepdim=True) - beyond) / (beyond.shape[1] - 1)", "beyond.mean(1, keepdim=True)", GAE),
    Mutant("running_mean_of_means", ADVANTAGES, "self.total += rewards.sum().item()\n        self.count += rewards.numel()",
           "self.total += rewards.mean().item()\n        self.count += 1", GAE),
    Mutant("kl_with_the_wrong_sign", KL, "return logprobs - reference", "return reference - logprobs", DISTANCE),
    Mutant("kl_k3_of_the_ratio_upside_down", KL, "log_ratio = reference - logprobs", "log_ratio = logprobs - reference", DISTANCE),
    Mutant("kl_k3_with_the_wrong_sign", KL, "torch.expm1(log_ratio) - log_ratio", "torch.expm1(log_ratio) + log_ratio", DISTANCE),
    Mutant("kl_k3_lost_in_rounding", KL, "torch.expm1(log_ratio) - log_ratio", "torch.exp(log_ratio) - log_ratio - 1", DISTANCE),
    Mutant("kl_k2_not_halved", KL, "0.5 * (logprobs - reference) ** 2", "(logprobs - reference) ** 2", DISTANCE),
    Mutant("kl_exact_in_the_other_direction", KL, "log_p.exp() * (log_p - log_q)", "log_q.exp() * (log_q - log_p)", DISTANCE),
    Mutant("kl_price_falls_with_distance", KL, "1 + error * n / self.horizon", "1 - error * n / self.horizon", DISTANCE),
    Mutant("kl_price_without_limits", KL, "min(0.2, max(-0.2, kl / self.target - 1))", "kl / self.target - 1", DISTANCE),
]
